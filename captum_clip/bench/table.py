"""From measured values to figures: the long table, its groups, and each method by each metric.

The table has a row for each measured value; a summary has intervals and differences to a reference.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..folders import bootstrap
from ..folders.bootstrap import FEWEST, PARTS, Array, StatisticName, holm
from .data import DataSet
from .run import Arrays

if TYPE_CHECKING:
    from pandas import DataFrame

Table: TypeAlias = "DataFrame"
COLUMNS: Final = ("task", "metric", "method", "sample", "region", "part", "x", "value")
"""Columns of the table; docs/appendix/protocols.md describes each."""

_CATEGORIES: Final = ("task", "metric", "method", "region", "part")

_SECTIONS: Final = json.loads(Path(__file__).with_name("metrics.json").read_text(encoding="utf-8"))

UNIFORM: Final = "uniform"
"""The baseline whose map is the same everywhere: what an answer gets that is always the same."""
OF_GROUP: Final = "_in_"
"""Between the names of a metric and of the group whose figures it has."""
_WORST: Final[dict[str, StatisticName]] = {"high": "lowest_class", "low": "highest_class"}
_DIFFERENCE: Final = ("difference", "difference_low", "difference_high", "p_holm")
_FIGURES: Final = (
    *("method", "metric", "mean", "low", "high", "images", "rows", *_DIFFERENCE),
    *("reference", "images_paired", "better"),
)
_UNMEASURED: Final = {"images": 0, "rows": 0, "images_paired": 0}
_HALVINGS: Final = 200
_EQUAL_WITHIN: Final = 1e-12  # relative to the largest; figures that differ by less are equal


@dataclass(frozen=True)
class Metric:
    """A column of the tables.

    Attributes:
        name: as "pointing"; lower-case words joined by "_".
        protocol: one line with every choice: fill, threshold, area, chance level, number of draws.
        better: which way is good; "none" where the figure only describes.
        statistic: how the figure comes from the rows of the long table, by its name in
            :data:`captum_clip.folders.bootstrap.PARTS`, which has the parts it needs.
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


def join_tables(units: Iterable[tuple[Arrays, Sequence[str]]]) -> Table:
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
        tables.append(
            table.astype(dict.fromkeys(_CATEGORIES, "category"))
        )  # texts are long, and few
    # Tables with different categories are joined as plain objects, so categories are made again.
    whole = pd.concat(tables, ignore_index=True)
    texts = {name: pd.Categorical(whole[name], whole[name].unique()) for name in _CATEGORIES}
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
        lists: Any = (
            tuple(each[i] for i in kept) for each in (self.names, self.texts, self.numbers)
        )
        return Queries(self.pixels[kept], self.embeddings[kept], *lists)

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
        """`rows_of` what was measured of them."""
        return rows_of(metric, values, self.numbers, self.texts, x=x, chance=chance)


def with_groups(
    table: Table, tables: Mapping[str, Sequence[Metric]], data: Iterable[DataSet]
) -> tuple[Table, dict[str, Sequence[Metric]]]:
    """Add rows and tables of the worst group and of each, by metrics that are means.

    The worst group is that with the lowest mean, or the highest where low is good; which one that
    is each resample decides anew.
    """
    import pandas as pd

    named = {readable(n): group for data_set in data for n, group in data_set.groups.items()}
    groups = table["sample"].astype(str).map(named).astype("category")
    rows, every, names = [table], dict(tables), [*groups.cat.categories]
    for group in ("worst_group", *names) if names else ():
        chosen = table[groups.notna() if group == "worst_group" else groups == group]
        chosen = chosen.assign(metric=chosen["metric"].astype(str) + f"{OF_GROUP}{group}")
        # The code of a group stands as a class, so that each resample finds its own worst group.
        # Samples of no group have the code -1; `chosen` is without them.
        parts = {"class": groups.cat.codes, "intersection": chosen["value"], "union": 1.0}
        rows += [chosen.assign(part=column, value=value) for column, value in parts.items()]
        for title, metrics in tables.items():
            means = [m for m in metrics if m.statistic == "mean" and m.better != "none"]
            every[f"{title}: {group.replace('_', ' ')}"] = [
                replace(m, name=f"{m.name}{OF_GROUP}{group}", statistic=_WORST[m.better])
                for m in means
            ]
    return pd.concat(rows, ignore_index=True), {
        title: metrics for title, metrics in every.items() if metrics
    }


class Check(NamedTuple):
    """A figure of the model next to chance; `low` and `high` are of their difference."""

    figure: float
    chance: float
    low: float
    high: float
    images: int


@dataclass(frozen=True)
class Gate:
    r"""How far a model is above chance on what is asked of a data set.

    That is all it says: a model that has a tenth of the nouns, or a tenth of the effect, passes.

    *Recall*: for an image with n texts of its own, the share of them among its n best of all texts
        of the data. By chance: how often they are among the n best of images that they do not name.
        *Effect*: the mean over objects of :math:`|\phi|`, the Shapley effect on such a text. By
        chance: on the other texts. Where embeddings of texts have nothing to do with their meaning,
        both differences are zero on average. They have the intervals of
        :func:`captum_clip.metrics.bootstrap_mean`, over images and over texts, of which the wider
        ends count; where the lower one is not above 0 the figure is at chance.

    Attributes:
        data: name of the data set.
        checks: those that the data allow; none where no text tells one image from another.
    """

    data: str
    checks: Mapping[str, Check]

    @property
    def is_above_chance(self) -> bool:
        """Whether no figure is at chance."""
        return all(check.low > 0 for check in self.checks.values())

    def __str__(self) -> str:
        if not self.checks:
            way = "add images that show other texts: each text needs some with and some without it"
            return f"{self.data}: whether the model is above chance cannot be told; {way}."
        verdict = "above chance on what is asked"
        if not self.is_above_chance:
            verdict = "this model is at chance on what is asked; do not interpret"
        checks = "; ".join(
            f"{name} {c.figure:.3g}, by chance {c.chance:.3g}, difference "
            f"{c.figure - c.chance:+.3g} [{c.low:+.3g}, {c.high:+.3g}] on {c.images} images"
            for name, c in self.checks.items()
        )
        return f"{self.data}: {verdict} ({checks})."


@dataclass(frozen=True, eq=False)
class Summary:
    """The figures of all methods by all metrics.

    Attributes:
        figures: a row for each method and metric, with the columns of ``results.csv``, not rounded.
            NaN where nothing was measured, or the statistic means nothing (a rank correlation with
            a constant). `difference` is to the reference, over the regions that both have. `p_holm`
            is adjusted for all methods that the metric compares with it; NaN below `FEWEST`
            images.
        groups: title -> metrics that belong together.
        methods: all of them, in the order of the tables.
        baselines: those of them that stand apart.
        without_map: those of the baselines that look at no map.
        reference: the method that the others are compared with.
        resamples: that intervals and p values come from.
        seed: of them.
        gates: what the model knows of each data set.
        unknown: names of metrics over data that it does not know, of which none names a winner.
        reliability: metric with a rival -> the rank correlation of the methods' figures on one half
            of the images with those on the other, mean over random halves; NaN below three methods.
    """

    figures: Table
    groups: Mapping[str, Sequence[Metric]]
    methods: Sequence[str]
    baselines: Sequence[str]
    without_map: Sequence[str]
    reference: str
    resamples: int
    seed: int
    gates: Sequence[Gate] = ()
    unknown: Collection[str] = ()
    reliability: Mapping[str, float] = field(default_factory=dict)

    @property
    def metrics(self) -> list[Metric]:
        """The metrics of all groups."""
        return [metric for group in self.groups.values() for metric in group]

    @property
    def least_p(self) -> float:
        """The smallest adjusted p value that so many resamples and comparisons leave possible."""
        tested = self.figures.groupby("metric")["p_holm"].count().max()
        return min(1.0, 2 * float(tested) / (self.resamples + 1))


def summarize(
    table: Table,
    groups: Mapping[str, Sequence[Metric]],
    methods: Sequence[str],
    *,
    reference: str,
    baselines: Sequence[str] = (),
    without_map: Sequence[str] = (),
    resamples: int = 2000,
    seed: int = 0,
) -> Summary:
    r"""Each method's figure by each metric, and its difference to a reference method.

    The bootstrap draws whole images, as many as there are, with replacement. Methods with the same
    images see the same draws, and a difference is taken resample by resample over the regions that
    both methods have, so it is paired:

    .. math:: d^*_r = T(\text{rows of the method in resample } r)
                    - T(\text{rows of the reference in resample } r)

    with T the metric's statistic over these rows of the images drawn. Intervals are percentiles, p
    values those of :func:`captum_clip.metrics.paired_difference`, adjusted by Holm over all methods
    but the reference. Below `FEWEST` images there is no p value, of one image alone no
    interval either (NaN). Resamples where the statistic means nothing are left out.

    The table is long, as :mod:`captum_clip.bench.table` has it; a method without rows of a
    metric was not measured by it. The other arguments are those of :class:`Summary`.

    Source: Efron and Tibshirani 1993, *An Introduction to the Bootstrap*; Holm 1979.
    """
    import pandas as pd

    metrics = [metric for group in groups.values() for metric in group]
    # Regions are numbered by their names, so that no last digit depends on the order of rows.
    table = table[table["x"].isna()].astype({"sample": "category", "method": str, "part": str})
    numbers = table.groupby(["sample", "region"], observed=True).ngroup()
    table = table.assign(image=table["sample"].cat.codes, number=numbers)
    rows = dict(iter(table.groupby("metric", observed=True)))
    resample = partial(bootstrap.resample, resamples=resamples, seed=seed)
    figures = {
        metric.name: _figures_of_metric(
            metric, rows[metric.name], metric.rival or reference, resample
        )
        if metric.name in rows
        else {}
        for metric in metrics
    }
    halves = {
        metric.name: _reliability(metric, rows[metric.name], {*methods} - {*baselines}, seed)
        for metric in metrics
        if metric.rival and metric.name in rows
    }
    records = [
        {
            **{"method": method, "metric": metric.name},
            **figures[metric.name].get(method, _UNMEASURED),
            **{"reference": metric.rival or reference, "better": metric.better},
        }
        for method in methods
        for metric in metrics
    ]
    numbers = dict.fromkeys(("mean", "low", "high", *_DIFFERENCE), float)
    frame = pd.DataFrame(records, columns=list(_FIGURES)).astype(numbers)
    names = [*methods], [*baselines], [*without_map]
    return Summary(frame, groups, *names, reference, resamples, seed, reliability=halves)


def _reliability(metric: Metric, rows: Table, methods: Collection[str], seed: int) -> float:
    """How far random halves of the images order methods alike, of those that saw every image."""
    import pandas as pd

    chosen = rows[rows["method"].isin(methods)]
    wide = chosen.pivot_table("value", "image", ["part", "method"]).dropna(axis=1)
    random, values = np.random.default_rng(seed), list[float]()
    for _ in range(_HALVINGS if len(wide.columns) > 2 * len(PARTS[metric.statistic]) else 0):
        half = random.permutation(len(wide)) % 2 == 0
        sums = [
            [wide[column][side].sum() for column in PARTS[metric.statistic]]
            for side in (half, ~half)
        ]
        first, second = (tops / bottoms[0] if bottoms else tops for tops, *bottoms in sums)
        values.append(first.corr(second, method="spearman"))
    return float(pd.Series(values, dtype=float).mean())


def _figures_of_metric(
    metric: Metric, rows: Table, reference: str, resample: Callable[[Array], Array]
) -> dict[str, dict[str, Any]]:
    """Method -> its figures, of the methods that have rows."""
    image_of = rows.drop_duplicates("number").set_index("number")["image"]
    wide = rows.pivot_table("value", "number", ["method", "part"], aggfunc="first")
    measured = {
        method: wide.xs(method, axis=1, level="method")[[*PARTS[metric.statistic]]].dropna()
        for method in rows["method"].unique()
    }
    compared = measured.get(reference, wide[:0]).index
    rows_of: dict[tuple[str, str], Table] = {(name, ""): table for name, table in measured.items()}
    for name, table in measured.items():
        both = table.index.intersection(compared)
        if name != reference and len(both):  # each with the regions that both have
            rows_of |= {(name, m): measured[m].loc[both] for m in (name, reference)}
    sums, resampled = dict[tuple[str, str], Array](), dict[tuple[str, str], Array]()
    for key, table in rows_of.items():
        images, index = np.unique(image_of.loc[table.index], return_inverse=True)
        values = table.to_numpy(np.float64)
        sums[key] = bootstrap.image_sums(metric.statistic, index, values, len(images))
    for count in {len(of_key) for of_key in sums.values()}:  # of so many images draws are made once
        alike = {key: of_key for key, of_key in sums.items() if len(of_key) == count}
        ends = np.cumsum([of_key.shape[1] for of_key in alike.values()])[:-1]
        parts = np.split(resample(np.concatenate([*alike.values()], axis=1)), ends, axis=1)
        for key, sample_sums in zip(alike, parts, strict=True):
            resampled[key] = bootstrap.figures_of(metric.statistic, sample_sums)

    figures: dict[str, dict[str, Any]] = {}
    for name, table in measured.items():
        count = len(sums[name, ""])
        interval = bootstrap.interval_of(resampled[name, ""])._asdict()
        if count == 1:  # which tells nothing of others
            interval = {"mean": interval["mean"]}
        paired = count if name == reference else len(sums.get((name, name), ()))
        figures[name] = {**interval, "images": count, "rows": len(table), "images_paired": paired}
        if name != reference and paired:
            figures[name] |= _paired(resampled[name, name], resampled[name, reference], paired)
    # NaN compares as False: a method that was not tested is not in the family of tests.
    p_values = {n: row["p_holm"] for n, row in figures.items() if row.get("p_holm", 2) <= 1}
    for name, adjusted in zip(p_values, holm(list(p_values.values())).tolist(), strict=True):
        figures[name]["p_holm"] = adjusted
    return figures


def _paired(first: Array, second: Array, images: int) -> dict[str, float]:
    """Compare two methods' statistics (1 + R,) of the same draws; p values are not adjusted yet."""
    # Of the largest figure: where both are near 0, what a sum leaves is as large as they are.
    rounding = _EQUAL_WITHIN * np.nanmax(np.abs([first, second]), initial=0)
    gaps = np.where(np.abs(first - second) <= rounding, 0.0, first - second)
    if images == 1:
        return {"difference": float(gaps[0])}
    difference = dict(zip(_DIFFERENCE, bootstrap.difference_of(gaps), strict=True))
    return difference if images >= FEWEST else {**difference, "p_holm": np.nan}
