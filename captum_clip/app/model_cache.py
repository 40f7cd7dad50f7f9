"""The models that the page offers, each loaded once."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Final

from ..errors import InputError
from ..models import ClipAdapter, load_clip
from ..models.resolve import resolve

EMBEDDED: Final = ("demo/vit", "demo/resnet")
"""Offered on every page; they come with the package."""


class ModelCache:
    """Adapters by name; however many people ask at once, a model is loaded once.

    Args:
        names: the models that someone asked for; the embedded ones are offered after them.
        device: where they go; CUDA if there is one by default.

    Raises:
        InputError: a name leads nowhere.

    Example:
        >>> from captum_clip.app.model_cache import ModelCache
        >>> ModelCache(["demo/resnet"]).names
        ('demo/resnet', 'demo/vit')
    """

    def __init__(self, names: Sequence[str] = (), device: str | None = None) -> None:
        self.names = tuple(dict.fromkeys((*names, *EMBEDDED)))
        for name in self.names:
            resolve(name)
        self._device = device
        self._locks = {name: Lock() for name in self.names}
        self._loaded: dict[str, ClipAdapter] = {}

    def get(self, name: str) -> ClipAdapter:
        """The adapter of a name, loaded when it is first asked for.

        Raises:
            CaptumClipError: it is not offered, or cannot be loaded.
        """
        if name not in self._locks:
            raise InputError(f"{name!r} is not offered here; choose {' or '.join(self.names)}.")
        with self._locks[name]:
            if name not in self._loaded:
                self._loaded[name] = load_clip(name, device=self._device)
            return self._loaded[name]
