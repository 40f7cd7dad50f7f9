"""Models by name: loaded in several processes, and the same in all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..checks import expand
from ..errors import InputError
from ..models import ClipAdapter, load_clip
from ..models.loading import load_processor, load_tokenizer, published


class ModelLoader:
    """Loads models by name, and keeps the last one for as long as it is asked for again.

    Sent to another process it loads there for itself. Where `processor` names another model, the
    models get its image processor in place of their own, and so for the tokenizer.
    """

    def __init__(self, processor: str | None = None, tokenizer: str | None = None) -> None:
        self._parts = tuple(
            None if name is None else full_name(name) for name in (processor, tokenizer)
        )
        self._loaded: tuple[tuple[str, str], ClipAdapter, str] | None = None

    def __reduce__(self) -> tuple[Callable[..., ModelLoader], tuple[str | None, ...]]:
        return ModelLoader, self._parts

    def load(self, model: str, device: str) -> tuple[ClipAdapter, str]:
        """The model and its fingerprint."""
        if self._loaded is None or self._loaded[0] != (model, device):
            self._loaded = None  # lets go of the old one first
            processor, tokenizer = self._parts
            clip = load_clip(
                model,
                processor=load_processor(processor),
                tokenizer=load_tokenizer(tokenizer),
                device=device,
            )
            self._loaded = ((model, device), clip, clip.fingerprint)
        return self._loaded[1:]

    def load_same(self, model: str, device: str, fingerprint: str, noun: str) -> ClipAdapter:
        """The model that a run was begun with, in whichever process; `noun` is that of the run."""
        clip, loaded = self.load(model, device)
        if loaded != fingerprint:
            raise InputError(
                f"the weights or the preprocessing of {model} are not those that the {noun} was "
                "begun with; give all machines the same, and leave them alone while it runs."
            )
        return clip


def label_of(model: str) -> str:
    """How results call a model: its name; of a folder the last part, without the path."""
    folder = _folder_of(model)
    return model if folder is None else folder.name


def full_name(model: str) -> str:
    """A model's name as any process on any machine understands it."""
    return str(_folder_of(model) or model)


def given_parts(caller: str, **parts: str | None) -> dict[str, str]:
    """The processor and the tokenizer that replace the models' own, as a manifest tells them."""
    for part, name in parts.items():
        if name is not None and not (isinstance(name, str) and name):
            raise InputError(
                f"{caller}: expected {part} by name or folder, so that any worker can load it, got "
                f"{type(name).__name__}."
            )
    return {part: label_of(name) for part, name in parts.items() if name is not None}


def _folder_of(model: str) -> Path | None:
    if model.startswith("demo/") or published(model) is not None:
        return None
    folder = expand(model)
    return folder.resolve() if folder.is_dir() else None
