"""Where a result lies, in words."""

from __future__ import annotations

from pathlib import Path


def inside(folder: str, name: str) -> str:
    """A file in a folder or under a URL.

    >>> inside("out", "results.md"), inside("s3://bucket/out/", "results.md")
    ('out/results.md', 's3://bucket/out/results.md')
    """
    return f"{folder.rstrip('/')}/{name}" if "://" in folder else str(Path(folder, name))
