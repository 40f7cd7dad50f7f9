"""Small trained CLIPs that work offline, with the scenes they were trained on.

They are for demonstration and measurement: conclusions about real CLIPs need real CLIPs. Importing
this package loads neither torch, transformers nor open_clip.
"""

from __future__ import annotations

from pathlib import Path

MODELS: dict[str, Path] = {
    "demo/vit": Path(__file__).with_name("vit"),
    "demo/resnet": Path(__file__).with_name("resnet"),
    "demo/siglip": Path(__file__).with_name("siglip"),
}
"""Name -> folder: of transformers, or of OpenCLIP (``local-dir:``) for the ResNet."""

__all__ = ["MODELS"]
