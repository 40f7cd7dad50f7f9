"""One published name of each family, to copy."""

from __future__ import annotations

from typing import NamedTuple

from .names import Library


class Example(NamedTuple):
    """A name for `load_clip`."""

    family: str
    name: str
    library: Library


def _transformers(family: str, name: str) -> Example:
    return Example(family, name, "transformers")


def _open_clip(family: str, name: str) -> Example:
    return Example(family, name, "open_clip")


EXAMPLES: tuple[Example, ...] = (
    _transformers("SigLIP 2", "google/siglip2-base-patch16-224"),
    _transformers("SigLIP 2 NaFlex", "google/siglip2-base-patch16-naflex"),
    _transformers("SigLIP", "google/siglip-base-patch16-224"),
    _open_clip("SigLIP 2", "ViT-B-16-SigLIP2/webli"),
    _open_clip("LAION's CLIP", "ViT-B-32/laion2b_s34b_b79k"),
    _open_clip("DFN", "ViT-B-16/dfn2b"),
    _open_clip("MetaCLIP", "ViT-B-16/metaclip_fullcc"),
    _transformers("MetaCLIP 2", "facebook/metaclip-2-worldwide-huge-quickgelu"),
    _open_clip("EVA-02", "EVA02-B-16/merged2b_s8b_b131k"),
    _open_clip("ViTamin", "ViTamin-S/datacomp1b"),
    _open_clip("PE-Core", "PE-Core-B-16/meta"),
    _open_clip("CoCa", "coca_ViT-B-32/laion2b_s13b_b90k"),
    _open_clip("MobileCLIP", "MobileCLIP2-S0/dfndr2b"),
    _open_clip("ConvNeXt", "convnext_base_w/laion2b_s13b_b82k"),
    _open_clip("BiomedCLIP", "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"),
    _open_clip("many languages", "xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k"),
    _transformers("AltCLIP", "BAAI/AltCLIP"),
    _transformers("Chinese CLIP", "OFA-Sys/chinese-clip-vit-base-patch16"),
    _transformers("TIPSv2", "google/tipsv2-b14"),
    _transformers("ALIGN", "kakaobrain/align-base"),
    _transformers("BLIP", "Salesforce/blip-itm-base-coco"),
    _transformers("AIMv2", "apple/aimv2-large-patch14-224-lit"),
    _transformers("FLAVA", "facebook/flava-full"),
    _transformers("CLIPSeg", "CIDAS/clipseg-rd64-refined"),
    _transformers("OWL-ViT", "google/owlvit-base-patch32"),
    _transformers("OWLv2", "google/owlv2-base-patch16-ensemble"),
)
"""In the order of how much they are used."""
