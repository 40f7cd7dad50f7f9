"""Kernels that a call launches: its operators of aten, without views and without allocation.

``python -m tests.kernels`` prints the table of `tests/test_kernels.py` as it is, and
``python -m tests.kernels direct 8`` a method's kernels by operator and by the line that runs them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import captum_clip
from captum_clip import attr
from captum_clip.explaining.check import Price
from tests.benchmarks import towers

PACKAGE = Path(captum_clip.__file__).parent


class Kernel(NamedTuple):
    """An operator, and the innermost line of the package that runs it."""

    operator: str
    line: str


class Kernels(TorchDispatchMode):
    """Counts the operators that launch a kernel: they return new values, or write into a tensor."""

    def __init__(self, *, lines: bool = False) -> None:
        super().__init__()
        self.counts: Counter[Kernel] = Counter()
        self.lines = lines

    @property
    def total(self) -> int:
        """Kernels of all operators."""
        return self.counts.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if Price.launches(func):
            name = func.overloadpacket.__name__
            self.counts[Kernel(name, _line() if self.lines else "")] += 1
        return func(*args, **(kwargs or {}))


def _line() -> str:
    """The innermost line of the package on the stack."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parents:
            place = f"{path.relative_to(PACKAGE)}:{frame.f_lineno}"
            return f"{place} {frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


@cache
def tower() -> towers.Tower:
    """A `CLIPModel` of twelve layers as ViT-B/32 has; narrow, which changes no count."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return towers.transformers_vit("ViT-B/32", width=128)


def counted(run: Callable[[], object], *, lines: bool = False) -> tuple[Kernels, Kernels]:
    """The kernels of a first call, which looks at the model, and of a second."""
    with Kernels(lines=lines) as first:
        run()
    with Kernels(lines=lines) as second:
        run()
    return first, second


def kernels(method: str, texts: int = 1, *, lines: bool = False) -> tuple[Kernels, Kernels]:
    """The kernels of a method's first and second call on one image, or of the plain `forward`."""
    images = tower().images(1, seed=0)
    if method == "forward":
        return counted(tower().plain(images), lines=lines)
    explainer = attr.METHODS[method](tower().similarity(texts, seed=0))
    return counted(lambda: explainer.attribute_targets(images), lines=lines)


def _print_method(method: str, texts: int) -> None:
    first, second = kernels(method, texts, lines=True)
    (_, forward), operators = kernels("forward"), Counter[str]()
    plain = Counter({kernel.operator: count for kernel, count in forward.counts.items()})
    for kernel, count in second.counts.items():
        operators[kernel.operator] += count
    print(f"{method}, {texts} texts: {second.total} kernels; the first call {first.total}\n")
    print(f"{'operator':46}{'forward':>9}{method:>20}")
    for name, count in operators.most_common():
        print(f"{name:46}{plain[name]:9}{count:20}")
    print()
    for kernel, count in second.counts.most_common():
        print(f"{count:5}  {kernel.operator:43} {kernel.line}")


def _print_table() -> None:
    from tests.test_kernels import BOUNDS

    print(f"{'method':20}{'texts':>6}{'kernels':>9}{'bound':>7}{'first call':>12}")
    for (method, texts), bound in BOUNDS.items():
        first, second = kernels(method, texts)
        print(f"{method:20}{texts:6}{second.total:9}{bound:7}{first.total:12}")


if __name__ == "__main__":
    if sys.argv[1:]:
        _print_method(sys.argv[1], int((sys.argv[2:] or ["1"])[0]))
    else:
        _print_table()
