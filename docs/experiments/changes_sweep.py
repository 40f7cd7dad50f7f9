"""Some hundred changes of small models, and what every method makes of each.

``python -m docs.experiments.changes_sweep answers.jsonl`` appends an answer for each change, tower
and method to a file, goes on where it was stopped, and prints the counts by family. Right is what
plain autograd and explicit attention make of the changed model, or of a plain model that computes
the same (`tests/attr/judged.py`). A refusal is harmless where nothing is changed but the code.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch

from docs.experiments.swept import families
from docs.experiments.swept.entries import TOWERS
from tests.attr.judged import Change, judge, kind_of, methods_of, similarity_of

COLUMNS = ("right", "refused", "harmless refused", "foreign", "wrong", "unknown", "no model")


def read(path: Path) -> dict[tuple[str, ...], str]:
    """The answers that a file has, by family, change and method."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = map(json.loads, lines)
    return {(row["family"], row["change"], row["method"]): row["answer"] for row in rows}


def counted(answer: str, *, harmless: bool) -> str:
    """The column of an answer."""
    kind = kind_of(answer)
    return "harmless refused" if kind == "refused" and harmless else kind


def table(counts: dict[str, Counter[str]]) -> str:
    """Counts by family."""
    lines = [f"{'':24}" + "".join(f"{column:>18}" for column in COLUMNS)]
    total = sum(counts.values(), Counter[str]())
    for family, own in {**counts, "all": total}.items():
        lines.append(f"{family:24}" + "".join(f"{own[column]:18}" for column in COLUMNS))
    return "\n".join(lines)


def scores() -> list[float]:
    """Of the plain models, which every change must leave as they were."""
    with torch.no_grad():
        return [float(similarity_of(n)(Change(tower=n).pixels).sum()) for n in TOWERS]


def swept(path: Path, part: str, worst: int) -> None:
    """Ask for what the file does not have, and print the counts."""
    known, counts = read(path), defaultdict[str, Counter[str]](Counter)
    wrong: list[tuple[str, ...]] = []
    changes, plain = 0, scores()
    with path.open("a") as file:
        for family, entries in families().items():
            if part not in family:
                continue
            for name, entry in entries.items():
                changes += 1
                if plain != scores():
                    raise SystemExit(f"what was before {family}: {name} was not undone")
                for method in methods_of(entry.change):
                    key = (family, name, method)
                    if key not in known:
                        try:
                            known[key] = judge(entry.change, method)
                        except Exception as error:  # of an oracle's own
                            known[key] = f"no model: oracle: {error}"
                        row: dict[str, Any] = dict(
                            zip(("family", "change", "method"), key, strict=True)
                        )
                        file.write(json.dumps({**row, "answer": known[key]}) + "\n")
                        file.flush()
                    column = counted(known[key], harmless=entry.harmless)
                    counts[family][column] += 1
                    if column in ("wrong", "foreign"):
                        wrong.append((*key, known[key]))
    print(f"{changes} changes\n\n{table(counts)}\n")
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for family, name, method, answer in wrong:
        groups[family, name, answer.split(":")[0][:14]].append(method)
    for (family, name, answer), methods in sorted(groups.items())[:worst]:
        print(f"{family}: {name}: {answer}: {', '.join(methods)}")


def main() -> None:
    """Sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("answers", type=Path, help="a file of JSON lines")
    parser.add_argument("--family", default="", help="a part of the families' names")
    parser.add_argument("--worst", type=int, default=10_000, help="lines of what is wrong")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    swept(given.answers, given.family, given.worst)


if __name__ == "__main__":
    main()
