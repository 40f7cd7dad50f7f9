"""Whether the methods hold on a model: their laws, their equations by autograd, and their price."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
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
"""The columns of the table, which :class:`ModelCheck` explains."""
_WITHOUT_KERNEL: Final = (
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_unsafe_view",
)
"""Operators whose result is a new tensor, of which they compute nothing."""


class Price(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the cost of what runs inside.

    Attributes:
        kernels: operators that launch a kernel.
        operations: of products and convolutions.
        peak: the most bytes of new tensors that were alive together.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels = 0
        self.operations = 0
        self.peak = 0
        # Keys are weak, so the dictionary forgets a storage when its last tensor is gone.
        self._bytes_by_storage: Any = WeakIdKeyDictionary()

    @staticmethod
    def launches(func: Any) -> bool:
        """Whether an operator returns new values, or writes into a tensor."""
        for returned in func._schema.returns:
            alias = returned.alias_info
            if alias is not None and not alias.is_write:
                return False  # a view
        return func.overloadpacket.__name__ not in _WITHOUT_KERNEL

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        out = func(*args, **options)
        if self.launches(func):
            self.kernels += 1
        count_operations = flop_registry.get(func.overloadpacket)
        if count_operations:
            self.operations += count_operations(*args, **options, out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._bytes_by_storage[storage] = storage.nbytes()
        self.peak = max(self.peak, sum(self._bytes_by_storage.values()))
        return out


@dataclass(frozen=True)
class ModelCheck:
    """The result of :func:`check`.

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
            cells = [name]
            for column in CHECKED:
                value = row[column]
                if value is None:
                    cells.append("")
                elif isinstance(value, float):
                    cells.append(f"{value:.2g}")
                else:
                    cells.append(str(value))
            table.append(cells)
        return table

    @property
    def json(self) -> bytes:
        """The whole result, to attach to an issue."""
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
    if image is None and clip.processor:
        image = draw_scene(0, objects=["horse", "dog"]).image
    elif image is None:
        image = fixed_images(clip.tower.native)[0]
    pixels = clip.preprocess(image)
    expect(len(pixels) == 1, "one image", image)
    # Whether a method mixes up the images of a batch shows only with a second one.
    pixels = torch.cat([pixels, pixels.flip(-1)])
    target, texts = _reference_target(clip)
    forward = ClipSimilarity(clip, target)
    with torch.no_grad():
        scores = forward(pixels)
    expected_maps = autograd_maps(forward, pixels, scores)
    forward_of_one = ClipSimilarity(clip, target[:1])
    with torch.no_grad():
        forward_price = _price(lambda: forward_of_one(pixels[:1]))
    methods = {}
    for name, method in registered().items():
        if clip.kind in method.towers and not _is_reference(method):
            expected = expected_maps.get(name)
            methods[name] = _check_row(method, forward, pixels, expected, forward_price)
    # Without a tokenizer there are no texts, so the scores of the random target are left out.
    cosines = dict(zip(texts, scores[0].tolist(), strict=False))
    return ModelCheck(_about(clip, pixels), cosines, methods)


def _reference_target(clip: ClipAdapter) -> tuple[targets.Target, list[str]]:
    """The reference texts with their target, or no texts and one of random numbers."""
    try:
        return targets.text(clip, REFERENCE_TEXTS), list(REFERENCE_TEXTS)
    except InputError:  # The model has no tokenizer.
        width = clip.embedding_dim or clip.measured_dim()
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(len(REFERENCE_TEXTS), width, generator=generator)
        return targets.embedding(rows.to(clip.device)), []


def _about(clip: ClipAdapter, pixels: Tensor) -> dict[str, Any]:
    """The facts about a model and the machine, without the user's paths."""
    names = []
    for part in clip.name.split(":"):
        name = os.path.expanduser(part)
        names.append(Path(name).name if os.path.exists(name) else name)
    device = clip.device.type
    if device == "cuda":
        device = torch.cuda.get_device_name()
    return {
        "model": ":".join(names),
        "class": f"{type(clip.model).__module__}.{type(clip.model).__qualname__}",
        "tower": f"{type(clip.vision).__qualname__}, {clip.tower.pooling} pooling",
        "weights": weights_digest(clip.model.state_dict().values()),
        "parameters": sum(parameter.numel() for parameter in clip.model.parameters()),
        "image": list(pixels.shape[-2:]),
        "dtype": str(clip.dtype).removeprefix("torch."),
        "device": device,
        "versions": environment(),
    }


def _is_reference(method: type[Any]) -> bool:
    """Whether a method is only a reference to compare with.

    Importing an evaluation registers such methods, and a check does not depend on what was imported
    before. All methods of this package that are not references are in `attr`; a user's method is
    outside of the package.
    """
    package, _, folder = method.__module__.partition(".")
    return package == "captum_clip" and not folder.startswith("attr.")


def _check_row(
    method: Any,
    forward: ClipSimilarity,
    pixels: Tensor,
    expected: Tensor | None,
    forward_price: Price,
) -> dict[str, Any]:
    """Check one method, with the price of its map for one image and one text."""
    row: dict[str, Any] = dict.fromkeys(CHECKED)
    try:
        laws = check_method(method, forward, pixels, wanted=expected)
        explainer = method(ClipSimilarity(forward.clip, forward.target[:1]))
        price = _price(lambda: explainer.attribute_targets(pixels[:1]))
    except CaptureError as error:
        return row | {"result": "broken", "why": str(error)}
    except (CaptumClipError, ImportError) as error:
        return row | {"result": "refused", "why": str(error)}
    row["result"] = "explained"
    row["adds up"] = laws.get("adds up")
    row["oracle"] = laws.get("oracle")
    row["forwards"] = round(price.operations / max(1, forward_price.operations), 2)
    row["kernels"] = price.kernels
    row["MiB"] = round(price.peak / 2**20, 1)
    return row


def _price(run: Callable[[], object]) -> Price:
    """The price of a second call, since the first one also inspects the model."""
    run()
    price = Price()
    with without_fast_path(), price:
        run()
    return price


def without_fast_path() -> AbstractContextManager[object]:
    """Keep torch from fused layers, which hide attention and the products of a pass."""
    return patch.object(torch.backends.mha, "get_fastpath_enabled", lambda: False)


@contextmanager
def explicit_attention(batch: int) -> Iterator[list[Tensor]]:
    """Compute each attention of a forward by softmax and product, and collect its weights.

    The list has a tensor (B, H, rows, s) for each attention, in the order of the forward.
    """
    attentions: list[Tensor] = []
    softmax = F.softmax

    def collecting_softmax(logits: Tensor, dim: int | None = None, **options: Any) -> Tensor:
        weights = softmax(logits, dim, **options)
        attention = weights
        if weights.ndim != 4:
            # torch.nn.MultiheadAttention puts images and heads on one axis.
            attention = torch.unflatten(weights, 0, (batch, -1))
        attentions.append(attention)
        # The forward goes on with the collected tensor, so that it has a gradient.
        return attention.reshape(weights.shape)

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **options: Any) -> Tensor:
        # A mask among the arguments is ignored, since a vision tower has none.
        scale = options.get("scale") or query.shape[-1] ** -0.5
        return collecting_softmax(query @ key.mT * scale, -1) @ value

    explicit = patch.multiple(F, softmax=collecting_softmax, scaled_dot_product_attention=attend)
    with without_fast_path(), explicit:
        yield attentions


def autograd_maps(forward: ClipSimilarity, images: Tensor, scores: Tensor) -> dict[str, Tensor]:
    """Compute maps (B, K, h, w) by the methods' equations and autograd alone.

    There are none where attention cannot be written out, as where the scores with an attention that
    is written out differ from `scores`.
    """
    tower = forward.clip.tower
    if isinstance(tower, ResNetTower):
        captum = LayerGradCam(forward, tower.stage)
        columns = range(len(forward.target))
        maps = [captum.attribute(images, target=column).detach() for column in columns]
        return {"grad-cam": torch.cat(maps, 1)}
    assert isinstance(tower, TransformerTower)
    recomputed = torch.full_like(scores, torch.nan)
    # An attention of another form may not unflatten into heads, and the scores then stay NaN.
    with explicit_attention(len(images)) as attentions, suppress(RuntimeError):
        recomputed = forward(images.detach().requires_grad_())
    if not recomputed.requires_grad or not torch.allclose(recomputed, scores, atol=1e-2):
        return {}
    height, width = tower.grid(*images.shape[-2:])
    tokens = tower.prefix + height * width
    # The equations are those of attentions with the tower's heads, over all of its tokens.
    expected_shapes = [(attention.heads, tokens) for attention in tower.attentions]
    if [(weights.shape[1], weights.shape[-1]) for weights in attentions] != expected_shapes:
        return {}
    rows_by_score = [_equations(attentions, score, tower) for score in recomputed.T]
    maps_by_method = {}
    for name in rows_by_score[0]:
        by_score = [rows[name][:, tower.prefix :] for rows in rows_by_score]
        cells = torch.stack(by_score, 1)  # (B, K, h w)
        maps_by_method[name] = torch.unflatten(cells, -1, (height, width))
    return maps_by_method


def _equations(
    attentions: list[Tensor], score: Tensor, tower: TransformerTower
) -> dict[str, Tensor]:
    """Compute the rows (B, s) of methods that multiply attention matrices, for scores (B,)."""
    gradients = torch.autograd.grad(
        score.sum(), attentions, retain_graph=True, materialize_grads=True
    )
    layers = len(tower.layers)
    has_pooling_head = tower.pooling == "attention"
    identity = torch.eye(attentions[0].shape[-1], dtype=score.dtype, device=score.device)
    # The weights (1, s) of the tokens in the embedding, where no pooling head computes them.
    if tower.pooling == "cls":
        readout = identity[:1]
    else:
        readout = identity[tower.prefix :].mean(0, keepdim=True)

    def product(gradient: Tensor, attention: Tensor) -> Tensor:
        # (B, H, rows, s) -> (B, rows, s), the mean of the heads
        return (gradient * attention).to(identity).clamp(min=0).mean(1)

    def chain(steps: list[Tensor], top: Tensor, *, rollout: bool = False) -> Tensor:
        relevance = identity
        for step in steps[:layers]:
            step = step + identity
            if rollout:
                step = step / step.sum(-1, keepdim=True)
            relevance = step @ relevance
        if has_pooling_head:
            # No residual connection runs around a pooling head.
            return top[:, :1] @ relevance  # (B, 1, s)
        if rollout:
            return readout @ relevance
        # The identity is what a token has without any attention, so it is no relevance.
        return readout @ (relevance - identity)

    products = [product(*pair) for pair in zip(gradients, attentions, strict=True)]
    last_gradient = gradients[layers - 1]
    last_products = [product(last_gradient, attention) for attention in attentions[:layers]]
    means = [attention.to(identity).mean(1) for attention in attentions]
    top = products[-1]
    rows = {
        "attention-grad-cam": top[:, :1] if has_pooling_head else readout @ top,
        "all-grad": chain(products, top),
        "last-grad": chain(last_products, top),
        "rollout": chain(means, means[-1], rollout=True),
    }
    return {name: row[:, 0].detach() for name, row in rows.items()}
