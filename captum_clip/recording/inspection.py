"""An inspection: one forward of each kind of model and input, in which laws are seen to."""

import sys
import weakref
from collections.abc import Callable, Collection, Hashable, Sequence
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..models.library import modules_of
from ..models.towers import Tower
from .cuts import Cuts
from .laws import uphold_in
from .observe import observe

_PLAIN_TYPES = {bool, int, float, str, type(None)}


def kind_of(tower: nn.Module, model: nn.Module | None = None) -> Hashable:
    """What tells whether a tower is as it was at the last inspection: its modules and their hooks.

    Their classes, forwards and plain attributes as well; two towers of one kind pass the same laws.
    """
    # Somebody may put another function in the place of torch's own.
    parts: list[Any] = [F.scaled_dot_product_attention]
    # A model names its attention function, and transformers has the function itself.
    kernels = getattr(sys.modules.get("transformers.modeling_utils"), "ALL_ATTENTION_FUNCTIONS", {})
    parts += kernels.values()
    modules = modules_of(tower)
    if model is not None:
        modules = [model, *modules]
    for module in modules:
        attributes = vars(module)
        parts += (id(module), getattr(type(module), "forward", None))
        parts.append(_without_owner(attributes.get("forward")))
        # None stands between the two, so that a hook does not look the same on either side.
        parts += (*module._forward_pre_hooks, None, *module._forward_hooks)
        parts.append(_without_owner(attributes.get("_compiled_call_impl")))
        parts.append(getattr(attributes.get("config"), "_attn_implementation", None))
        parts += [value for value in attributes.values() if type(value) in _PLAIN_TYPES]
    return tuple(parts)


def _without_owner(function: Any) -> Any:
    """A function of a model as a part of its kind, which must not keep the model alive."""
    if isinstance(function, MethodType):
        return function.__func__, id(function.__self__)
    if function is None:
        return None
    # A reference equals another one to the same function, and none once that is gone.
    return weakref.ref(function)


class _ForwardFailed(Exception):  # noqa: N818
    """A forward function failed, before any law was checked; its cause is the user's own error."""


def inspect_model(
    tower: Tower,
    runs: Sequence[Callable[[], Tensor]],
    names: Collection[str],
    *,
    exact: bool = True,
    images: Sequence[Tensor | None] = (),
) -> None:
    """Run a forward function of a tower once, and raise where it breaks a law.

    Args:
        tower: the tower.
        runs: each runs the forward on some images and gives scores (B, K). A further one is tried
            where the one before fails, as with a function that takes its own number of images.
        names: of laws that only some methods need (`laws.LAWS`). With "blocks" tokens must stay at
            their positions in all blocks, and not only from pixels to patches. With "merge" each
            token's heads pass the output map alone. With "embedding" scores read nothing but what
            the last layer returns.
        exact: whether a forward computes the same each time, which with dropout it does not.
        images: what each of the runs takes, as a leaf, where its own code may move pixels; empty
            where there is no such code.

    Raises:
        UnsupportedModelError: something merges, drops, adds, mixes or permutes tokens.
        CaptureError: a score depends on other images, or not on what the tower returns.
    """
    failure: BaseException | None = None
    for run, leaf in zip(runs, images or [None] * len(runs), strict=True):
        try:
            return _inspect_once(tower, run, names, exact, leaf)
        except _ForwardFailed as error:
            failure = error.__cause__
    assert failure is not None
    raise failure


def _inspect_once(
    tower: Tower,
    run: Callable[[], Tensor],
    names: Collection[str],
    exact: bool,
    images: Tensor | None,
) -> None:
    cuts = Cuts(blocks="blocks" in names, merges="merge" in names, exact=exact, images=images)
    with observe(tower, cuts):
        try:
            scores = run()
        except Exception as error:
            raise _ForwardFailed from error
        # Laws are checked while hooks are set, since a checkpointed block runs again in the
        # backward, and is cut again.
        if cuts.close(scores):
            uphold_in(cuts, names)
