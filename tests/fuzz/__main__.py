"""``python -m tests.fuzz``: random calls, calls with an argument of a wrong kind, command lines.

Each that ends badly is printed: the error is not ours ("foreign"), a command's exit code is none of
0, 1 and 2, or the call ran out of its time.
"""

import argparse
import time
from collections import Counter

from tests.fuzz import calls, command_lines, hostile
from tests.fuzz.ends import watched

KINDS = {"calls": calls.ends, "kinds": hostile.ends, "commands": command_lines.ends}

parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
parser.add_argument("--cases", type=int, default=15_000, metavar="N", help="of all three together")
parser.add_argument("--first", type=int, default=0, metavar="I", help="number of the first case")
parser.add_argument("--only", choices=KINDS, help="one kind")
parser.add_argument("--minutes", type=float, default=float("inf"), metavar="M", help="at most")
parser.add_argument("--seed", type=int, default=0, metavar="S")
arguments = parser.parse_args()
kinds = [arguments.only] if arguments.only else list(KINDS)
for kind in kinds:
    bad: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    start = time.monotonic()
    until = start + 60 * arguments.minutes / len(kinds)
    cases = range(arguments.first, arguments.first + arguments.cases // len(kinds))
    for end in watched(KINDS[kind], cases, arguments.seed, until):
        counts[end.how] += 1
        if end.text:
            bad[end.call] += 1
            print(f"case {end.case}, {end.call}: {end.how}\n{end.text}", flush=True)
    took = time.monotonic() - start
    print(
        f"{counts.total():,} {kind} in {took:.0f} s: {dict(counts)}; bad: {dict(bad)}", flush=True
    )
