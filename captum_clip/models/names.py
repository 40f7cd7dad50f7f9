"""Names of models: the nine CLIPs of Mamooler's report, and one of each family to copy.

The columns are those of Tables I and II of *CLIP Explainability*, which follow the tables of the
CLIP paper (Radford et al., 2021). Two slips in it are put right here: Table II gives
224 as the input resolution of ViT-L/14-336px (it is 336), and the text says that the text encoders
of ViT-B/32 and RN101 have 12 heads (they have 8, at width 512).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Library = Literal["transformers", "open_clip"]


@dataclass(frozen=True)
class PublishedModel:
    """One row of the tables; a ResNet has a block count for each of its four stages."""

    name: str  # as OpenAI writes it
    aliases: tuple[str, ...]  # other accepted spellings, Mamooler's among them
    library: Library
    checkpoint: str  # repository on the Hugging Face hub, or OpenCLIP's architecture (tag `openai`)
    embedding_dim: int
    input_resolution: int  # height and width of the images in pixels
    vision_layers: int | tuple[int, int, int, int]
    vision_width: int  # of the ViT, or channels of the ResNet's last stage
    vision_heads: int  # of the ViT, or of the ResNet's attention pool
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


class Example(NamedTuple):
    """A name for `load_clip`."""

    family: str
    name: str
    library: Library


_HF: Library = "transformers"
_OC: Library = "open_clip"

EXAMPLES: tuple[Example, ...] = (
    Example("SigLIP 2", "google/siglip2-base-patch16-224", _HF),
    Example("SigLIP 2 NaFlex", "google/siglip2-base-patch16-naflex", _HF),
    Example("SigLIP", "google/siglip-base-patch16-224", _HF),
    Example("SigLIP 2", "ViT-B-16-SigLIP2/webli", _OC),
    Example("LAION's CLIP", "ViT-B-32/laion2b_s34b_b79k", _OC),
    Example("DFN", "ViT-B-16/dfn2b", _OC),
    Example("MetaCLIP", "ViT-B-16/metaclip_fullcc", _OC),
    Example("MetaCLIP 2", "facebook/metaclip-2-worldwide-huge-quickgelu", _HF),
    Example("EVA-02", "EVA02-B-16/merged2b_s8b_b131k", _OC),
    Example("ViTamin", "ViTamin-S/datacomp1b", _OC),
    Example("PE-Core", "PE-Core-B-16/meta", _OC),
    Example("CoCa", "coca_ViT-B-32/laion2b_s13b_b90k", _OC),
    Example("MobileCLIP", "MobileCLIP2-S0/dfndr2b", _OC),
    Example("ConvNeXt", "convnext_base_w/laion2b_s13b_b82k", _OC),
    Example("BiomedCLIP", "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", _OC),
    Example("many languages", "xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k", _OC),
    Example("AltCLIP", "BAAI/AltCLIP", _HF),
    Example("Chinese CLIP", "OFA-Sys/chinese-clip-vit-base-patch16", _HF),
    Example("TIPSv2", "google/tipsv2-b14", _HF),
    Example("ALIGN", "kakaobrain/align-base", _HF),
    Example("BLIP", "Salesforce/blip-itm-base-coco", _HF),
    Example("AIMv2", "apple/aimv2-large-patch14-224-lit", _HF),
    Example("FLAVA", "facebook/flava-full", _HF),
    Example("CLIPSeg", "CIDAS/clipseg-rd64-refined", _HF),
    Example("OWL-ViT", "google/owlvit-base-patch32", _HF),
    Example("OWLv2", "google/owlv2-base-patch16-ensemble", _HF),
)
"""In the order of how much they are used."""
