"""Small trained CLIPs that work offline, with the scenes they were trained on.

They are for demonstration and measurement: conclusions about real CLIPs need real CLIPs. Importing
this package loads neither torch, transformers nor open_clip.
"""

from pathlib import Path

MODELS: dict[str, Path] = {
    "demo/vit": Path(__file__).with_name("vit"),
    "demo/resnet": Path(__file__).with_name("resnet"),
    "demo/siglip": Path(__file__).with_name("siglip"),
}
"""Name -> folder: of transformers, or of OpenCLIP (``local-dir:``) for the ResNet."""

PROBES: dict[str, Path] = {
    name: Path(__file__).with_name("emotions") / f"{folder.name}.safetensors"
    for name, folder in MODELS.items()
}
"""Name -> the emotion probe that was fitted on a model's features of a thousand drawn scenes.

``python docs/experiments/artemis.py write art --paintings 1000`` draws them, and ``captum-clip
emotions fit art --model demo/vit -o vit.safetensors`` fits the probe.
"""

__all__ = ["MODELS", "PROBES"]
