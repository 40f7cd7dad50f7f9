"""All findings of one evaluation: every method by every metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .metric import Metric, Rows
from .statistics import LEVEL, RESAMPLES, Finding, compare


@dataclass(frozen=True)
class Findings:
    """What all methods reach by all metrics.

    Attributes:
        groups: title -> metrics that belong together.
        methods: all of them, in the order of the tables.
        baselines: those of them that stand apart.
        reference: the method that the others are compared with.
        found: name of the metric -> method -> finding.
        level: of the intervals.
        resamples: that intervals and p values come from.
    """

    groups: Mapping[str, Sequence[Metric]]
    methods: Sequence[str]
    baselines: Sequence[str]
    reference: str
    found: Mapping[str, Mapping[str, Finding]]
    level: float
    resamples: int

    @property
    def metrics(self) -> list[Metric]:
        """Of all groups."""
        return [metric for group in self.groups.values() for metric in group]

    @property
    def least_p(self) -> float:
        """The smallest adjusted p value that so many resamples and comparisons leave possible."""
        tested = [sum(f.p_holm is not None for f in by.values()) for by in self.found.values()]
        return min(1.0, 2 * max(tested, default=0) / (self.resamples + 1))


def summarize(
    groups: Mapping[str, Sequence[Metric]],
    rows: Mapping[str, Mapping[str, Rows]],
    *,
    reference: str,
    baselines: Sequence[str] = (),
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Findings:
    """Compare all methods by all metrics.

    Args:
        groups: title -> metrics that belong together.
        rows: method -> name of the metric -> its rows; a metric that is missing there, or has no
            rows, was not measured.
        reference: the method that the others are compared with.
        baselines: names of methods that stand apart in the tables.
        level: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InputError: no metric, two of one name, a reference or baseline that is not among the
            methods, rows of a metric that is not in any group, and what
            :func:`captum_clip.evaluation.statistics.compare` refuses.
    """
    metrics = [metric for group in groups.values() for metric in group]
    _check([metric.name for metric in metrics], rows, [reference, *baselines])
    nothing = Rows(np.empty(0, dtype=np.int64), np.empty((0, 0)))
    found = {
        metric.name: compare(
            metric,
            {method: given.get(metric.name, nothing) for method, given in rows.items()},
            reference=reference,
            level=level,
            resamples=resamples,
            seed=seed,
        )
        for metric in metrics
    }
    return Findings(groups, list(rows), list(baselines), reference, found, level, resamples)


def _check(
    metrics: Sequence[str], rows: Mapping[str, Mapping[str, Rows]], named: Sequence[str]
) -> None:
    twice = [name for name, times in Counter(metrics).items() if times > 1]
    if not metrics or twice:
        raise InputError(
            f"summarize: expected one or more metrics, each of its own name, got "
            f"{f'{twice} twice' if twice else 'none'}."
        )
    missing = [method for method in named if method not in rows]
    if missing:
        raise InputError(
            f"summarize: the reference or baseline {missing[0]!r} is not among the methods "
            f"{list(rows)}."
        )
    for method, given in rows.items():
        unknown = [name for name in given if name not in metrics]
        if unknown:
            raise InputError(
                f"summarize: {method!r} has rows of {unknown[0]!r}, which is not among the metrics "
                f"{list(metrics)}."
            )
