"""``python -m tests.fuzz``: random calls, and each that ends in an error which is not ours."""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from tests.fuzz.calls import failures

parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
parser.add_argument("--cases", type=int, default=15_000, metavar="N")
parser.add_argument("--seed", type=int, default=0, metavar="S")
arguments = parser.parse_args()
counts: Counter[str] = Counter()
with tempfile.TemporaryDirectory() as folder:
    for failure in failures(Path(folder), arguments.cases, arguments.seed):
        counts[failure.call] += 1
        print(f"case {failure.case}, {failure.call}\n{failure.text}")
print(f"{arguments.cases:,} calls, {sum(counts.values())} ended in another error: {dict(counts)}")
