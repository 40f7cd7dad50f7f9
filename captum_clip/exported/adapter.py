"""An exported model as an adapter, with which an ImageIndex is built and searched."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..models import ClipAdapter
from ..models.towers import ViTTower
from . import ExportedClip, preprocess


class _Tower(ViTTower):
    head: Any = ()


class ExportedAdapter(ClipAdapter):
    """What :class:`captum_clip.search.ImageIndex` asks of a model, by onnxruntime.

    Attributes:
        exported: the model, from :func:`captum_clip.exported.load`.
    """

    device: Any = torch.device("cpu")
    dtype: Any = torch.float32
    context_length: Any = None

    def __init__(self, exported: ExportedClip) -> None:
        about, how = exported.about, exported.about.preprocessing
        sides = [side // cells for side, cells in zip(how.size, about.grid, strict=True)]
        tower = _Tower(
            module=nn.Identity(),
            native=how.size,
            patch=(sides[0], sides[1]),
            pooling="cls",
            stem=nn.Identity(),
        )
        processor = partial(_tensor, how)
        super().__init__(nn.Identity(), tower, name=about.model, processor=processor)
        self.exported = exported

    @override
    def image_features(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.exported.vectors(images.numpy()).embedding)

    @override
    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        raise NotImplementedError  # texts go in as they are

    @override
    def encode_text(self, texts: Any) -> Tensor:
        return torch.from_numpy(self.exported.encode_text(texts))

    @override
    def count_tokens(self, text: str) -> int | None:
        return len(self.exported.tokenize(text)["ids"][0]) if text else 0

    @override
    def identity(self, *, texts: bool = True, images: bool = True) -> dict[str, str]:
        names = ["text_embeddings"] * texts + ["weights", "image_embeddings"] * images
        return {name: getattr(self.exported.about.identity, name) for name in names}

    @override
    def _statistics(self) -> Any:
        return self.exported.about.preprocessing.mean, self.exported.about.preprocessing.std


def _tensor(how: Any, image: Any) -> Tensor:
    return torch.from_numpy(preprocess(image, how))
