"""The names of models: the embedded ones, Mamooler's, and examples of each family."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Library = Literal["transformers", "open_clip"]


@dataclass(frozen=True)
class AvailableModel:
    """A model that can be loaded by a short name.

    Attributes:
        name: for `load_clip`.
        aliases: other spellings of it.
        kind: "vit" or "resnet".
        library: what loads it.
        checkpoint: where its weights come from: a repository on the Hugging Face hub, or OpenCLIP's
            architecture (tag `openai`); "embedded" in the package, so that no network is needed.
    """

    name: str
    aliases: tuple[str, ...]
    kind: Literal["vit", "resnet"]
    library: Library
    checkpoint: str


def _resnet(suffix: str) -> AvailableModel:
    architecture = f"RN{suffix}-quickgelu"  # without it OpenCLIP runs these weights with GELU
    aliases = (f"ResNet{suffix}", f"{architecture}/openai")
    return AvailableModel(f"RN{suffix}", aliases, "resnet", "open_clip", architecture)


def _vit(name: str, checkpoint: str, *aliases: str) -> AvailableModel:
    return AvailableModel(name, aliases, "vit", "transformers", f"openai/clip-vit-{checkpoint}")


_EMBEDDED = (
    AvailableModel("demo/vit", (), "vit", "transformers", "embedded"),
    AvailableModel("demo/resnet", (), "resnet", "open_clip", "embedded"),
    AvailableModel("demo/siglip", (), "vit", "transformers", "embedded"),
)
# the nine CLIPs of Mamooler's report, by OpenAI's names
_PUBLISHED = (
    *map(_resnet, ("50", "101", "50x4", "50x16", "50x64")),
    _vit("ViT-B/32", "base-patch32"),
    _vit("ViT-B/16", "base-patch16"),
    _vit("ViT-L/14", "large-patch14"),
    _vit("ViT-L/14@336px", "large-patch14-336", "ViT-L/14-336px"),
)
_BY_NAME = {name.casefold(): row for row in _PUBLISHED for name in (row.name, *row.aliases)}


def named_model(name: str) -> AvailableModel | None:
    """The model of a name of Mamooler's in any of its spellings; None for other names.

    Example:
        >>> named_model("ResNet50x4").checkpoint
        'RN50x4-quickgelu'
    """
    return _BY_NAME.get(name.casefold())


def available() -> list[AvailableModel]:
    """The models with short names: the embedded ones, then Mamooler's.

    Example:
        >>> [model.name for model in available()][:3]
        ['demo/vit', 'demo/resnet', 'demo/siglip']
    """
    return [*_EMBEDDED, *_PUBLISHED]


class Example(NamedTuple):
    """A name for `load_clip`."""

    family: str
    name: str
    library: Library = "transformers"


_OC: Library = "open_clip"
EXAMPLES: tuple[Example, ...] = (
    Example("SigLIP 2", "google/siglip2-base-patch16-224"),
    Example("SigLIP 2 NaFlex", "google/siglip2-base-patch16-naflex"),
    Example("SigLIP", "google/siglip-base-patch16-224"),
    Example("SigLIP 2", "ViT-B-16-SigLIP2/webli", _OC),
    Example("LAION's CLIP", "ViT-B-32/laion2b_s34b_b79k", _OC),
    Example("DFN", "ViT-B-16/dfn2b", _OC),
    Example("MetaCLIP", "ViT-B-16/metaclip_fullcc", _OC),
    Example("MetaCLIP 2", "facebook/metaclip-2-worldwide-huge-quickgelu"),
    Example("EVA-02", "EVA02-B-16/merged2b_s8b_b131k", _OC),
    Example("ViTamin", "ViTamin-S/datacomp1b", _OC),
    Example("PE-Core", "PE-Core-B-16/meta", _OC),
    Example("CoCa", "coca_ViT-B-32/laion2b_s13b_b90k", _OC),
    Example("MobileCLIP", "MobileCLIP2-S0/dfndr2b", _OC),
    Example("ConvNeXt", "convnext_base_w/laion2b_s13b_b82k", _OC),
    Example("BiomedCLIP", "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", _OC),
    Example("many languages", "xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k", _OC),
    Example("AltCLIP", "BAAI/AltCLIP"),
    Example("Chinese CLIP", "OFA-Sys/chinese-clip-vit-base-patch16"),
    Example("TIPSv2", "google/tipsv2-b14"),
    Example("BLIP", "Salesforce/blip-itm-base-coco"),
    Example("AIMv2", "apple/aimv2-large-patch14-224-lit"),
    Example("CLIPSeg", "CIDAS/clipseg-rd64-refined"),
    Example("OWL-ViT", "google/owlvit-base-patch32"),
    Example("OWLv2", "google/owlv2-base-patch16-ensemble"),
)
"""In the order of how much they are used."""
