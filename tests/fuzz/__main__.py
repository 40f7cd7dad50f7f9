"""``python -m tests.fuzz``: random calls and command lines, and each that ends badly.

An end is bad where the error is not ours, or a command's exit code is none of 0, 1 and 2.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz import calls, command_lines

KINDS = {"calls": calls.failures, "commands": command_lines.failures}
AT_ONCE = 200

parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
parser.add_argument("--cases", type=int, default=15_000, metavar="N", help="of both kinds together")
parser.add_argument("--only", choices=KINDS, help="one kind")
parser.add_argument("--minutes", type=float, default=float("inf"), metavar="M", help="at most")
parser.add_argument("--seed", type=int, default=0, metavar="S")
arguments = parser.parse_args()
kinds = [arguments.only] if arguments.only else list(KINDS)
for kind in kinds:
    counts: Counter[str] = Counter()
    cases, start, done, took = arguments.cases // len(kinds), time.monotonic(), 0, 0.0
    while done < cases and took < 60 * arguments.minutes / len(kinds):
        count, seed = min(AT_ONCE, cases - done), arguments.seed + done
        with tempfile.TemporaryDirectory() as folder:
            for failure in KINDS[kind](Path(folder), count, seed):
                counts[failure.call] += 1
                print(f"seed {seed}, case {failure.case}, {failure.call}\n{failure.text}")
        done, took = done + count, time.monotonic() - start
    bad = f"{sum(counts.values())} ended badly: {dict(counts)}"
    print(f"{done:,} {kind} in {took:.0f} s, {bad}", flush=True)
