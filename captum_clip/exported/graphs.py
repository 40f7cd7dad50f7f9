"""The towers of a model as graphs of ONNX, without a gradient in them."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from ..attr._call import Pass
from ..attr._engine import PooledEmbedding, pooled_tokens
from ..attr._vectors import PooledRow, pushed_rows, rows_of
from ..attr.contributions import DirectContribution, any_target
from ..checks import excerpt
from ..errors import UnsupportedModelError
from ..maps import to_float32
from ..models import ClipAdapter
from ..models.steps import Direction, push_forward
from ..models.towers import ResNetTower, TransformerTower
from ..recording.observe import Features, Kernels, Outputs, Sums, observe
from ..recording.records import NOTHING
from ..similarity import ClipSimilarity

OUTPUTS: Final = ("embedding", "vectors", "rest")


class ImageGraph(nn.Module):
    """Pixels (B, 3, H, W) -> unit embeddings (B, E), vectors (B, h, w, E) and their rest (B, E).

    As :meth:`DirectContribution.vectors` has them. Its laws are checked by gradients, which PyTorch
    cannot trace, so here nothing is checked, and the numbers are to be compared with its own.
    """

    def __init__(self, clip: ClipAdapter, options: dict[str, Any]) -> None:
        super().__init__()
        self.model, self._clip, self._options = clip.model, clip, options
        self.direct = DirectContribution(ClipSimilarity(clip, any_target(clip)))
        depth = options.get("depth", "pooling")
        if depth == "all":
            raise UnsupportedModelError(
                "direct:depth=all needs a backward pass for each number of an embedding, which an "
                "ONNX graph cannot run; export direct, or direct:depth=token."
            )
        self._layers = self.direct._reading_layers(options.get("start_layer", 0), depth)

    @override
    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the tower once, and take its embedding apart."""
        tower, layers = self._clip.tower, self._layers
        centered, mlps = (
            self._options.get(n) == v for n, v in (("baseline", "mean"), ("depth", "token"))
        )
        take = partial(PooledRow.of, centered=centered)
        if isinstance(tower, TransformerTower):
            last = len(tower.layers) - 1
            blocks = Sums(range(layers.start, min(layers.stop, last + 1)))
            recording = observe(tower, Kernels(layers, take), blocks, Outputs([last]))
        else:
            assert isinstance(tower, ResNetTower)
            kernels = Kernels(range(len(tower.attentions)), take)
            recording = observe(tower, Features(), kernels)
        with torch.enable_grad(), recording as record:
            embedding = to_float32(self._clip.image_features(pixels).detach())
        with torch.no_grad():
            token, run = pooled_tokens(tower, record), Pass(record, NOTHING, NOTHING)
            none = Direction.of(NOTHING[None], NOTHING)  # vectors are those of every score
            embedded = PooledEmbedding(
                run, embedding, none, NOTHING, token=to_float32(token), dtype=token.dtype
            )
            pooled = rows_of(tower, embedded, centered)
            shares = push_forward(pooled.head, pooled.token, pushed_rows(pooled, mlps))[1]
            length = embedding.norm(dim=-1, keepdim=True)
            vectors = record.on_grid((shares / length[:, None]).transpose(1, 2))
            vectors, unit = vectors.permute(0, 2, 3, 1), embedding / length
            return unit, vectors, unit - vectors.sum((1, 2))


class TextGraph(nn.Module):
    """Token ids (N, T), and a mask where the tower takes one -> unit embeddings (N, E)."""

    def __init__(self, clip: ClipAdapter) -> None:
        super().__init__()
        self.model, self._clip = clip.model, clip

    @override
    @torch.no_grad()
    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the tower."""
        return F.normalize(to_float32(self._clip.text_features(ids, mask)), dim=-1)


def to_onnx(
    graph: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str], free: Sequence[str] = ()
) -> Any:
    """Trace a graph, whose batch stays free, of some inputs the length too: a `ModelProto` of ONNX.

    UnsupportedModelError for a model with an operation that ONNX does not have.
    """
    import onnx

    file: Any = io.BytesIO()  # which the type of the path leaves out
    names = [*inputs, *outputs]
    axes = {name: dict(enumerate(["batch", "length"][: 1 + (name in free)])) for name in names}
    options: Any = {"input_names": [*inputs], "output_names": [*outputs], "dynamic_axes": axes}
    # no mode of the model is switched
    options |= {"training": torch.onnx.TrainingMode.PRESERVE, "opset_version": 17, "dynamo": False}
    try:
        with _traced():
            torch.onnx.export(graph, tuple(inputs.values()), file, **options)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = excerpt(str(error).strip().partition("\n")[0], 200)
        message = f"PyTorch cannot write the model as an ONNX graph: {reason}"
        raise UnsupportedModelError(message) from error
    model = onnx.load_from_string(file.getvalue())
    for node in model.graph.node:  # axes from the end, which onnxruntime refuses
        for attribute in node.attribute if node.op_type == "Transpose" else ():
            attribute.ints[:] = [axis % len(attribute.ints) for axis in attribute.ints]
    return model


@contextmanager
def _traced() -> Iterator[None]:
    is_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a function that ONNX does not have
    library: Any = torch._C
    log = library._jit_onnx_log
    # a failed export prints the whole graph, and switches the log on if it is off
    library._jit_onnx_log = lambda *_: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is compared becomes a constant, which it is
            yield
    finally:
        library._jit_onnx_log = log
        torch.backends.mha.set_fastpath_enabled(is_fast)
