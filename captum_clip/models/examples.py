"""One published name of each family, to copy."""

from __future__ import annotations

from typing import NamedTuple

from .names import Library


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
