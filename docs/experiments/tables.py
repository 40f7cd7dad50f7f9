"""The tables of the documentation that stand on the embedded models, from what was measured.

``python docs/experiments/tables.py NAME`` prints one. It reads what other steps of ``measured.py``
left in their folders, and names the step that has to run first where there is nothing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from artemis import GLOBAL, LOCAL
from captum_clip.attr.registry import methods_for
from captum_clip.bench.methods import WITHOUT_MAP
from captum_clip.bench.report import SIGNIFICANT
from captum_clip.bench.study import read_mean_maps
from captum_clip.folders.bootstrap import interval_of
from captum_clip.maps import pearson, upsample
from measured import BOTH, OUT, RIVALS, recommended

OWN = {*methods_for("vit"), *methods_for("resnet")}
PARTS = ("effects", "evaluation", "right_map", "removal", "rivals_effects")
DRAWN = ("random", "uniform", "center")
BESIDE = (
    *("integrated-gradients", "occlusion", "summed-attention", "empty-text"),
    *DRAWN,
    *WITHOUT_MAP,
)
NAMES = {"vit": "ViT", "resnet": "ResNet", "siglip": "SigLIP"}
SECOND = BOTH
"""Towers of which there is a second model."""
FEW = 5
"""Methods, below which no rank correlation is shown."""


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table."""
    for cells in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(cells)} |".replace("| --- ", "|---"))


def pooled_spearman(scenes: Sequence[np.ndarray], resamples: int) -> tuple[float, float, float]:
    """Spearman's of both columns of all scenes (N, 2), and its 95 % bootstrap interval.

    It also rewards knowing how high a pair scores, which the correlation within a scene does not.
    """

    def rank(chosen: Sequence[np.ndarray]) -> float:
        rows = np.concatenate(chosen)
        return float(spearmanr(rows[:, 0], rows[:, 1]).statistic)

    drawn = np.random.default_rng(0).integers(len(scenes), size=(resamples, len(scenes)))
    samples = [scenes, *([scenes[i] for i in row] for row in drawn)]
    return tuple(interval_of(np.array([rank(sample) for sample in samples]), 0.95))


def output(step: str, name: str) -> Path:
    """A file that a step left.

    Raises:
        SystemExit: the step has not run.
    """
    path = OUT / step / name
    if not path.exists():
        raise SystemExit(
            f"{path} is not there, which the step {step} makes; first run: "
            f"python docs/experiments/measured.py {step}"
        )
    return path


def results(step: str) -> pd.DataFrame:
    """What an evaluation found: (method, metric) -> mean, low, high, images, in its own order."""
    table = pd.read_csv(output(step, "out/results.csv")).dropna(subset="mean")
    return table.set_index(["method", "metric"])


def all_results(model: str) -> pd.DataFrame:
    """What was found of an embedded model: effects, the rest, options of methods, rivals."""
    found = pd.concat([results(f"{step}_{model}") for step in PARTS])
    return found[~found.index.duplicated()]


def short(value: float, digits: int = 2) -> str:
    """``.83``, ``−.12``: what lies between -1 and 1."""
    text = f"{abs(value):.{digits}f}"
    sign = "−" if value < 0 and float(text) else ""
    return sign + (text[1:] if text.startswith("0") else text)


def interval(found: pd.DataFrame, method: str, metric: str, digits: int = 3) -> str:
    """Mean and interval, with n where others of the metric saw more images; a dash if not there."""
    if (method, metric) not in found.index:
        return "–"
    row = found.loc[(method, metric)]
    most = found.xs(metric, level="metric").images.max()
    n = f" (n = {row.images:.0f})" if row.images < most else ""
    return f"{short(row['mean'], digits)} [{short(row.low, digits)}, {short(row.high, digits)}]{n}"


def printed(step: str) -> str:
    """What a step printed."""
    return output(step, "printed.txt").read_text(encoding="utf-8")


def printed_tables(step: str) -> list[str]:
    """The Markdown tables among it."""
    return re.findall(r"(?:^\|.*\n?)+", printed(step), flags=re.MULTILINE)


def printed_rows(step: str) -> list[list[str]]:
    """The cells of the first of them, without its header."""
    lines = printed_tables(step)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def recall() -> None:
    """Of nouns, colors, feelings and backgrounds by the number of objects."""
    rows = [[f"demo/{model}", *row] for model in NAMES for row in printed_rows(f"recall_{model}")]
    markdown(("model", "objects", "nouns", "colors", "feelings", "backgrounds"), rows)


def broad() -> None:
    """Of nouns by kind of background."""
    tables = [printed_rows(f"broad_{model}") for model in NAMES]
    rows = [[rows[0][0], *(row[1] for row in rows)] for rows in zip(*tables, strict=True)]
    markdown(("scenes", *(f"demo/{model}" for model in NAMES)), rows)


def pointing() -> None:
    """Where the methods of the package point."""
    rows = []
    for model in NAMES:
        found = results(f"evaluation_{model}")
        for method in found.index.unique("method"):
            if (method, "pointing") in found.index and is_own(method):
                metrics = ("pointing", "pointing_15", "energy")
                cells = [interval(found, method, metric, 2) for metric in metrics]
                rows.append([f"demo/{model}", method, *cells])
    markdown(("tower", "method", "pointing", "within 15 pixels", "energy inside"), rows)


def is_own(method: str) -> bool:
    """Whether a method is one of this package's, with or without options."""
    return method.split(":")[0] in OWN


def label(method: str) -> str:
    """How a table calls a method; what looks at no map is marked."""
    return f"*{method}* (no map)" if method in WITHOUT_MAP else f"`{method}`"


EFFECTS = {
    f"{title}, {pairs}": f"{name}_spearman_scene{end}"
    for title, name in (("adds", "effect"), ("drop", "removal"))
    for pairs, end in (("all", ""), ("others", "_others"))
}
"""Columns of rank correlations within a scene."""

COPIES = {
    f"{kind}, {title}": f"{kind}_{truth}_rank"
    for kind in ("thirds", "identical")
    for title, truth in (("adds", "adds"), ("drop", "removal"))
}
"""Columns of rank correlations of three copies."""


def right_map() -> None:
    """Each method by the question that it answers, and its price; and what needs no map."""
    rows = []
    for model, title in NAMES.items():
        found, prices = all_results(model), prices_of(model)
        methods = [m for m in found.index.unique("method") if is_own(m)]
        for method in [*methods, *RIVALS, *DRAWN, *WITHOUT_MAP]:
            if (method, "effect_spearman_scene") not in found.index:
                continue
            cells = [
                short(found.loc[(method, metric), "mean"])
                if (method, metric) in found.index
                else "–"
                for metric in ("pointing", *EFFECTS.values(), "words_4")
            ]
            rows.append([title, label(method), *cells, price(method, prices)])
    markdown(("model", "method", "pointing", *EFFECTS, "words", "price"), rows)


GONE = ["occlusion:side=3", "noise-tunnel"]
"""What is measured by another name, or no longer."""


def copies_of(model: str) -> pd.DataFrame:
    """What was found on three copies, with the rivals on all scenes but for second models."""
    steps = [f"rivals_copies_{model}"] if model in NAMES else []
    found = [results(step) for step in (*steps, f"copies_{model}")]
    return (whole := pd.concat(found).drop(GONE, level="method", errors="ignore"))[
        ~whole.index.duplicated()
    ]


def prices_of(model: str) -> pd.Series:
    """The price of each method in forward passes, as `prices.py` counts it."""
    step = f"prices_{model.removeprefix('second-')}"
    return pd.Series({name.strip("`"): float(price) for name, price in printed_rows(step)})


def price(method: str, prices: pd.Series) -> str:
    """What a table says of it."""
    if method in WITHOUT_MAP:
        return "none"
    return f"{prices[method]:.1f}" if method in prices else "–"


def copies() -> None:
    """Which of three copies carries the score, on all models: ranks, order and price."""
    models = NAMES | {f"second-{model}": f"second {NAMES[model]}" for model in SECOND}
    rows = []
    for model, title in models.items():
        found, prices = copies_of(model), prices_of(model)
        by_removal = found.xs("thirds_removal_rank", level="metric")["mean"]
        for method in by_removal.sort_values(ascending=False, kind="stable").index:
            if (method, "thirds_adds_rank") in found.index:
                ranks = [interval(found, method, metric, 2) for metric in COPIES.values()]
                order = short(found.loc[(method, "thirds_removal_order"), "mean"])
                rows.append([title, label(method), *ranks, order, price(method, prices)])
    markdown(("model", "method", *COPIES, "order (thirds, drop)", "price"), rows)


def rivals() -> None:
    """Occlusion of windows next to the recommended `removal`: ranks, and paired differences."""
    rows = []
    for model, title in NAMES.items():
        found, prices = results(f"rivals_copies_{model}"), prices_of(model)
        for method in (recommended(model), *RIVALS):
            cells = []
            for metric in COPIES.values():
                row = found.loc[(method, metric)]
                values = (row.difference, row.difference_low, row.difference_high)
                gap, low, high = ("+" * int(v > 0) + short(v) for v in values)
                mark = "\\*" * int(row.p_holm < SIGNIFICANT)
                paired = "" if pd.isna(row.difference) else f" ({gap} [{low}, {high}]{mark})"
                cells.append(short(row["mean"]) + paired)
            rows.append([title, label(method), price(method, prices), *cells])
    markdown(("model", "method", "price", *COPIES), rows)


def excerpt() -> None:
    """What the page of the evaluation shows of all tables: methods without options, and others."""
    metrics = {
        "pointing": "pointing",
        "coverage": "coverage",
        "mean IoU": "mean_iou",
        "adds, all": "effect_spearman_scene",
        "drop, others: balanced accuracy": "removal_balanced_others",
        "deletion gap, mean color": "gap_mean_predicted",
        "faithfulness": "faithfulness_correlation",
        "four words": "words_4",
    }
    rows = []
    for model in NAMES:
        found = all_results(model)
        for method in found.index.unique("method"):
            if method in OWN or method in (*RIVALS, *BESIDE):
                cells = [interval(found, method, metric) for metric in metrics.values()]
                rows.append([f"demo/{model}", method, *cells])
    markdown(("tower", "method", *metrics), rows)


def rankings() -> None:
    """Each figure on the embedded model and on a second one, and how far both order the methods."""
    metrics = {
        "pointing": "pointing",
        **EFFECTS,
        "deletion gap": "gap_mean_predicted",
        "faithfulness": "faithfulness_correlation",
        "four words": "words_4",
    }
    rows = []
    for model in SECOND:
        title = NAMES[model]
        other = pd.concat([results(f"{step}_{model}") for step in ("second_effects", "second")])
        other = other[~other.index.duplicated()]
        second = other.index.unique("method")
        methods = [m for m in second if is_own(m) or m in WITHOUT_MAP]
        pair = [each["mean"].unstack() for each in (all_results(model), other)]
        first, second = (found.reindex(methods, columns=[*metrics.values()]) for found in pair)
        for method in methods:
            both = zip(first.loc[method], second.loc[method], strict=True)
            cells = [" / ".join("–" if pd.isna(v) else short(v) for v in values) for values in both]
            rows.append([title, label(method), *cells])
        own = [method for method in methods if is_own(method)]
        if len(own) < FEW:
            continue
        ranks = [table.loc[own].rank() for table in (first, second)]
        order = [short(ranks[0][m].corr(ranks[1][m])) for m in metrics.values()]
        rows.append([title, "*order*", *order])
    markdown(("model", "method", *metrics), rows)


def pair_estimators() -> None:
    """Each estimator of the interaction of word and object, by tower."""
    estimators = {
        "`DirectInteraction`": ("direct", "share"),
        '`DirectInteraction`, `depth="all"`': ("conservative", "share"),
        "difference, `direct`": ("direct", "difference"),
        "difference, `conservative`": ("conservative", "difference"),
        "product of both sides, `direct`": ("direct", "product"),
        "product of both sides, `conservative`": ("conservative", "product"),
        "random": ("random", "difference"),
        **{label(name): (name, "difference") for name in WITHOUT_MAP},
    }
    metrics = {
        "*I*, all": "interaction_scene",
        "*I*, others": "interaction_scene_others",
        "index, all": "index_scene",
        "index, others": "index_scene_others",
        "pointing": "pointing",
    }
    rows = []
    for model in NAMES:
        found = results(f"pairs_{model}")
        for title, (method, estimator) in estimators.items():
            if (method, f"{estimator}_interaction_scene") in found.index:
                names = (f"{estimator}_{metric}" for metric in metrics.values())
                cells = [interval(found, method, name, 2) for name in names]
                rows.append([f"demo/{model}", title, *cells])
    markdown(("tower", "estimator", *metrics), rows)


def against_images() -> None:
    """Where maps against an image of the noun point, and those against its text."""
    shown = {
        "vit": ("last-grad", "attention-grad-cam", "all-grad", "direct"),
        "resnet": ("grad-cam", "direct"),
    }
    rows = []
    for model, methods in shown.items():
        image, text = results(f"image_{model}"), results(f"evaluation_{model}")
        for method in methods:
            of_text = short(text.loc[(method, "pointing"), "mean"], 3)
            cells = [interval(image, method, "pointing"), of_text]
            rows.append([f"{NAMES[model]}, {method}", *cells])
    markdown(("map", "against an image", "against a text"), rows)


def tag(metric: str, digits: int, parts: Sequence[str]) -> None:
    """Maps on the tag and on the object, of the shortcut model and of the control."""
    titles = {
        "shortcut": "on the tag",
        "shortcut-object": "on the object",
        "shortcut-other": "other text, on the tag",
    }
    models = ("shortcut", "vit")
    found = {(part, m): results(f"{part}_{m}") for part in parts for m in models}
    header = [
        f"{titles[part]}: shortcut" if model == "shortcut" else "demo/vit" for part, model in found
    ]
    rows = []
    for method in found["shortcut", "shortcut"].index.unique("method"):
        tables = found.values()
        if method not in GONE and all((method, metric) in table.index for table in tables):
            cells = [interval(table, method, metric, digits) for table in tables]
            rows.append([method, *cells])
    markdown(("method", *header), rows)


def emotions() -> None:
    """Statistics of the mean maps of eight emotions on two towers."""
    file = output("study", "out/statistics.csv")
    table, pair = pd.read_csv(file), read_mean_maps(file.parent)
    size = tuple(map(max, *(found.means.shape[-2:] for found in pair)))
    first, second = (upsample(torch.from_numpy(found.means), size).flatten(1) for found in pair)
    towers = dict(zip(pair[0].names, pearson(first, second).tolist(), strict=True))
    by_model = {
        model: table[table.model.str.contains(model)].set_index("target")
        for model in ("vit", "resnet")
    }
    columns = {
        "variance": ("spatial_variance", 4),
        "entropy": ("spatial_entropy", 2),
        "entropy of values": ("value_entropy", 2),
        "center bias": ("center_bias", 2),
    }
    header = [f"{name}, {NAMES[model]}" for name in columns for model in by_model]
    rows = []
    for emotion in (*LOCAL, *GLOBAL):  # the centered ones have the same maps
        cells = [
            f"{rows_of.loc[emotion, column]:.{digits}f}"
            for column, digits in columns.values()
            for rows_of in by_model.values()
        ]
        kind = "local" if emotion in LOCAL else "global"
        rows.append([emotion, kind, *cells, f"{towers[emotion]:.2f}"])
    markdown(("emotion", "kind", *header, "towers"), rows)


def emotion_pointing() -> None:
    """Where the maps of emotions point, from what ``artemis.py check`` printed."""
    pattern = r"^(\w+) +(local|global) +\d+ +([\d.]+) +([\d.]+)"
    found = re.findall(pattern, printed("thousand"), flags=re.MULTILINE)
    cells: dict[str, list[str]] = {}
    for name, kind, *values in found:  # of one model, then of the other
        cells.setdefault(name, [name, kind]).append(" / ".join(short(float(v)) for v in values))
    rows = [cells[name] for name in (*LOCAL, *GLOBAL)]
    markdown(("emotion", "kind", "demo/vit, last-grad", "demo/resnet, grad-cam"), rows)


TABLES: dict[str, Callable[[], None]] = {
    "recall": recall,
    "broad": broad,
    "pointing": pointing,
    "copies_ranks": copies,
    "rivals": rivals,
    "right_map": right_map,
    "excerpt": excerpt,
    "rankings": rankings,
    "pair_estimators": pair_estimators,
    "against_images": against_images,
    "shortcut_effects": lambda: print(printed_tables("recall_shortcut")[0], end=""),
    "shortcut_named": lambda: print(printed_tables("recall_shortcut")[1], end=""),
    "shortcut_recall": lambda: print(printed_tables("recall_shortcut")[2], end=""),
    "tag_pointing": lambda: tag(
        "pointing_15", 2, ("shortcut", "shortcut-object", "shortcut-other")
    ),
    "tag_energy": lambda: tag("energy", 3, ("shortcut", "shortcut-object")),
    "emotions_table": emotions,
    "emotion_pointing": emotion_pointing,
}

if __name__ == "__main__":
    TABLES[sys.argv[1]]()
