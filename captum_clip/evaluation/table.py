"""The long table of an evaluation, a row for each measured value, and its metrics."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..metrics.bootstrap import StatisticName
from .units import Arrays

if TYPE_CHECKING:
    from pandas import DataFrame

Table: TypeAlias = "DataFrame"
COLUMNS: Final = ("task", "metric", "method", "sample", "region", "part", "x", "value")
"""Columns of the table; docs/appendix/protocols.md describes each."""

_TEXTS: Final = ("task", "metric", "method", "region", "part")

_SECTIONS: Final = json.loads(Path(__file__).with_name("metrics.json").read_text(encoding="utf-8"))

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
            :data:`captum_clip.metrics.bootstrap.PARTS`, which has the parts it needs.
        constant: what an answer gets that is always the same, where that is known beforehand;
            nothing that is no better is bold.
        rival: the method that others are compared with here; bold is what is better than it after
            Holm's correction. None is the reference of the evaluation, which need not be beaten.
    """

    name: str
    protocol: str
    better: Literal["high", "low", "none"] = "high"
    statistic: StatisticName = "mean"
    constant: float | None = None
    rival: str | None = None


def listed(section: str, **fields: Any) -> dict[str, list[Metric]]:
    """Title of a table -> its metrics, of a section of ``metrics.json`` with fields for its texts.

    A section has its tables by title, each with its metrics as :class:`Metric` has them; if there
    are `each`, all is repeated for each of these further fields.
    """
    content, tables = _SECTIONS[section], defaultdict(list)
    for further in content.get("each", [{}]):
        every = {**fields, **further}
        for title, metrics in content["tables"].items():
            for metric in metrics:
                texts = {key: metric[key].format(**every) for key in ("name", "protocol")}
                tables[title.format(**every)].append(Metric(**{**metric, **texts}))
    return dict(tables)


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
        values: (N,), or (N,) of each part where the metric's statistic needs several; where any is
            not finite, the row is left out with all its parts.
        samples: (N,) numbers of the samples.
        regions: (N,) what is explained in each, unique in its sample.
        x: where on a curve the values stand.
        chance: (N,) or one number, what takes the place of NaN: an empty map gets the value
            of a random answer. Left out, it would count as neither right nor wrong.
    """
    parts = values if isinstance(values, Mapping) else {"": values}
    columns = [torch.where(c.isnan(), torch.as_tensor(chance).to(c), c) for c in parts.values()]
    table = torch.stack([column.double() for column in columns]).cpu().numpy()  # (C, N)
    finite = np.isfinite(table).all(0)
    texts = np.array([readable(region) for region in regions], dtype=np.str_)
    count = int(finite.sum())
    return {
        "metric": np.full(len(parts) * count, metric),
        "sample": np.tile(np.asarray(samples, dtype=np.int64)[finite], len(parts)),
        "region": np.tile(texts[finite], len(parts)),
        "part": np.repeat(np.array(list(parts)), count),
        "x": np.full(len(parts) * count, x),
        "value": table[:, finite].ravel(),
    }


def table_of(method: str, rows: Mapping[str, Sequence[Arrays]]) -> Arrays:
    """The columns of one method's table, of the :func:`rows_of` of each task."""
    blocks = [rows_of("", torch.zeros(0), [], []) | {"task": np.empty(0, np.str_)}]
    for task, of_task in rows.items():
        blocks += [block | {"task": np.full(len(block["value"]), task)} for block in of_task]
    columns = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return {**columns, "method": np.full(len(columns["value"]), method)}


def concatenate(units: Iterable[tuple[Arrays, Sequence[str]]]) -> Table:
    """The whole table, of the columns of each unit and the names of the samples that it numbers.

    Texts are categories in the order in which they come, samples in that of their data sets.
    """
    import pandas as pd

    tables, sample_names = [], dict[str, None]()
    for columns, names in units:
        readable_names = [*map(readable, names)]
        sample_names |= dict.fromkeys(readable_names)
        samples = np.array(readable_names, dtype=object)[columns["sample"]]
        table = pd.DataFrame({name: columns[name] for name in COLUMNS}).assign(sample=samples)
        tables.append(table.astype(dict.fromkeys(_TEXTS, "category")))  # texts are long, and few
    # Tables with different categories are joined as plain objects, so categories are made again.
    whole = pd.concat(tables, ignore_index=True)
    texts = {name: pd.Categorical(whole[name], whole[name].unique()) for name in _TEXTS}
    return whole.assign(**texts, sample=pd.Categorical(whole["sample"], [*sample_names]))


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

    def select(self, indices: Sequence[int]) -> "Queries":
        """Some of them, in the given order."""
        kept = list(indices)
        return Queries(
            self.pixels[kept],
            self.embeddings[kept],
            tuple(self.names[i] for i in kept),
            tuple(self.texts[i] for i in kept),
            tuple(self.numbers[i] for i in kept),
        )

    def split(self, size: int) -> "list[Queries]":
        """All of them in chunks of at most `size`."""
        indices = range(len(self))
        return [self.select(indices[start : start + size]) for start in indices[::size]]

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
