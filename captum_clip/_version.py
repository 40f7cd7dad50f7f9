"""The versions of the package, where the build can read its own, and of what it computes with."""

from importlib.metadata import version
from typing import Any, Final

__version__ = "0.1.0"
_PACKAGES: Final = ("torch", "numpy", "transformers", "open_clip_torch", "captum", "pillow")


def environment() -> dict[str, Any]:
    """The versions of this package and of those that decide its numbers."""
    return {"captum_clip": __version__, **{name: version(name) for name in _PACKAGES}}
