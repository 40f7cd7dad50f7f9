"""From measured values to figures: the long table, its groups, and each method by each metric.

The table has a row for each measured value; a summary has intervals and differences to a reference.
"""

import json
import math
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
"""The baseline whose map is the same everywhere; its figures are those of a constant answer."""
OF_GROUP: Final = "_in_"
"""Joins the name of a metric to that of the group of samples over which it is taken."""
_WORST: Final[dict[str, StatisticName]] = {"high": "lowest_class", "low": "highest_class"}
_DIFFERENCE: Final = ("difference", "difference_low", "difference_high", "p_holm")
_FIGURES: Final = (
    *("method", "metric", "mean", "low", "high", "images", "rows", *_DIFFERENCE),
    *("reference", "images_paired", "better"),
)
_UNMEASURED: Final = {"images": 0, "rows": 0, "images_paired": 0}
_HALVINGS: Final = 200
_EQUAL_WITHIN: Final = 1e-12
"""Figures are equal if they differ by less than this share of the largest of them."""


@dataclass(frozen=True)
class Metric:
    """A column of the tables.

    Attributes:
        name: lower-case words joined by "_", such as "pointing".
        protocol: one line with every choice: fill, threshold, area, chance level, number of draws.
        better: which way is good; "none" if the figure only describes.
        statistic: how the figure is computed from the rows of the long table. It is a key of
            :data:`captum_clip.folders.bootstrap.PARTS`, which lists the parts that it needs.
        constant: the figure of a constant answer, if it is known beforehand. Only figures that are
            better than it are bold.
        rival: the method that this metric compares the others with. Only figures that are better
            than the rival's after Holm's correction are bold. None stands for the reference of the
            evaluation, which a bold figure need not beat.
    """

    name: str
    protocol: str
    better: Literal["high", "low", "none"] = "high"
    statistic: StatisticName = "mean"
    constant: float | None = None
    rival: str | None = None


def listed(section: str, **fields: Any) -> dict[str, list[Metric]]:
    """Return the metrics of a section of ``metrics.json`` by the titles of their tables.

    A section has its tables by title, each with its metrics as :class:`Metric` has them. `fields`
    fill the placeholders in names, protocols and titles. If the section has `each`, all its tables
    are repeated for each of these further sets of fields.
    """
    content = _SECTIONS[section]
    tables = defaultdict[str, list[Metric]](list)
    for further_fields in content.get("each", [{}]):
        placeholders = {**fields, **further_fields}
        for title, metrics in content["tables"].items():
            full_title = title.format(**placeholders)
            for metric in metrics:
                name = metric["name"].format(**placeholders)
                protocol = metric["protocol"].format(**placeholders)
                filled = Metric(**{**metric, "name": name, "protocol": protocol})
                tables[full_title].append(filled)
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
    """Return the rows of one metric, as columns.

    Args:
        metric: its name.
        values: (N,), or (N,) of each part if the metric's statistic needs several. If any part of a
            row is not finite, the row is left out with all its parts.
        samples: (N,) numbers of the samples.
        regions: (N,) what is explained in each, unique in its sample.
        x: where on a curve the values stand.
        chance: (N,) or one number that takes the place of NaN, so that an empty map gets the value
            of a random answer. If it were left out, it would count as neither right nor wrong.
    """
    parts = values if isinstance(values, Mapping) else {"": values}
    columns = []
    for column in parts.values():
        chance_values = torch.as_tensor(chance).to(column)
        columns.append(torch.where(column.isnan(), chance_values, column).double())
    table = torch.stack(columns).cpu().numpy()  # (C, N)
    is_finite = np.isfinite(table).all(0)
    numbers = np.asarray(samples, dtype=np.int64)[is_finite]
    texts = np.array([readable(region) for region in regions], dtype=np.str_)[is_finite]
    row_count = len(parts) * len(numbers)
    return {
        "metric": np.full(row_count, metric),
        "sample": np.tile(numbers, len(parts)),
        "region": np.tile(texts, len(parts)),
        "part": np.repeat(np.array(list(parts)), len(numbers)),
        "x": np.full(row_count, x),
        "value": table[:, is_finite].ravel(),
    }


def table_of(method: str, rows: Mapping[str, Sequence[Arrays]]) -> Arrays:
    """Return the columns of one method's table, from the blocks of :func:`rows_of` of each task."""
    # The block without rows gives every column its type, even if nothing was measured.
    empty_block = rows_of("", torch.zeros(0), [], [])
    empty_block["task"] = np.empty(0, np.str_)
    blocks = [empty_block]
    for task, task_blocks in rows.items():
        for block in task_blocks:
            tasks = np.full(len(block["value"]), task)
            blocks.append({**block, "task": tasks})
    columns: Arrays = {}
    for name in empty_block:
        columns[name] = np.concatenate([block[name] for block in blocks])
    columns["method"] = np.full(len(columns["value"]), method)
    return columns


def join_tables(units: Iterable[tuple[Arrays, Sequence[str]]]) -> Table:
    """Join the tables of several units.

    Texts become categories in the order in which they occur, and samples in the order of their data
    sets.

    Args:
        units: the columns of each unit, with the names of the samples that it numbers.
    """
    import pandas as pd

    tables = []
    sample_names: dict[str, None] = {}
    for columns, names in units:
        readable_names = [readable(name) for name in names]
        sample_names.update(dict.fromkeys(readable_names))
        samples = np.array(readable_names, dtype=object)[columns["sample"]]
        table = pd.DataFrame({name: columns[name] for name in COLUMNS}).assign(sample=samples)
        # There are few different texts, and long ones, so categories save most of the memory.
        tables.append(table.astype(dict.fromkeys(_CATEGORIES, "category")))
    # Tables with different categories are joined as plain objects, so categories are made again.
    whole = pd.concat(tables, ignore_index=True)
    categories = {name: pd.Categorical(whole[name], whole[name].unique()) for name in _CATEGORIES}
    categories["sample"] = pd.Categorical(whole["sample"], list(sample_names))
    return whole.assign(**categories)


def readable(name: str) -> str:
    """Return a name with those bytes escaped that are no Unicode, since pandas refuses them."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass(frozen=True, eq=False)
class Queries:
    """N images with one target each."""

    pixels: Tensor  # (N, 3, H, W), preprocessed
    embeddings: Tensor  # (N, D), the targets
    names: tuple[str, ...]  # of the samples
    texts: tuple[str, ...]  # the names of the targets
    numbers: tuple[int, ...]  # of the samples; they seed the random baseline

    def __len__(self) -> int:
        return len(self.pixels)

    def select(self, indices: Sequence[int]) -> "Queries":
        """Return the queries with these indices, in the given order."""
        kept = list(indices)
        return Queries(
            pixels=self.pixels[kept],
            embeddings=self.embeddings[kept],
            names=tuple(self.names[index] for index in kept),
            texts=tuple(self.texts[index] for index in kept),
            numbers=tuple(self.numbers[index] for index in kept),
        )

    def split(self, size: int) -> "list[Queries]":
        """Return all queries in chunks of at most `size`."""
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
        """Return the rows of one metric that was measured on these queries, by :func:`rows_of`."""
        return rows_of(metric, values, self.numbers, self.texts, x=x, chance=chance)


def with_groups(
    table: Table, tables: Mapping[str, Sequence[Metric]], data: Iterable[DataSet]
) -> tuple[Table, dict[str, Sequence[Metric]]]:
    """Add rows and tables of the worst group and of each single group, for metrics that are means.

    The worst group is the one with the lowest mean, or with the highest if low is good. Each
    resample finds its own worst group.
    """
    import pandas as pd

    group_of_sample: dict[str, str] = {}
    for data_set in data:
        for name, group in data_set.groups.items():
            group_of_sample[readable(name)] = group
    groups = table["sample"].astype(str).map(group_of_sample).astype("category")
    group_names = list(groups.cat.categories)
    if group_names:
        group_names.insert(0, "worst_group")

    blocks = [table]
    all_tables = dict(tables)
    for group in group_names:
        is_chosen = groups.notna() if group == "worst_group" else groups == group
        chosen = table[is_chosen]
        chosen = chosen.assign(metric=chosen["metric"].astype(str) + f"{OF_GROUP}{group}")
        # The statistics of the worst class sum an intersection and a union for each class, and
        # divide them. With the code of the group as class and unions of 1, that is its mean.
        # Samples of no group have the code -1, but they are not among the chosen rows.
        blocks.append(chosen.assign(part="class", value=groups.cat.codes))
        blocks.append(chosen.assign(part="intersection"))
        blocks.append(chosen.assign(part="union", value=1.0))
        for title, metrics in tables.items():
            group_metrics = []
            for metric in metrics:
                if metric.statistic == "mean" and metric.better != "none":
                    name = f"{metric.name}{OF_GROUP}{group}"
                    statistic = _WORST[metric.better]
                    group_metrics.append(replace(metric, name=name, statistic=statistic))
            all_tables[f"{title}: {group.replace('_', ' ')}"] = group_metrics
    filled = {title: metrics for title, metrics in all_tables.items() if metrics}
    return pd.concat(blocks, ignore_index=True), filled


class Check(NamedTuple):
    """A figure of the model next to chance; `low` and `high` are the ends of their difference."""

    figure: float
    chance: float
    low: float
    high: float
    images: int


@dataclass(frozen=True)
class Gate:
    r"""How far a model is above chance on the texts and objects of a data set.

    It says no more than that: a model that knows a tenth of the nouns, or shows a tenth of the
    effect, passes.

    *Recall*: for an image that n texts name, the share of them among the n best of all texts of the
    data. By chance: how often they are among the n best of images that they do not name.

    *Effect*: the mean over objects of :math:`|\phi|`, the Shapley effect on a text that names the
    image. By chance: the same for the other texts.

    If embeddings of texts have nothing to do with their meaning, both differences are zero on
    average. Their intervals are those of :func:`captum_clip.metrics.bootstrap_mean`, over images
    and over texts, of which the wider ends count. If the lower end is not above 0, the figure is at
    chance.

    Attributes:
        data: name of the data set.
        checks: those that the data allow; empty if no text tells one image from another.
    """

    data: str
    checks: Mapping[str, Check]

    @property
    def is_above_chance(self) -> bool:
        """Whether every figure is above chance."""
        return all(check.low > 0 for check in self.checks.values())

    def __str__(self) -> str:
        if not self.checks:
            way = "add images that show other texts: each text needs some with and some without it"
            return f"{self.data}: whether the model is above chance cannot be told; {way}."
        verdict = "above chance on what is asked"
        if not self.is_above_chance:
            verdict = "this model is at chance on what is asked; do not interpret"
        figures = []
        for name, check in self.checks.items():
            difference = check.figure - check.chance
            figures.append(
                f"{name} {check.figure:.3g}, by chance {check.chance:.3g}, difference "
                f"{difference:+.3g} [{check.low:+.3g}, {check.high:+.3g}] on {check.images} images"
            )
        return f"{self.data}: {verdict} ({'; '.join(figures)})."


@dataclass(frozen=True, eq=False)
class Summary:
    """The figures of all methods by all metrics.

    Attributes:
        figures: a row for each method and metric, with the columns of ``results.csv``, not rounded.
            A field is NaN if nothing was measured, or if the statistic is undefined (a rank
            correlation with a constant). `difference` is to the reference, over the regions that
            both have. `p_holm` is adjusted for all methods that the metric compares with it; it is
            NaN below `FEWEST` images.
        groups: title -> metrics that belong together.
        methods: all methods, in the order of the tables.
        baselines: those methods that are listed separately.
        without_map: those baselines that use no map.
        reference: the method that the others are compared with.
        resamples: number of resamples that intervals and p values come from.
        seed: seed of the resampling.
        gates: for each data set, whether the model is above chance on it.
        unknown: names of metrics over data on which the model is at chance; they name no winner.
        reliability: metric with a rival -> how far random halves of the images agree on the order
            of the methods. It is the mean rank correlation, and NaN below three methods.
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
        """The smallest adjusted p value that this many resamples and comparisons make possible."""
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
    r"""Compute each method's figure by each metric, and its difference to a reference method.

    The bootstrap draws whole images, as many as there are, with replacement. Methods with the same
    images see the same draws, and a difference is taken resample by resample over the regions that
    both methods have, so it is paired:

    .. math:: d^*_r = T(\text{rows of the method in resample } r)
                    - T(\text{rows of the reference in resample } r)

    with T the metric's statistic over these rows of the images drawn. Intervals are percentiles. P
    values are those of :func:`captum_clip.metrics.paired_difference`, adjusted by Holm over all
    methods but the reference. Below `FEWEST` images there is no p value, and for a single image
    there is no interval either (NaN). Resamples with an undefined statistic are left out.

    The table is long, as :mod:`captum_clip.bench.table` has it. A method without rows of a metric
    was not measured by it. The other arguments are those of :class:`Summary`.

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

    ranked_methods = {*methods} - {*baselines}
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    reliability: dict[str, float] = {}
    for metric in metrics:
        if metric.name in rows:
            metric_rows = rows[metric.name]
            compared_with = metric.rival or reference
            figures[metric.name] = _figures_of_metric(metric, metric_rows, compared_with, resample)
            if metric.rival:
                agreement = _reliability(metric, metric_rows, ranked_methods, seed)
                reliability[metric.name] = agreement

    records = []
    for method in methods:
        for metric in metrics:
            figures_by_method = figures.get(metric.name, {})
            records.append(
                {
                    "method": method,
                    "metric": metric.name,
                    **figures_by_method.get(method, _UNMEASURED),
                    "reference": metric.rival or reference,
                    "better": metric.better,
                }
            )
    floats = dict.fromkeys(("mean", "low", "high", *_DIFFERENCE), float)
    return Summary(
        figures=pd.DataFrame(records, columns=list(_FIGURES)).astype(floats),
        groups=groups,
        methods=list(methods),
        baselines=list(baselines),
        without_map=list(without_map),
        reference=reference,
        resamples=resamples,
        seed=seed,
        reliability=reliability,
    )


def _reliability(metric: Metric, rows: Table, methods: Collection[str], seed: int) -> float:
    """Return how far random halves of the images agree on the order of the methods.

    It is the mean rank correlation, over the methods that were measured on every image; NaN below
    three of them.
    """
    import pandas as pd

    parts = PARTS[metric.statistic]
    chosen = rows[rows["method"].isin(methods)]
    wide = chosen.pivot_table("value", "image", ["part", "method"]).dropna(axis=1)
    # A method has a column for each part.
    if len(wide.columns) <= 2 * len(parts):
        return math.nan
    generator = np.random.default_rng(seed)
    correlations = []
    for _ in range(_HALVINGS):
        is_first = generator.permutation(len(wide)) % 2 == 0
        figures = []
        for half in (is_first, ~is_first):
            figure = wide[parts[0]][half].sum()
            # A mean has no denominator. Sums have the same order as means, since all methods have
            # the same images here.
            if len(parts) > 1:
                figure = figure / wide[parts[1]][half].sum()
            figures.append(figure)
        correlations.append(figures[0].corr(figures[1], method="spearman"))
    # Pandas leaves out the halvings in which all methods are equal, so that there is no order.
    return float(pd.Series(correlations, dtype=float).mean())


class _RowSet(NamedTuple):
    """Names the rows that a statistic is computed over.

    These are "all" rows of a method, its rows of the regions that it has in common with the
    reference ("shared"), or the rows of the "reference" for these regions.
    """

    method: str
    role: Literal["all", "shared", "reference"]


class _Resampled(NamedTuple):
    """A statistic over a set of rows."""

    images: int
    figures: Array  # (1 + R,), over all images and over each resample


def _figures_of_metric(
    metric: Metric, rows: Table, reference: str, resample: Callable[[Array], Array]
) -> dict[str, dict[str, Any]]:
    """Return the figures of each method that has rows."""
    image_of_region = rows.drop_duplicates("number").set_index("number")["image"]
    wide = rows.pivot_table("value", "number", ["method", "part"], aggfunc="first")
    parts = list(PARTS[metric.statistic])
    measured: dict[str, Table] = {}
    for method in rows["method"].unique():
        measured[method] = wide.xs(method, axis=1, level="method")[parts].dropna()

    row_sets = {_RowSet(method, "all"): table for method, table in measured.items()}
    if reference in measured:
        reference_table = measured[reference]
        for method, table in measured.items():
            shared = table.index.intersection(reference_table.index)
            if method != reference and len(shared) > 0:
                row_sets[_RowSet(method, "shared")] = table.loc[shared]
                row_sets[_RowSet(method, "reference")] = reference_table.loc[shared]
    resampled = _resample_all(metric.statistic, row_sets, image_of_region, resample)

    figures: dict[str, dict[str, Any]] = {}
    for method, table in measured.items():
        alone = resampled[_RowSet(method, "all")]
        interval = bootstrap.interval_of(alone.figures)
        row: dict[str, Any] = {"mean": interval.mean}
        if alone.images > 1:  # A single image tells nothing of others.
            row["low"] = interval.low
            row["high"] = interval.high
        row["images"] = alone.images
        row["rows"] = len(table)
        shared_rows = resampled.get(_RowSet(method, "shared"))
        if method == reference:
            row["images_paired"] = alone.images
        elif shared_rows is None:
            row["images_paired"] = 0
        else:
            row["images_paired"] = shared_rows.images
            reference_rows = resampled[_RowSet(method, "reference")]
            row |= _paired(shared_rows.figures, reference_rows.figures, shared_rows.images)
        figures[method] = row

    _adjust_p_values(figures.values())
    return figures


def _adjust_p_values(figures: Iterable[dict[str, Any]]) -> None:
    """Replace the p values of all methods by those that Holm's procedure adjusts."""
    # A method that was not tested is not in the family of tests.
    tested = [row for row in figures if not math.isnan(row.get("p_holm", math.nan))]
    adjusted = holm([row["p_holm"] for row in tested]).tolist()
    for row, p_value in zip(tested, adjusted, strict=True):
        row["p_holm"] = p_value


def _resample_all(
    statistic: StatisticName,
    row_sets: Mapping[_RowSet, Table],
    image_of_region: Any,
    resample: Callable[[Array], Array],
) -> dict[_RowSet, _Resampled]:
    """Compute the statistic of each set of rows; sets of as many images share their draws."""
    sums: dict[_RowSet, Array] = {}
    for row_set, table in row_sets.items():
        images, index = np.unique(image_of_region.loc[table.index], return_inverse=True)
        values = table.to_numpy(np.float64)
        sums[row_set] = bootstrap.image_sums(statistic, index, values, len(images))

    resampled: dict[_RowSet, _Resampled] = {}
    for count in {len(image_sums) for image_sums in sums.values()}:
        # Drawing takes most of the time, so it is done once for all sets of this many images.
        alike = {row_set: sums[row_set] for row_set in sums if len(sums[row_set]) == count}
        joined = resample(np.concatenate(list(alike.values()), axis=1))
        ends = np.cumsum([image_sums.shape[1] for image_sums in alike.values()])
        parts = np.split(joined, ends[:-1], axis=1)
        for row_set, part in zip(alike, parts, strict=True):
            resampled[row_set] = _Resampled(count, bootstrap.figures_of(statistic, part))
    return resampled


def _paired(first: Array, second: Array, images: int) -> dict[str, float]:
    """Compare two methods' statistics (1 + R,) of the same draws; p values are not adjusted yet."""
    # The bound is a share of the largest figure, since a sum of figures near 0 leaves an error that
    # is as large as they are.
    rounding = _EQUAL_WITHIN * np.nanmax(np.abs([first, second]), initial=0)
    differences = first - second
    differences = np.where(np.abs(differences) <= rounding, 0.0, differences)
    if images == 1:
        return {"difference": float(differences[0])}
    mean, low, high, p_value = bootstrap.difference_of(differences)
    return {
        "difference": mean,
        "difference_low": low,
        "difference_high": high,
        "p_holm": p_value if images >= FEWEST else np.nan,
    }
