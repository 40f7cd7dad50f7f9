"""What a family has: changes with names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.attr.judged import FLOWS, Change, known

CLS = ("hf_vit", "open_clip_vit")
TOWERS = (*CLS, "siglip", "open_clip_vit_mean")


class Entry(NamedTuple):
    """A change, and whether it changes nothing but the code."""

    change: Change
    harmless: bool = False


Entries = dict[str, Entry]


def flows(tower: str) -> tuple[str, ...]:
    """The methods that follow patches from layer to layer."""
    return FLOWS if tower in CLS else (*FLOWS, "last-grad")


def unknown(*methods: str) -> Any:
    """The model as it runs knows all maps but those of some methods."""

    def truth(change: Change, forward: Any) -> Any:
        def wanted(method: str) -> Any:
            return None if method in methods else known(change.tower, method, change.batch)

        return wanted

    return truth


def without(names: Sequence[str], name: str, *methods: str) -> Any:
    """The same for some changes; of the others the model as it runs knows all."""
    return unknown(*methods) if name in names else None
