"""Whether the methods hold on a model: their laws, their equations by autograd, and their price."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import torch
from captum.attr import LayerGradCam
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from .. import targets
from .._version import environment
from ..attr import check_method
from ..attr.registry import registered
from ..checks import expect
from ..demo.scenes import draw_scene
from ..errors import CaptumClipError, CaptureError, InputError, public
from ..models import ClipAdapter, load_clip
from ..models.identity import fixed_images, weights_digest
from ..models.towers import ResNetTower, TransformerTower
from ..targets.similarity import ClipSimilarity

REFERENCE_TEXTS: Final = ("a horse", "a dog", "a red heart", "a blue circle")
"""Their scores on the drawn scene, which has a horse and a dog, tell weights apart."""
CHECKED: Final = ("result", "adds up", "oracle", "forwards", "kernels", "MiB")
_WITHOUT_KERNEL: Final = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view")
}


class Price(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What runs inside costs.

    Attributes:
        kernels: operators that launch one.
        operations: of products and convolutions.
        peak: the most bytes of new tensors that were alive together.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels = self.operations = self.peak = 0
        self._alive: Any = WeakIdKeyDictionary()  # bytes of each storage

    @staticmethod
    def launches(func: Any) -> bool:
        """Whether an operator returns new values, or writes into a tensor."""
        name, returned = func.overloadpacket.__name__, [r.alias_info for r in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returned)
        return not is_view and name not in _WITHOUT_KERNEL

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, options = func(*args, **(kwargs or {})), kwargs or {}
        self.kernels += self.launches(func)
        if count := flop_registry.get(func.overloadpacket):
            self.operations += count(*args, **options, out_val=out)
        storages = (t.untyped_storage() for t in tree_leaves(out) if isinstance(t, Tensor))
        self._alive.update((storage, storage.nbytes()) for storage in storages)
        self.peak = max(self.peak, sum(self._alive.values()))
        return out


@dataclass(frozen=True)
class ModelCheck:
    """What :func:`check` found.

    Attributes:
        about: the model and where it ran: name, classes, tower, digest of the weights, type,
            device, versions. No path is among them.
        scores: cosines of the image with `REFERENCE_TEXTS`; empty without a tokenizer.
        methods: a row of `CHECKED` for each method, and "why" where it is refused or broken.
            "adds up" and "oracle" are errors, None where they do not apply; "forwards" counts a
            map's operations in those of a forward; "MiB" is the peak of its tensors.
    """

    about: dict[str, Any]
    scores: dict[str, float]
    methods: dict[str, dict[str, Any]]

    @property
    def rows(self) -> list[list[str]]:
        """The table of the methods, its header first."""
        table = [["method", *CHECKED]]
        for name, row in self.methods.items():
            cells = ("" if row[column] is None else row[column] for column in CHECKED)
            table.append([name, *(f"{c:.2g}" if isinstance(c, float) else f"{c}" for c in cells)])
        return table

    @property
    def json(self) -> bytes:
        """All of it, to attach to an issue."""
        content = {"format": "captum_clip check 1", **asdict(self)}
        return f"{json.dumps(content, indent=1)}\n".encode()


@public("check")
def check(model: Any, image: Any = None) -> ModelCheck:
    """See which methods hold on a model, and what a map costs here.

    Each method runs through :func:`captum_clip.attr.check_method` on an image and its mirror image.
    The equations of four methods for transformers are computed anew, on whole matrices of an
    attention that is written out; Grad-CAM is compared with Captum's.

    Args:
        model: a name, a folder, a model or an adapter, as :func:`captum_clip.load_clip` takes it.
        image: an image to use in place of a drawn scene.

    Raises:
        InputError: the model or the image cannot be read.
        UnsupportedModelError: there is no vision tower known in the model.

    Example:
        >>> from captum_clip import check
        >>> found = check("demo/resnet")
        >>> {name: row["result"] for name, row in found.methods.items()}["grad-cam"]
        'explained'
    """
    clip = model if isinstance(model, ClipAdapter) else load_clip(model)
    if image is None:
        drawn = draw_scene(0, objects=["horse", "dog"]).image
        image = drawn if clip.processor else fixed_images(clip.tower.native)[0]
    pixels = clip.preprocess(image)
    expect(len(pixels) == 1, "one image", image)
    pixels = torch.cat([pixels, pixels.flip(-1)])
    try:
        target, texts = targets.text(clip, REFERENCE_TEXTS), [*REFERENCE_TEXTS]
    except InputError:  # no tokenizer
        width = clip.embedding_dim or clip.measured_dim()
        rows = torch.randn(len(REFERENCE_TEXTS), width, generator=torch.Generator().manual_seed(0))
        target, texts = targets.embedding(rows.to(clip.device)), []
    forward = ClipSimilarity(clip, target)
    with torch.no_grad():
        scores = forward(pixels)
    wanted = autograd_maps(forward, pixels, scores)
    plain = _price(torch.no_grad()(lambda: ClipSimilarity(clip, target[:1])(pixels[:1])))
    methods = {
        name: _row(method, forward, pixels, wanted.get(name), plain)
        for name, method in registered().items()
        if clip.kind in method.towers and not _is_reference(method)
    }
    names = (os.path.expanduser(name) for name in clip.name.split(":"))
    about = {
        "model": ":".join(Path(name).name if os.path.exists(name) else name for name in names),
        "class": f"{type(clip.model).__module__}.{type(clip.model).__qualname__}",
        "tower": f"{type(clip.vision).__qualname__}, {clip.tower.pooling} pooling",
        "weights": weights_digest(clip.model.state_dict().values()),
        "parameters": sum(parameter.numel() for parameter in clip.model.parameters()),
        "image": [*pixels.shape[-2:]],
        "dtype": str(clip.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if clip.device.type == "cuda" else clip.device.type,
        "versions": environment(),
    }
    return ModelCheck(about, dict(zip(texts, scores[0].tolist(), strict=False)), methods)


def _is_reference(method: type[Any]) -> bool:
    """Whether a method is only a reference to compare with.

    Importing an evaluation registers such methods, and a check does not depend on what was imported
    before. All methods of this package that are not references are in `attr`; a user's method is
    outside of the package.
    """
    package, _, folder = method.__module__.partition(".")
    return package == "captum_clip" and not folder.startswith("attr.")


def _row(
    method: Any, forward: ClipSimilarity, pixels: Tensor, wanted: Tensor | None, plain: Price
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(CHECKED)
    try:
        laws = check_method(method, forward, pixels, wanted=wanted)
        explainer = method(ClipSimilarity(forward.clip, forward.target[:1]))
        price = _price(lambda: explainer.attribute_targets(pixels[:1]))
    except (CaptumClipError, ImportError) as error:
        result = "broken" if isinstance(error, CaptureError) else "refused"
        return row | {"result": result, "why": str(error)}
    share, memory = price.operations / max(1, plain.operations), price.peak / 2**20
    row |= {"result": "explained", "adds up": laws.get("adds up"), "oracle": laws.get("oracle")}
    return row | {"forwards": round(share, 2), "kernels": price.kernels, "MiB": round(memory, 1)}


def _price(run: Callable[[], object]) -> Price:
    """That of a second call, since the first looks at the model."""
    run()
    price = Price()
    with without_fast_path(), price:
        run()
    return price


without_fast_path: Final = partial(
    patch.object, torch.backends.mha, "get_fastpath_enabled", lambda: False
)
"""Keeps torch from fused layers, which hide attention and the products of a pass."""


@contextmanager
def explicit_attention(batch: int) -> Iterator[list[Tensor]]:
    """Write the attentions of a forward out, and collect them in their order, (B, H, rows, s)."""
    seen, softmax = list[Tensor](), F.softmax

    def weigh(logits: Tensor, dim: int | None = None, **options: Any) -> Tensor:
        weights = softmax(logits, dim, **options)
        # torch.nn.MultiheadAttention puts images and heads on one axis
        seen.append(weights if weights.ndim == 4 else torch.unflatten(weights, 0, (batch, -1)))
        return seen[-1].reshape(weights.shape)

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **options: Any) -> Tensor:
        scale = options.get("scale") or query.shape[-1] ** -0.5  # a tower has no mask
        return weigh(query @ key.mT * scale, -1) @ value

    with without_fast_path(), patch.multiple(F, softmax=weigh, scaled_dot_product_attention=attend):
        yield seen


def autograd_maps(forward: ClipSimilarity, images: Tensor, scores: Tensor) -> dict[str, Tensor]:
    """Maps (B, K, h, w) by the equations alone; none where attention cannot be written out.

    That is where the scores with it are not `scores`.
    """
    tower, columns = forward.clip.tower, range(len(forward.target))
    if isinstance(tower, ResNetTower):
        captums = LayerGradCam(forward, tower.stage)
        maps = [captums.attribute(images, target=column).detach() for column in columns]
        return {"grad-cam": torch.cat(maps, 1)}
    assert isinstance(tower, TransformerTower)
    again = torch.full_like(scores, torch.nan)
    with explicit_attention(len(images)) as seen, suppress(RuntimeError):
        again = forward(images.detach().requires_grad_())
    grid, start = tower.grid(*images.shape[-2:]), tower.prefix
    heads = [(attention.heads, start + grid[0] * grid[1]) for attention in tower.attentions]
    same = again.requires_grad and torch.allclose(again, scores, atol=1e-2)
    if not same or [(each.shape[1], each.shape[-1]) for each in seen] != heads:
        return {}
    rows = [_equations(seen, score, tower) for score in again.T]
    named = {name: torch.stack([row[name] for row in rows], 1) for name in rows[0]}
    return {name: torch.unflatten(maps[..., start:], -1, grid) for name, maps in named.items()}


def _equations(seen: list[Tensor], score: Tensor, tower: TransformerTower) -> dict[str, Tensor]:
    """The rows (B, s) of what chains whole matrices of attention, for scores (B,)."""
    grads = torch.autograd.grad(score.sum(), seen, retain_graph=True, materialize_grads=True)
    layers, is_pool = len(tower.layers), tower.pooling == "attention"
    unit = torch.eye(seen[0].shape[-1], dtype=score.dtype, device=score.device)
    first = unit[:1] if tower.pooling == "cls" else unit[tower.prefix :].mean(0, keepdim=True)

    def product(gradient: Tensor, attention: Tensor) -> Tensor:
        return (gradient * attention).to(unit).clamp(min=0).mean(1)

    def chain(steps: list[Tensor], top: Tensor, *, rollout: bool = False) -> Tensor:
        whole = unit
        for step in steps[:layers]:
            step = step + unit
            whole = (step / step.sum(-1, keepdim=True) if rollout else step) @ whole
        # no residual runs around a pool
        return top[:, :1] @ whole if is_pool else first @ (whole if rollout else whole - unit)

    own = [product(*pair) for pair in zip(grads, seen, strict=True)]
    mean = [attention.to(unit).mean(1) for attention in seen]
    rows = {
        "attention-grad-cam": own[-1][:, :1] if is_pool else first @ own[-1],
        "all-grad": chain(own, own[-1]),
        "last-grad": chain([product(grads[layers - 1], a) for a in seen[:layers]], own[-1]),
        "rollout": chain(mean, mean[-1], rollout=True),
    }
    return {name: row[:, 0].detach() for name, row in rows.items()}
