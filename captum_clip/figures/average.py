"""Mean maps of methods, of emotions and of towers (Mamooler's Figures 6 and 12)."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from .. import visualization
from ..errors import InputError, TargetError
from ..evaluation.run import MANIFEST
from ..evaluation.statistics import STATISTICS
from ..evaluation.storage import Storage, storage_of
from ..files import DAMAGED
from ..visualization.arrays import Array
from .subjects import as_list

_NO_MAP = "no map varies"


@dataclass(frozen=True, eq=False)
class _Row:
    """The mean maps of one model and method of a study."""

    study: str
    label: str
    names: tuple[str, ...]
    means: Array  # (K, h, w)
    images: int


def average(
    studies: str | Path | Sequence[str | Path],
    *,
    names: str | Sequence[str] | None = None,
    cmap: str | Colormap = visualization.HEAT,
) -> Figure:
    """Mean maps of finished studies on one scale: a row per model and method, a column per target.

    Args:
        studies: one or several output folders of ``captum-clip study``.
        names: which targets or emotions; by default all that every row has.
        cmap: colour map.

    Raises:
        InputError: no study, one that is not finished, or studies without a common target.
        TargetError: a name that a row does not have.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from captum_clip import figures
        >>> from captum_clip.demo.scenes import draw_scene
        >>> from captum_clip.evaluation import StudyConfig, run_study
        >>> folder = Path(tempfile.mkdtemp())
        >>> for seed in range(2):
        ...     Image.fromarray(draw_scene(seed).image).save(folder / f"{seed}.png")
        >>> options = {"texts": ["a face"], "models": ["demo/vit"], "workers": 0}
        >>> _ = run_study(StudyConfig(folder, folder / "study", **options))
        >>> figure = figures.average(folder / "study")
    """
    folders = as_list(studies)
    if not folders:
        raise InputError("figures.average: expected at least one folder of a study, got none.")
    rows = [row for folder in folders for row in _read(storage_of(folder))]
    common = [name for name in rows[0].names if all(name in row.names for row in rows)]
    chosen = common if names is None else as_list(names)
    if names is None and not common:
        raise InputError("figures.average: the studies have no target in common.")
    means = [row.means[_positions(row, chosen)] for row in rows]
    labels = _labels(rows)
    notes = [["" if np.isfinite(values).all() else _NO_MAP for values in maps] for maps in means]
    counts = " and ".join(f"{count:,}" for count in sorted({row.images for row in rows}))
    return visualization.average(
        {label: np.nan_to_num(maps) for label, maps in zip(labels, means, strict=True)},
        names=chosen,
        notes=dict(zip(labels, notes, strict=True)),
        cmap=cmap,
        caption=f"mean of min-max maps of {counts} images",
    )


def _read(study: Storage) -> list[_Row]:
    content = study.read(MANIFEST)
    if content is not None and b"captum_clip study" not in content:
        content = None
    if content is None or study.read(STATISTICS) is None:
        state = "no study" if content is None else "a study that is not finished"
        raise InputError(
            f"figures.average: {study.root} holds {state}; 'captum-clip study statistics FOLDER "
            f"--text TEXT -o {study.root}' {'makes one' if content is None else 'goes on with it'}."
        )
    rows = []
    try:
        jobs = json.loads(content)["jobs"]
        files = sorted(name for name in study.files() if name.startswith("mean_maps/"))
        for job, file in zip(jobs, files, strict=True):
            arrays = np.load(io.BytesIO(study.read(file) or b""), allow_pickle=False)
            names, means = tuple(arrays["names"].tolist()), arrays["stretched"].astype(np.float32)
            label = f"{job['model']} ({job['method']})"
            rows.append(_Row(Path(study.root).name, label, names, means, int(arrays["images"])))
    except DAMAGED as error:
        raise InputError(
            f"figures.average: {study.root} holds no study that can be read ({error})."
        ) from error
    return rows


def _labels(rows: Sequence[_Row]) -> list[str]:
    """One per row, no two the same: with the study's name where a model and method come twice."""
    labels = [row.label for row in rows]
    if len(set(labels)) < len(labels):
        labels = [f"{row.study}: {row.label}" for row in rows]
    if len(set(labels)) < len(labels):
        labels = [f"{number}. {label}" for number, label in enumerate(labels, 1)]
    return labels


def _positions(row: _Row, names: Sequence[str]) -> list[int]:
    unknown = [name for name in names if name not in row.names]
    if unknown:
        raise TargetError(
            f"figures.average: {row.label} has no target {unknown[0]!r}; its targets are "
            f"{', '.join(row.names)}."
        )
    return [row.names.index(name) for name in names]
