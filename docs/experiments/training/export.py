"""Writing a trained model in the layout of its library, in half precision, with its card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import CLIPImageProcessor, SiglipImageProcessor, SiglipModel

from captum_clip.demo.catalog import CONTEXT_LENGTH, END, IDS, NOUNS, OUTER, PAD, START, THINGS
from captum_clip.errors import InputError
from captum_clip.models import ClipAdapter, load_clip
from shortcut.measures import shortcut_tables
from shortcut.tags import TAGGED

from .architectures import IMAGE_SIZE, MEAN, RESNET_CONFIG, STD, Architecture
from .evaluate import by_objects, recall_table
from .recipes import RECIPES
from .train import CURVE, load_checkpoint

_CARDS: Final = Path(__file__).with_name("cards")
_DATA: Final = {
    "standard": {"objects": "three", "backgrounds": "six procedural backgrounds"},
    "broad": {
        "objects": "five",
        "backgrounds": "six procedural backgrounds, or as often on plain colors,\n  gradients, "
        "noise and patchworks of blurred drawings. Objects take .12 to .7 of the image's side "
        "and may be partly covered",
    },
}
"""Kind of scenes -> its description in the model card."""
_SPECIAL: Final = {"<pad>": PAD, "<start>": START, "<end>": END}


def _export_transformers(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"  # stored in half precision, loaded in single
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    colors = {"image_mean": list(MEAN), "image_std": list(STD)}
    if isinstance(model, SiglipModel):
        processor = SiglipImageProcessor(size=square, resample=Image.Resampling.BICUBIC, **colors)
    else:
        processor = CLIPImageProcessor(
            size={"shortest_edge": IMAGE_SIZE}, crop_size=square, **colors
        )
    processor.save_pretrained(folder)


def _export_resnet(model: nn.Module, folder: Path) -> None:
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


_EXPORTERS: Final[dict[str, Callable[[Any, Path], None]]] = {
    "vit": _export_transformers,
    "siglip": _export_transformers,
    "resnet": _export_resnet,
}


def export_model(architecture: Architecture, model: nn.Module, folder: Path) -> None:
    """Write the model's folder; the model itself stays in its own precision.

    Args:
        architecture: of the model; "resnet" is written in OpenCLIP's layout for Hugging Face,
            the others in that of transformers.
        model: the trained model.
        folder: made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copy = architecture.build()
    copy.load_state_dict(model.state_dict())
    _EXPORTERS[architecture.name](copy.to(torch.float16).eval(), folder)
    write_tokenizer(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # the libraries write weights for their owner only


def export_checkpoint(name: str, checkpoint: Path, folder: Path, *, scenes: int = 500) -> int:
    """Export the newest checkpoint of a training, with its curve and its card.

    Args:
        name: of the recipe.
        checkpoint: folder of the training.
        folder: made if it is not there.
        scenes: test scenes that the card's figures are measured on.

    Returns:
        The number of steps it was trained.

    Raises:
        InputError: the folder has no checkpoint.
    """
    state = load_checkpoint(checkpoint)
    if state is None:
        raise InputError(f"{checkpoint} has no checkpoint.pt; train first.")
    recipe = RECIPES[name]
    architecture, start = recipe.architecture, state["start"] or recipe.start
    model = architecture.build()
    model.load_state_dict(state["model"])
    export_model(architecture, model, folder)
    shutil.copyfile(checkpoint / CURVE, folder / CURVE)
    clip = load_clip(folder, device="cpu")
    parameters = sum(parameter.numel() for parameter in clip.model.parameters())
    template = _CARDS / ("shortcut.md" if name == "shortcut" else "scenes.md")
    card = template.read_text(encoding="utf-8").format(
        name=name,
        description=architecture.description,
        opened_with=architecture.opened_with,
        **{field: state[field] for field in ("step", "steps", "batch_size", "seed")},
        **_DATA[state["scenes"]],
        options="".join(
            f" --{option} {state[option]}"
            for option in ("scenes", "start", "peak")
            if state[option] not in (None, "standard")
        ),
        begun="" if start is None else f" It starts from the weights of `{start}`.",
        millions=f"{parameters / 1e6:.2f}",
        nouns=len(NOUNS),
        things=len(THINGS),
        tagged=", ".join(TAGGED),
        scenes=scenes,
        **measure(name, clip, scenes),
    )
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    step: int = state["step"]
    return step


def measure(name: str, clip: ClipAdapter, scenes: int) -> dict[str, str]:
    """Measure what a model's card reports, in Markdown: title -> table.

    Args:
        name: of its recipe.
        clip: the model.
        scenes: test scenes; of ``demo/vit`` and ``demo/resnet`` for each count of objects.
    """
    if name == "shortcut":
        return shortcut_tables({"shortcut": clip, "demo/vit": load_clip("demo/vit")}, scenes)
    run, device = RECIPES[name].architecture, str(clip.device)
    groups = by_objects(scenes)
    return {"recall": recall_table(run, clip.model, groups, heading="objects", device=device)}


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer of :mod:`captum_clip.demo.catalog` as the tokenizers library has it.

    It has no unknown token, so that library raises on an unknown word too.

    Args:
        folder: an existing folder, later opened with ``AutoTokenizer.from_pretrained``.
    """
    tokenizer = Tokenizer(models.WordLevel({**_SPECIAL, **IDS}))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(OUTER), ""), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", START), ("<end>", END)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT_LENGTH,
        "bos_token": "<start>",
        "eos_token": "<end>",
        "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
