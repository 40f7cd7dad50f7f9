"""Figures of each group of images, and of the group where a method does worst."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ..metrics.bootstrap import StatisticName
from .data import DataSet
from .table import Metric, Table, readable

OF_GROUP: Final = "_in_"
"""Between the names of a metric and of the group whose figures it has."""
_WORST: Final[dict[str, StatisticName]] = {"high": "lowest_class", "low": "highest_class"}


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
