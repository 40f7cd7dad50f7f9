"""Models by name: loaded in several processes, and the same in all of them."""

from __future__ import annotations

from ..checks import expand
from ..errors import InputError
from ..models import ClipAdapter, load_clip
from ..models.names import published


class ModelLoader:
    """Loads models by name, and keeps the last one for as long as it is asked for again."""

    def __init__(self) -> None:
        self._loaded: tuple[tuple[str, str], ClipAdapter, str] | None = None

    def load(self, model: str, device: str) -> tuple[ClipAdapter, str]:
        """The model and its fingerprint."""
        if self._loaded is None or self._loaded[0] != (model, device):
            self._loaded = None  # lets go of the old one first
            clip = load_clip(model, device=device)
            self._loaded = ((model, device), clip, clip.fingerprint)
        return self._loaded[1:]

    def load_same(self, model: str, device: str, fingerprint: str, noun: str) -> ClipAdapter:
        """The model that a run was begun with, in whichever process.

        Args:
            model: what `load_clip` takes, a folder by its full path.
            device: where to compute.
            fingerprint: that it must have.
            noun: "study" or "evaluation", for the message.

        Raises:
            InputError: what bears the name here is another model.
        """
        clip, loaded = self.load(model, device)
        if loaded != fingerprint:
            raise InputError(
                f"the weights or the preprocessing of {model} are not those that the {noun} was "
                "begun with; give all machines the same, and leave them alone while it runs."
            )
        return clip


def label_of(model: str) -> str:
    """How results call a model: its name; of a folder the last part, without the path."""
    if model.startswith("demo/") or published(model) is not None:
        return model
    folder = expand(model)
    return folder.resolve().name if folder.is_dir() else model


def full_name(model: str) -> str:
    """A model's name as any process on any machine understands it."""
    return model if label_of(model) == model else str(expand(model).resolve())
