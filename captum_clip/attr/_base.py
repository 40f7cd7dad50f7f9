"""The base of all methods: Captum's contract, and `attribute` and `attribute_targets`."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial, wraps
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from captum.attr import LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn

from ..checks import check_choice, check_flag, check_integer, expect, torch_failures
from ..errors import CaptureError, InputError, UnsupportedModelError, naming, public, warn
from ..maps import is_vmapped
from ..models import tower_of
from ..models.library import nondeterminism, refuse_meta, refuse_not_finite
from ..models.towers import Kind, ResNetTower, Tower, TransformerTower
from ..recording.graph import detached, kept_graph, with_whole_graph
from ..recording.hooks import is_compiled, modules_are_tracked, uncompiled
from ..recording.inspection import inspect_model, kind_of
from ..recording.laws import ChangedInPlaceError, verify
from ..recording.records import Recording
from ..targets.similarity import Similarity, TextSimilarity
from ._call import (
    Call,
    Columns,
    Computed,
    Constants,
    Indices,
    detach_inference,
    differentiate,
    further_arguments,
    many_columns,
    one_column,
    refuse_checkpointing,
)

TensorOrTuple = TypeVar("TensorOrTuple", Tensor, tuple[Tensor, ...])
KINDS: Final = {"vit": "vision transformer", "resnet": "convolutional tower", "text": "text tower"}
"""Kinds of towers in messages."""
_NOT_TAKEN: Final = {
    "create_graph": "its maps have no gradient; those of direct, among others, have one",
    "attribute_to_layer_input": "a map is one of positions, on neither side of a layer",
    "grad_kwargs": "the method itself chooses where gradients are taken",
}
"""Arguments of some methods or of Captum's layer methods, and why another takes none."""


class ClipAttribution(LayerAttribution, ABC):  # type: ignore[misc]
    """Base of the methods: a final class adds its formula, `_compute`, and its properties.

    The keyword-only arguments of `_compute` are the method's options, which `attribute` and
    `attribute_targets` take. A map lies on the tower's grid of tokens or features, whichever module
    is the `layer`, while Captum's layer methods give the shape of the layer's output.

    Attributes:
        name: on the command line.
        towers: kinds of towers that it explains.
        signed: evidence against the target is negative in its maps. Where it is False, the map of
            ``-target`` is the negative map.
        needs_target: its maps depend on the target.
        reads_projection: its maps depend on what a model has after its vision tower.
        additive: its maps and a rest add up to the score, and both methods take ``return_rest``
            (:class:`captum_clip.attr.extend.AdditiveAttribution`).
        differentiable: its maps can lie in the model's graph, and both methods take
            ``create_graph``.
        costly: it takes many forward passes per map, so an evaluation gives it fewer images.
        paper_options: options of the map that its paper draws, where Captum's default is another.
        listed: whether lists of methods offer it, or it is only taken where it is named.
    """

    name: ClassVar[str]
    towers: ClassVar[tuple[Kind, ...]]
    signed: ClassVar[bool] = False
    needs_target: ClassVar[bool] = True
    reads_projection: ClassVar[bool] = False
    costly: ClassVar[bool] = False
    additive: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False
    listed: ClassVar[bool] = True
    paper_options: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    _tower: Tower  # with the parts that the model had in the last call
    _model: nn.Module | None  # of a forward function of the user's
    _inspected: set[Any]  # kinds of models and inputs
    _constants: dict[int, Constants]  # of the forward function's scores, by their number
    _copies: bool = False  # whether the model works in place on tokens that are read later
    # Whether its graph must not begin with the forward, since below its layers all is constant.
    _cuts_graph: ClassVar[bool] = False
    _laws: ClassVar[tuple[str, ...]] = ("blocks",)  # laws beside those of all methods, by name
    _choices: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType({})
    _instead: ClassVar[str] = "direct (DirectContribution)"  # a method for other kinds of towers

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_compute" in vars(cls):
            hints: dict[str, Any] = {}
            # A module may import a type for type checkers only, which is then no name.
            with suppress(NameError):
                hints = get_type_hints(cls._compute)
            literals = {name: hint for name, hint in hints.items() if get_origin(hint) is Literal}
            cls._choices = {name: get_args(hint) for name, hint in literals.items()}
            for name in ("attribute", "attribute_targets"):
                setattr(cls, name, _with_options(cls, name))

    def __init__(self, forward_func: Callable[..., Tensor], layer: nn.Module | None = None) -> None:
        """Explain the scores of a forward function.

        Args:
            forward_func: a :class:`captum_clip.ClipSimilarity`, a
                :class:`captum_clip.TextSimilarity`, whose maps are (B, K, T), or a callable
                images -> (B,) or (B, K) that runs the tower exactly once. Its images must not mix,
                since a map is made of the gradient of the sum of all images' scores.
            layer: with a callable of your own, the model; its tower alone may give another map.
        """
        name = type(self).__name__
        with naming(name):
            advice = "pass a ClipSimilarity, or a callable images -> (B, K) with layer=model"
            expect(callable(forward_func), "a forward function", forward_func, advice)
            if layer is None and not isinstance(forward_func, Similarity):
                raise InputError(
                    "with a forward function of your own, pass the model as `layer`, so that it is "
                    "known where to look."
                )
            tower = _tower_in(forward_func, layer)
            if layer is not None and tower.module is not tower_of(layer).module:
                other = type(forward_func).__name__
                raise InputError(f"`layer` is not the tower of the {other}; leave it out.")
        if tower.kind not in self.towers:
            needed = " or a ".join(KINDS[kind] for kind in self.towers)
            raise UnsupportedModelError(
                f"{name} needs a {needed}, and this is a {KINDS[tower.kind]}; take a method that "
                f"fits it, such as {self._instead}."
            )
        if self.reads_projection and tower.unknown_projection:
            warn(f"{name}: {tower.unknown_projection}")
        # Captum's hooks and its users expect a module as the layer.
        module = tower.stage if isinstance(tower, ResNetTower) else tower.module
        super().__init__(forward_func, module)
        self._tower = tower
        self._model = layer
        self._inspected = set[Any]()
        self._constants = {}

    def __repr__(self) -> str:
        forward = self.forward_func
        if not isinstance(forward, Similarity):
            forward = getattr(forward, "__qualname__", type(forward).__name__)
        return f"{type(self).__name__}({forward})"

    @abstractmethod
    def _compute(self, call: Call) -> Computed:
        """The formula."""

    def _on_grid(self, record: Recording, values: Tensor) -> Tensor:
        """Maps (B, K', ..., h, w), of texts (B, K', ..., T), from tokens' (K', B, ..., s)."""
        count = record.count
        expected = f"values (K', B, {count}) for all tokens from {type(self).__name__}._compute"
        advice = "give tokens without a position, such as [CLS], a zero"
        # If the tower itself ran on too few tokens, it says so below.
        is_short = values.shape[-1] < record.span.stop <= count
        expect(not is_short, expected, values, advice)
        return record.on_grid(values.transpose(0, 1))

    @classmethod
    def properties(cls, **options: Any) -> dict[str, bool]:
        """`signed`, `needs_target` and `costly` where these options change them."""
        return {}

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise InputError for options that are wrong whatever the tower, before any work.

        Those of a `Literal` type are checked here, from the signature of `_compute`.
        """
        for name, choices in cls._choices.items():
            value = options.get(name, choices[0])
            if value is None and None in choices:
                continue
            named = [choice for choice in choices if choice is not None]
            check_choice(value, named, name=f"`{name}`")

    def _check_similarity(self) -> None:
        """Refuse vectors of a forward function whose embedding is not known."""
        is_similarity = isinstance(self.forward_func, Similarity)
        advice = "it is not known which embedding a forward function of your own scores"
        expect(is_similarity, "a ClipSimilarity or a TextSimilarity", self.forward_func, advice)

    def _layers(self, start_layer: int) -> range:
        """Layers from `start_layer` (0-based, inclusive) to the last, then a pooling head."""
        assert isinstance(self._tower, TransformerTower)
        count = len(self._tower.attentions)
        check_integer("start_layer", start_layer, least=0, most=count - 1)
        return range(start_layer, count)

    # NoiseTunnel calls the `__wrapped__` that `log_usage` leaves.
    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    @public("attribute")
    def attribute(
        self,
        inputs: TensorOrTuple,
        target: Indices = None,
        additional_forward_args: Any = None,
        **options: Any,
    ) -> Any:
        """Maps (B, 1, h, w) of one target per image, raw, on the tower's grid.

        With ``create_graph`` of a differentiable method, all that is returned lies in the graph of
        the model's parameters and of images that require a gradient, as a loss on maps needs
        (:func:`captum_clip.maps.outside_share`). Values are the same. The first call for each kind
        of input differentiates them once to see that torch can, so make the method once. Training
        mode with dropout or BatchNorm is a warning, and nothing is compared with what ran: what
        dropout takes away inside a fused attention counts in the rest.

        Args:
            inputs: preprocessed images (B, 3, H, W), or what the forward function takes first.
            target: index of a score, or one index per image; None where there is only one score.
            additional_forward_args: further arguments of the forward function.
            **options: see the class.

        Raises:
            TargetError: the target is missing, out of range, or not one per image.
            InputError: invalid images, or an invalid option.
            CaptureError: the forward function does not run the tower exactly once.
        """
        return_rest = options.pop("return_rest", False)
        return_delta = options.pop("return_convergence_delta", False)
        check_flag("return_rest", return_rest)
        check_flag("return_convergence_delta", return_delta)
        needs_target = self.properties(**options).get("needs_target", self.needs_target)
        if target is None and not needs_target:
            target = 0
        result = self._run(inputs, additional_forward_args, partial(one_column, target), options)
        # A tuple comes out for a tuple: sensitivity_max passes one first, and a tensor afterwards.
        maps = (result.values,) if isinstance(inputs, tuple) else result.values
        returned: list[Any] = [maps]
        if return_rest:
            returned.append(result.rest)
        if return_delta:
            arguments = inputs, target, additional_forward_args
            returned.append(self.compute_convergence_delta(maps, result.rest, *arguments))
        return tuple(returned) if len(returned) > 1 else maps

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    @public("attribute_targets")
    def attribute_targets(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        targets: Columns = None,
        additional_forward_args: Any = None,
        *,
        return_scores: bool = False,
        **options: Any,
    ) -> Any:
        """Maps (B, K, h, w) of all or the listed targets from one forward pass.

        With `return_scores` (maps, scores (B, K)).

        Args:
            inputs: as in `attribute`.
            targets: indices of scores; None for all.
            additional_forward_args: further arguments of the forward function.
            return_scores: return the cosines (B, K) of the same pass as well.
            **options: see the class.

        Raises:
            TargetError: no target, or one out of range; else as `attribute`.
        """
        return_rest = options.pop("return_rest", False)
        check_flag("return_scores", return_scores)
        check_flag("return_rest", return_rest)
        result = self._run(inputs, additional_forward_args, partial(many_columns, targets), options)
        returned: list[Any] = [result.values]
        if return_scores:
            returned.append(result.scores)
        if return_rest:
            returned.append(result.rest)
        return tuple(returned) if len(returned) > 1 else result.values

    def _run(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        extra: Any,
        select: Callable[..., Tensor],
        options: dict[str, Any],
        compute: Callable[..., Computed] | None = None,
        on_grid: bool = True,
    ) -> Computed:
        """Run `_compute` or another formula; its values become maps (B, K', h, w).

        Gradients are possible in whatever mode the caller is. Without ``create_graph`` among the
        options no gradient reaches the caller's tensors.

        Args:
            inputs: as in `attribute`.
            extra: further arguments of the forward function.
            select: from the shape (B, K) of the scores to the columns (K', B) to explain.
            options: of the formula, and ``create_graph``.
            compute: a formula in place of `_compute`.
            on_grid: whether its values are maps; others are returned as they are.
        """
        forward = self.forward_func
        create_graph = options.pop("create_graph", False)
        check_flag("create_graph", create_graph)
        if create_graph and not self.differentiable:
            # The signature refuses it, unless a method takes options of any name.
            reason = _NOT_TAKEN["create_graph"]
            raise TypeError(f"{type(self).__name__} takes no create_graph ({reason}).")
        exact = self._check_tower(random=create_graph)
        self.check_options(**options)
        tensors = self._checked_inputs(inputs)
        extra = further_arguments(extra)
        if isinstance(forward, Similarity):
            # A target that cannot be selected is refused before any work.
            select = partial(select, names=forward.target.names)
            select(len(tensors[0]), len(forward.embeddings))
        formula = partial(compute or self._compute, **options)
        # Captum's NoiseTunnel and metrics call under no_grad. Under inference_mode `enable_grad`
        # alone has no effect.
        with torch.inference_mode(False), torch.enable_grad():
            leaves = self._leaves(tensors) if create_graph else []
            graph = kept_graph(exact=exact) if create_graph else nullcontext()
            images, extra = detach_inference(tensors), detach_inference(extra)
            name = type(self).__name__
            constants = self._constants
            call = Call(forward, images, extra, select, self._tower, name, constants=constants)
            with torch_failures():
                is_new = self._inspect(call, options, exact=exact)
                with graph:
                    # Captum's Saliency leaves requires_grad on the caller's tensor, so a detached
                    # view goes in unless a graph is kept.
                    call = replace(call, images=tuple(map(detached, images)))
                    result = self._computed(formula, call)
                    maps = detached(result.values)
                # Tokens that moved between blocks may be at wrong places. They are not if an
                # inspection has just seen these very images, of which it takes two.
                if result.record.moved and (not is_new or len(images[0]) > 2):
                    self._inspect(call, options, exact=exact, again=True)
            # Torch lacks some second derivatives. The first maps of a kind show that it has theirs.
            kind = "graph", images[0].dtype, images[0].shape[1:]
            if leaves and (is_new or kind not in self._inspected):
                differentiate(maps, leaves)
                self._inspected.add(kind)
            if on_grid:
                maps = self._on_grid(result.record, maps)
            self._check_projection(result.record)
            result.record.let_go()
            # A ClipSimilarity has checked its images. Where large ones overflow, the map shows it.
            if not isinstance(forward, Similarity) and not maps.isfinite().all():
                refuse_not_finite(self._tower.module)
                raise CaptureError(
                    "the forward function or its gradient holds NaN or infinity; look for "
                    "a division by zero or an overflow in it."
                )
            # Captum's metrics call .view on an attribution.
            return result._replace(values=maps.contiguous())

    def _check_projection(self, record: Recording) -> None:
        """Warn where maps depend on a projection of the model that did not run as a module."""
        is_known = self._tower.projection_module is not None
        if self.reads_projection and is_known and record.projected is None:
            warn(
                f"{type(self).__name__}: the {self._tower.projection_path} of the model did not "
                "run as a module, so maps are those before it; if your scores apply it, call it."
            )

    def _checked_inputs(self, inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The tensors that the forward function takes; InputError for anything else."""
        tensors = inputs if isinstance(inputs, tuple) else (inputs,)
        expected, maker = "a tensor of images", "clip.preprocess(images)"
        if isinstance(self.forward_func, TextSimilarity):
            expected, maker = "a tensor of token ids", "ids, mask = clip.text_inputs(texts)"
        for given in tensors or (inputs,):
            is_batch = isinstance(given, Tensor) and given.ndim > 0
            expect(is_batch, expected, given, f"{maker} makes one")
        if any(map(is_vmapped, tensors)):
            raise InputError(
                f"{type(self).__name__} was called inside torch.vmap, which hides the batch; "
                "expected images (B, 3, H, W). Call it on the whole batch, without vmap."
            )
        return tensors

    def _inspect(
        self, call: Call, options: dict[str, Any], *, exact: bool, again: bool = False
    ) -> bool:
        """Check the laws once for each kind of model and inputs; True if they were checked now.

        They are checked on two images, or on all of them with `again`.
        """
        forward = self.forward_func
        images = call.images[0]
        tower = self._tower
        model = self._whole_model
        laws = set(self._laws_of(**options))
        # All methods of an adapter share its inspections.
        inspected = forward.clip.inspected if isinstance(forward, Similarity) else self._inspected
        # In a batch of one image nothing shows whether images and heads are in their places.
        inputs = images.dtype, images.shape[1:], len(images) > 1
        kind = frozenset(laws), inputs, tower.kind, kind_of(tower.module, model)
        if kind in inspected and not again:
            return False
        # A forward function may take its own number of images alone, so all of them come second.
        calls = [call] if again else [call.of_two(), call]
        leaves = list[Tensor]()
        # The user's code before the tower may move pixels, which their gradient shows.
        if not isinstance(forward, Similarity) and images.is_floating_point():
            for index, one_call in enumerate(calls):
                first, *others = one_call.images
                leaf = first.detach().clone().requires_grad_()
                leaves.append(leaf)
                calls[index] = replace(one_call, images=(leaf, *others))
        runs = [one_call.scores for one_call in calls]
        inspect_model(tower, runs, laws, exact=exact, images=leaves)
        if is_compiled(forward, model):
            self._check_compiled(call)
        inspected.add(kind)
        return True

    def _check_compiled(self, call: Call) -> None:
        """Check that compiled code gives the scores that it has as written."""
        check = Recording(self._tower)
        # Code that its compiler cannot compile has no other score.
        with torch.no_grad(), suppress(RuntimeError):
            with uncompiled:
                as_written = call.scores()
            dtype = next(self._tower.module.parameters()).dtype
            compiled = call.scores().to(dtype)
            check.compare("the score of compiled code", as_written, compiled)
        verify(check, call.method)

    @property
    def _whole_model(self) -> Any:
        """The model of which the tower is a part."""
        forward = self.forward_func
        return forward.clip.model if isinstance(forward, Similarity) else self._model

    def _laws_of(self, **options: Any) -> tuple[str, ...]:
        """The `_laws` where these options change them."""
        return self._laws

    def _computed(self, compute: Callable[[Call], Computed], call: Call) -> Computed:
        """Run the formula; again with a graph from the beginning if the forward needs one."""
        # A view that was made without a graph has no place in one, for which a tracker asks.
        is_whole = modules_are_tracked() and not self._cuts_graph
        with with_whole_graph() if is_whole else nullcontext():
            try:
                return self._verified(compute, call)
            except RuntimeError as error:
                # Subclasses have their own meaning, as ours and an exhausted memory have.
                if type(error) is not RuntimeError:
                    raise
                # An inspection ran this forward in a graph, so that may be what it lacks. A fork
                # may keep the gradient of its attention by a hook on the tensor, which without a
                # graph is an error.
                with suppress(Exception), with_whole_graph():
                    return self._verified(compute, call)
                raise

    def _verified(self, compute: Callable[[Call], Computed], call: Call) -> Computed:
        """Run the formula and see to the laws; with copies if the model changes tokens in place."""
        if not self._copies:
            try:
                return self._verified_once(compute, call)
            except ChangedInPlaceError:
                self._copies = True
        return self._verified_once(compute, replace(call, copies=True))

    def _verified_once(self, compute: Callable[[Call], Computed], call: Call) -> Computed:
        result = compute(call)
        advice = "end it with `return run.computed(maps)`"
        expected = f"{type(self).__name__}._compute to return a Computed"
        expect(isinstance(result, Computed), expected, result, advice)
        verify(result.record, call.method)
        return result

    def _check_tower(self, *, random: bool = False) -> bool:
        """Find the tower's parts as they are now; True if they answer the same each time.

        If they do not, that is an InputError, or only a warning where maps may be `random`.
        """
        self._tower = tower = _tower_in(self.forward_func, self._model)
        refuse_meta(tower.module)
        reason = nondeterminism(tower.module)
        if reason is None:
            return True
        mode = f"{type(self).__name__}: the {tower.noun} is in training mode with {reason}"
        if not random:
            raise InputError(f"{mode}; call model.eval().")
        warn(f"{mode}: each call returns different maps, and none is checked.")
        return False

    def _leaves(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        """The parameters and inputs that require a gradient, to which a graph of maps leads."""
        refuse_checkpointing(self._tower)
        leaves = [t for t in (*self._whole_model.parameters(), *inputs) if t.requires_grad]
        if isinstance(self.forward_func, Similarity) and not leaves:
            raise InputError("create_graph: no parameter and no image requires a gradient.")
        return leaves


def _with_options(method: type[ClipAttribution], name: str) -> Any:
    """`attribute` or `attribute_targets` with the options of a method's `_compute`.

    So help, completion and Captum see them. Any other argument is a TypeError at the call, whose
    message lists those that there are.
    """
    defined = vars(method).get(name)
    function = defined or getattr(super(method, method), name)
    signature = inspect.signature(function)
    if defined is None:
        signature = _signature_with_options(method, name, signature)
    _, *taken = signature.parameters  # without `self`
    names = ", ".join(taken)

    @wraps(function)
    def call(self: ClipAttribution, *args: Any, **kwargs: Any) -> Any:
        try:
            signature.bind(self, *args, **kwargs)
        except TypeError as error:
            problem = f"cannot be called like this ({error})"
            others = [option for option in kwargs if option not in signature.parameters]
            if others:
                reasons = [f" ({_NOT_TAKEN[other]})" for other in others if other in _NOT_TAKEN]
                problem = f"takes no {', '.join(others)}{''.join(reasons)}"
            raise TypeError(f"{method.__name__}.{name} {problem}; it takes {names}.") from None
        return function(self, *args, **kwargs)

    call.__qualname__ = f"{method.__qualname__}.{name}"
    call.__module__ = method.__module__
    call.__signature__ = signature  # type: ignore[attr-defined]
    # NoiseTunnel calls the `__wrapped__` that `log_usage` leaves.
    return log_usage(part_of_slo=True)(call)


def _signature_with_options(
    method: type[ClipAttribution], name: str, signature: inspect.Signature
) -> inspect.Signature:
    """A signature with a method's flags and the options of its `_compute` in place of `options`."""
    kept = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    flags = {
        "return_rest": method.additive,
        "create_graph": method.differentiable,
        "return_convergence_delta": method.additive and name == "attribute",
    }
    for flag, is_taken in flags.items():
        if is_taken:
            keyword_only = inspect.Parameter.KEYWORD_ONLY
            kept.append(inspect.Parameter(flag, keyword_only, default=False, annotation=bool))
    options = inspect.signature(method._compute).parameters.values()
    kept += [p for p in options if p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
    map_type: Any = Tensor if name == "attribute_targets" else TensorOrTuple
    returned = map_type
    if method.additive or name == "attribute_targets":
        returned = map_type | tuple[map_type, ...]
    return signature.replace(parameters=kept, return_annotation=returned)


class ViTAttribution(ClipAttribution):
    """Base of the methods for transformers; `_compute` gives maps on all tokens (K', B, s).

    Raises:
        UnsupportedModelError: the tower is no supported vision transformer.
        InputError: a callable without a layer.
    """

    towers: ClassVar[tuple[Kind, ...]] = ("vit",)
    _tower: TransformerTower


class ResNetAttribution(ClipAttribution):
    """Base of the methods for convolutional towers; `_compute` gives maps (K', B, h, w).

    Raises:
        UnsupportedModelError: the tower is not convolutional.
        InputError: a callable without a layer.
    """

    towers = ("resnet",)
    _tower: ResNetTower

    def _on_grid(self, record: Recording, values: Tensor) -> Tensor:
        return values.transpose(0, 1)


def _tower_in(forward: Any, model: nn.Module | None) -> Tower:
    """The tower of a `Similarity`, or of a model, with the parts that it has now."""
    if isinstance(forward, TextSimilarity):
        return forward.clip.text_tower
    if isinstance(forward, Similarity):
        return tower_of(forward.clip.model)
    assert model is not None
    return tower_of(model)
