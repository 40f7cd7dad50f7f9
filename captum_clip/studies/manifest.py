"""The manifest of an output folder: what was computed with what, and whether it may go on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from .._version import __version__
from ..errors import InputError
from . import listing
from .config import StudyConfig
from .jobs import Job, describe
from .listing import Listing
from .storage import Storage

NAME: Final = "manifest.json"
FORMAT: Final = "captum_clip study 1"
RUNNING: Final = "running"
MAPS_DONE: Final = "maps done"
_PARTS: Final = {"config": dict, "jobs": list, "environments": list}
_PACKAGES: Final = ("torch", "numpy", "transformers", "open_clip_torch", "captum", "pillow")


@dataclass(frozen=True)
class Manifest:
    """What a study says of itself.

    Attributes:
        config: all that decides the results.
        jobs: models with method, fingerprint, tower and targets.
        images: number of image files.
        environments: versions and threads of every run that took part, each once.
        state: "running", or "maps done" when all shards are there.
        counts: numbers of images that were read, by job.
        skipped: file, reason and, where it was not all of them, the models it was skipped for.
    """

    config: dict[str, Any]
    jobs: list[dict[str, Any]]
    images: int
    environments: list[dict[str, Any]]
    state: str = RUNNING
    counts: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        """JSON for people and programs."""
        content = {"format": FORMAT, **vars(self)}
        return (json.dumps(content, indent=1) + "\n").encode()


def environment(threads: int, device: str) -> dict[str, Any]:
    """Versions of what computes, and the number of threads."""
    found: dict[str, Any] = {"captum_clip": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return {**found, "threads": threads, "device": device}


def begin(config: StudyConfig, jobs: Sequence[Job], images: Listing, output: Storage) -> Manifest:
    """The manifest of a new study, or of the one in the folder that is to go on.

    Raises:
        InputError: the folder holds another study, or something else.
    """
    now = environment(jobs[0].threads, jobs[0].device)
    content = output.read(NAME)
    if content is None:
        _check_empty(output)
        return Manifest(config.identity(), describe(jobs), len(images), [now])
    before = _read(content, output)
    said = _changes(before, config, jobs) + _image_changes(output, images)
    if said:
        raise InputError(
            f"{output.root} holds a study with other settings: {'; '.join(said)}. Take another "
            "output folder, or the settings of that study to go on with it."
        )
    known = before["environments"]
    environments = known if now in known else [*known, now]
    return Manifest(config.identity(), describe(jobs), len(images), environments)


def _check_empty(output: Storage) -> None:
    other = [
        name
        for name, _ in output.files()
        if not name.startswith(".") and not (name == listing.NAME and _is_listing(output))
    ]
    if other:
        raise InputError(
            f"{output.root} holds files that are no study's, such as {other[0]}; name a new or an "
            "empty folder."
        )


def _is_listing(output: Storage) -> bool:
    """Whether a study that was stopped before it had a manifest wrote the list of images."""
    try:
        Listing.from_csv(output.read(listing.NAME) or b"")
    except InputError:
        return False
    return True


def _read(content: bytes, output: Storage) -> dict[str, Any]:
    try:
        found = json.loads(content)
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']!r}")
        for key, kind in _PARTS.items():
            if not isinstance(found[key], kind):
                raise TypeError(f"{key!r} is no {kind.__name__}")
        if not all(isinstance(job, dict) for job in found["jobs"]):
            raise TypeError("'jobs' holds something else than dicts")
        return {key: found[key] for key in _PARTS}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{output.root}/{NAME} is no manifest of a study that this version can go on with "
            f"({error}); name another output folder."
        ) from error


def _changes(before: dict[str, Any], config: StudyConfig, jobs: Sequence[Job]) -> list[str]:
    """What differs between the study in the folder and this one, in words."""
    then = {**before["config"], "subjects": [_title(old) for old in before["jobs"]]}
    now = {**config.identity(), "subjects": [_title(job.identity()) for job in jobs]}
    said = [
        f"{name} was {_short(then.get(name))} and is {_short(now.get(name))}"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    ]
    return said or [
        f"the {name} of {job.label} changed"
        for old, job in zip(before["jobs"], jobs, strict=True)
        for name, value in job.identity().items()
        if old.get(name) != value
    ]


def _title(job: dict[str, Any]) -> str:
    return f"{job.get('model')} {job.get('method')}"


def _image_changes(output: Storage, images: Listing) -> list[str]:
    content = output.read(listing.NAME)
    changed = "" if content is None else images.difference(Listing.from_csv(content))
    return [f"the images changed: {changed}"] if changed else []


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}..."
