"""Writing a trained demo model in the layout of its library, in half precision.

``python -m captum_clip.demo.export vit --checkpoint FOLDER`` exports the newest checkpoint and
measures it for its model card.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from captum_clip.demo.architectures import ARCHITECTURES, IMAGE_SIZE, MEAN, RESNET_CONFIG, STD
from captum_clip.demo.card import model_card
from captum_clip.demo.checkpoints import load_checkpoint
from captum_clip.demo.evaluate import evaluate, load_exported
from captum_clip.demo.vocabulary import write_tokenizer
from captum_clip.errors import InputError


def _export_vit(model: Any, folder: Path) -> None:
    from transformers import CLIPImageProcessor

    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"  # stored in half precision, loaded in single
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    processor = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    processor.save_pretrained(folder)
    write_tokenizer(folder)


def _export_resnet(model: nn.Module, folder: Path) -> None:
    from safetensors.torch import save_file

    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    preprocessing = {
        "size": [IMAGE_SIZE, IMAGE_SIZE],
        "mode": "RGB",
        "mean": list(MEAN),
        "std": list(STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {"model_cfg": RESNET_CONFIG, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_tokenizer(folder)


_EXPORTERS: Final[dict[str, Callable[[Any, Path], None]]] = {
    "vit": _export_vit,
    "resnet": _export_resnet,
}


def export_model(name: str, model: nn.Module, folder: Path) -> None:
    """Write the model's folder; the model itself stays in its own precision.

    Args:
        name: ``"vit"`` (transformers layout) or ``"resnet"`` (OpenCLIP's Hugging Face layout).
        model: the trained model.
        folder: made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copy = ARCHITECTURES[name].build()
    copy.load_state_dict(model.state_dict())
    _EXPORTERS[name](copy.to(torch.float16).eval(), folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # the libraries write weights for their owner only


def export_checkpoint(name: str, checkpoint: Path, folder: Path, *, scenes: int = 500) -> int:
    """Export the newest checkpoint of a training, with its curve and its card.

    Args:
        name: ``"vit"`` or ``"resnet"``.
        checkpoint: folder of the training.
        folder: made if it is not there.
        scenes: test scenes that the card's figures are measured on, for each count of objects.

    Returns:
        The number of steps it was trained.

    Raises:
        InputError: if the folder has no checkpoint.
    """
    found = load_checkpoint(checkpoint)
    if found is None:
        raise InputError(f"{checkpoint} has no checkpoint.pt")
    model = ARCHITECTURES[name].build()
    model.load_state_dict(found.model)
    export_model(name, model, folder)
    if (checkpoint / "curve.csv").exists():
        shutil.copyfile(checkpoint / "curve.csv", folder / "curve.csv")
    exported = load_exported(name, folder)
    card = model_card(
        name,
        parameters=sum(parameter.numel() for parameter in exported.parameters()),
        step=found.step,
        steps=found.steps,
        batch_size=found.batch_size,
        seed=found.seed,
        scenes=scenes,
        measured=evaluate(name, exported, number=scenes),
    )
    (folder / "MODEL_CARD.md").write_text(card)
    return found.step


def main(arguments: list[str] | None = None) -> None:
    """Export the newest checkpoint of a training."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name", choices=sorted(ARCHITECTURES))
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the training")
    parser.add_argument("--output", type=Path, help="default: the packaged folder")
    options = parser.parse_args(arguments)
    output = options.output or Path(__file__).with_name(options.name)
    steps = export_checkpoint(options.name, options.checkpoint, output)
    print(f"{options.name} after {steps} steps -> {output}")


if __name__ == "__main__":
    main()
