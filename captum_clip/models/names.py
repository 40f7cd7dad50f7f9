"""The nine CLIP models of Mamooler's report: their names, checkpoints and architectures.

The columns are those of Tables I and II of *CLIP Explainability*, which follow the tables of the
CLIP paper (Radford et al., 2021). Two slips in it are put right here: Table II gives
224 as the input resolution of ViT-L/14-336px (it is 336), and the text says that the text encoders
of ViT-B/32 and RN101 have 12 heads (they have 8, at width 512).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Library = Literal["transformers", "open_clip"]


@dataclass(frozen=True)
class PublishedModel:
    """One row of the tables.

    Attributes:
        name: as OpenAI writes it.
        aliases: other accepted spellings, Mamooler's among them.
        library: what loads it.
        checkpoint: repository on the Hugging Face hub, or OpenCLIP's architecture (tag `openai`).
        embedding_dim: length of the embeddings.
        input_resolution: height and width of the images in pixels.
        vision_layers: blocks of the ViT, or blocks of each of the four stages of the ResNet.
        vision_width: width of the ViT, or channels of the ResNet's last stage.
        vision_heads: heads of the ViT, or of the ResNet's attention pool.
        text_layers: blocks of the text encoder.
        text_width: its width.
        text_heads: its heads.
    """

    name: str
    aliases: tuple[str, ...]
    library: Library
    checkpoint: str
    embedding_dim: int
    input_resolution: int
    vision_layers: int | tuple[int, int, int, int]
    vision_width: int
    vision_heads: int
    text_layers: int
    text_width: int
    text_heads: int

    @property
    def kind(self) -> Literal["vit", "resnet"]:
        """Which kind of vision tower it has."""
        return "vit" if isinstance(self.vision_layers, int) else "resnet"


def _vit(name: str, checkpoint: str, *columns: int, alias: str | None = None) -> PublishedModel:
    aliases = () if alias is None else (alias,)
    return PublishedModel(name, aliases, "transformers", f"openai/{checkpoint}", *columns)


def _resnet(
    suffix: str, dim: int, size: int, layers: tuple[int, int, int, int], *columns: int
) -> PublishedModel:
    aliases = (f"ResNet{suffix}", f"RN{suffix}-quickgelu/openai")
    architecture = f"RN{suffix}-quickgelu"
    return PublishedModel(
        f"RN{suffix}", aliases, "open_clip", architecture, dim, size, layers, *columns
    )


# embedding dim, resolution; vision layers, width, heads; text layers, width, heads
PUBLISHED: tuple[PublishedModel, ...] = (
    _resnet("50", 1024, 224, (3, 4, 6, 3), 2048, 32, 12, 512, 8),
    _resnet("101", 512, 224, (3, 4, 23, 3), 2048, 32, 12, 512, 8),
    _resnet("50x4", 640, 288, (4, 6, 10, 6), 2560, 40, 12, 640, 10),
    _resnet("50x16", 768, 384, (6, 8, 18, 8), 3072, 48, 12, 768, 12),
    _resnet("50x64", 1024, 448, (3, 15, 36, 10), 4096, 64, 12, 1024, 16),
    _vit("ViT-B/32", "clip-vit-base-patch32", 512, 224, 12, 768, 12, 12, 512, 8),
    _vit("ViT-B/16", "clip-vit-base-patch16", 512, 224, 12, 768, 12, 12, 512, 8),
    _vit("ViT-L/14", "clip-vit-large-patch14", 768, 224, 24, 1024, 16, 12, 768, 12),
    _vit(
        "ViT-L/14@336px",
        "clip-vit-large-patch14-336",
        *(768, 336, 24, 1024, 16, 12, 768, 12),
        alias="ViT-L/14-336px",
    ),
)

_BY_NAME = {spelling.casefold(): row for row in PUBLISHED for spelling in (row.name, *row.aliases)}


def published(name: str) -> PublishedModel | None:
    """The row of a name of Mamooler's in any of its spellings; None for other names.

    Example:
        >>> published("ResNet50x4").checkpoint
        'RN50x4-quickgelu'
    """
    return _BY_NAME.get(name.casefold())
