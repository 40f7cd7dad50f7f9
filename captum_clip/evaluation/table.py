"""The long table of an evaluation, a row for each measured value, and its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..metrics.bootstrap import StatisticName
from .run import Arrays

if TYPE_CHECKING:
    from pandas import Categorical, DataFrame

Table: TypeAlias = "DataFrame"
COLUMNS: Final = ("task", "metric", "method", "sample", "region", "part", "x", "value")
"""Columns of the table; docs/evaluation.md describes each."""

_NUMBERS: Final[dict[str, type]] = {"sample": np.int64, "x": np.float64, "value": np.float64}
_TEXTS: Final = tuple(name for name in COLUMNS if name not in _NUMBERS)


UNIFORM: Final = "uniform"
"""The baseline whose map is the same everywhere: what an answer gets that is always the same."""


@dataclass(frozen=True)
class Metric:
    """A column of the tables.

    Attributes:
        name: as "pointing"; lower-case words joined by "_".
        protocol: one line with every choice: fill, threshold, area, chance level, number of draws.
        better: which way is good; "none" where the figure only describes.
        statistic: how the figure comes from the rows of the long table, by its name in
            :data:`captum_clip.metrics.bootstrap.STATISTICS`, which has the parts it needs.
        constant: what an answer gets that is always the same, where that is known beforehand;
            nothing that is no better is bold.
    """

    name: str
    protocol: str
    better: Literal["high", "low", "none"] = "high"
    statistic: StatisticName = "mean"
    constant: float | None = None


def rows_of(
    metric: str,
    values: Tensor | Mapping[str, Tensor],
    samples: Sequence[int],
    regions: Sequence[str],
    *,
    x: float = np.nan,
    chance: Tensor | float = np.nan,
) -> Arrays:
    """Rows of one metric, as columns.

    Args:
        metric: its name.
        values: (N,), or (N,) of each part where the metric's statistic needs several; where one of
            them is not finite, the row is left out with all its parts.
        samples: (N,) numbers of the samples.
        regions: (N,) what is explained in each, unique in its sample.
        x: where on a curve the values stand.
        chance: (N,) or one number, what takes the place of NaN: an empty map gets the value
            of a random answer. Left out, it would count as neither right nor wrong.
    """
    parts = values if isinstance(values, Mapping) else {"": values}
    if not isinstance(values, Mapping):
        parts = {"": torch.where(values.isnan(), torch.as_tensor(chance).to(values), values)}
    table = np.stack([column.double().cpu().numpy() for column in parts.values()])  # (C, N)
    finite = np.isfinite(table).all(0)
    texts = np.array([readable(region) for region in regions], dtype=object)
    count = int(finite.sum())
    return {
        "metric": np.full(len(parts) * count, metric, dtype=object),
        "sample": np.tile(np.asarray(samples, dtype=np.int64)[finite], len(parts)),
        "region": np.tile(texts[finite], len(parts)),
        "part": np.repeat(np.array(list(parts), dtype=object), count),
        "x": np.full(len(parts) * count, x),
        "value": table[:, finite].ravel(),
    }


def table_of(method: str, rows: Mapping[str, Sequence[Arrays]]) -> Table:
    """The table of one method, of the :func:`rows_of` of each task; samples are numbers."""
    import pandas as pd

    blocks: list[Arrays] = [{name: np.empty(0, _NUMBERS.get(name, object)) for name in COLUMNS}]
    for task, of_task in rows.items():
        for block in of_task:
            size = len(block["value"])
            texts = {"task": np.full(size, task, object), "method": np.full(size, method, object)}
            blocks.append({**block, **texts})
    columns = {name: np.concatenate([block[name] for block in blocks]) for name in COLUMNS}
    coded = {name: _category(*pd.factorize(columns[name])) for name in _TEXTS}
    return pd.DataFrame({**columns, **coded})


def to_arrays(table: Table) -> Arrays:
    """The table of one method as the arrays of a file."""
    arrays = {name: table[name].to_numpy() for name in _NUMBERS}
    for name in _TEXTS:  # long, with few different entries
        arrays[name] = table[name].cat.codes.to_numpy()
        arrays[f"{name} names"] = np.array(table[name].cat.categories, dtype=np.str_)
    return arrays


def from_arrays(arrays: Arrays) -> Table:
    """The table that :func:`to_arrays` was given."""
    import pandas as pd

    coded = {n: _category(arrays[n], arrays[f"{n} names"].tolist()) for n in _TEXTS}
    return pd.DataFrame({name: coded.get(name, arrays[name]) for name in COLUMNS})


def concatenate(tables: Sequence[tuple[Table, Sequence[str]]]) -> Table:
    """The whole table, of tables with the names of the samples that each numbers."""
    import pandas as pd
    from pandas.api.types import union_categoricals

    named = []
    for table, names in tables:
        # two names may read alike, and a category comes once
        codes, known = pd.factorize(np.array([*map(readable, names)], dtype=object))
        named.append(table.assign(sample=_category(codes[table["sample"]], known)))
    columns: dict[str, Any] = {
        name: union_categoricals([table[name] for table in named]) for name in (*_TEXTS, "sample")
    }
    columns |= {name: np.concatenate([table[name] for table in named]) for name in ("x", "value")}
    return pd.DataFrame({name: columns[name] for name in COLUMNS})


def _category(codes: Any, names: Any) -> Categorical:
    """A column of text."""
    import pandas as pd

    return pd.Categorical.from_codes(codes, pd.Index(names, dtype=object))


def readable(name: str) -> str:
    """A name as it is, but bytes of a file's name that are no Unicode, which pandas refuses."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass(frozen=True, eq=False)
class Queries:
    """N images with one target each."""

    pixels: Tensor  # (N, 3, H, W), preprocessed
    embeddings: Tensor  # (N, D), the targets
    names: tuple[str, ...]  # of the samples
    texts: tuple[str, ...]  # what the targets are called
    numbers: tuple[int, ...]  # of the samples, which random baselines draw from

    def __len__(self) -> int:
        return len(self.pixels)

    def part(self, indices: Sequence[int]) -> Queries:
        """Some of them, in the given order."""
        kept = list(indices)
        return Queries(
            self.pixels[kept],
            self.embeddings[kept],
            tuple(self.names[i] for i in kept),
            tuple(self.texts[i] for i in kept),
            tuple(self.numbers[i] for i in kept),
        )

    def split(self, size: int) -> list[Queries]:
        """All of them in parts of at most `size`."""
        indices = range(len(self))
        return [self.part(indices[start : start + size]) for start in indices[::size]]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    def rows_of(
        self,
        metric: str,
        values: Tensor | Mapping[str, Tensor],
        *,
        x: float = np.nan,
        chance: Tensor | float = np.nan,
    ) -> Arrays:
        """:func:`captum_clip.evaluation.table.rows_of` what was measured of them."""
        return rows_of(metric, values, self.numbers, self.texts, x=x, chance=chance)
