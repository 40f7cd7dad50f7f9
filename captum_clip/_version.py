"""The version of the package, where the build reads it, and the versions of its dependencies."""

from importlib.metadata import version
from typing import Any, Final

__version__ = "0.1.0"
_PACKAGES: Final = ("torch", "numpy", "transformers", "open_clip_torch", "captum", "pillow")


def environment() -> dict[str, Any]:
    """Return the versions of this package and of those that decide its numbers."""
    dependencies = {name: version(name) for name in _PACKAGES}
    return {"captum_clip": __version__, **dependencies}
