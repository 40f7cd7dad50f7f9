"""The models that the page offers, each loaded once."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Final

from ..errors import InputError
from ..models import ClipAdapter, load_clip
from ..models.loading import load_processor, load_tokenizer, resolve

EMBEDDED: Final = ("demo/vit", "demo/resnet", "demo/siglip")
"""Offered on every page; they come with the package."""


class ModelCache:
    """Adapters by name; however many people ask at once, a model is loaded once.

    The embedded models are offered after those that someone asked for, `names`; only these get the
    processor and the tokenizer.

    Example:
        >>> from captum_clip.app.model_cache import ModelCache
        >>> ModelCache(["demo/resnet"]).names
        ('demo/resnet', 'demo/vit', 'demo/siglip')
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        device: str | None = None,
        *,
        processor: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        self.names = tuple(dict.fromkeys((*names, *EMBEDDED)))
        for name in self.names:
            resolve(name)
        self._device = device
        self._parts = {
            "processor": load_processor(processor),
            "tokenizer": load_tokenizer(tokenizer),
        }
        self._locks = {name: Lock() for name in self.names}
        self._loaded: dict[str, ClipAdapter] = {}

    def get(self, name: str) -> ClipAdapter:
        """The adapter of a name, loaded when it is first asked for."""
        if name not in self._locks:
            raise InputError(f"{name!r} is not offered here; choose {' or '.join(self.names)}.")
        with self._locks[name]:
            if name not in self._loaded:
                parts = {} if name in EMBEDDED else self._parts
                self._loaded[name] = load_clip(name, device=self._device, **parts)
            return self._loaded[name]
