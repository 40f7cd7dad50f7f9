"""What is to be computed: how data are cut into shards, and what they are called."""

from __future__ import annotations

from typing import Any

from captum_clip.evaluation.data.base import Sample
from captum_clip.evaluation.methods import Attributed, Drawn
from captum_clip.evaluation.plan import shards_of
from tests.evaluation.cases import Listed, picture


def any_method(name: str, *, costly: bool = False) -> Any:
    if costly:
        return Attributed(name, "", lambda forward: lambda images: images, costly=True)
    return Drawn(name, "", lambda grid, number: None)  # type: ignore[arg-type,return-value]


def test_every_method_sees_every_sample_once_and_costly_ones_the_first() -> None:
    """Batch by batch, so that all methods of a batch share it."""
    data = [Listed(*(Sample(str(n), picture()) for n in range(count))) for count in (5, 2)]
    methods = [any_method("one"), any_method("the other", costly=True)]
    shards = shards_of(data, methods, size=2, max_slow_images=3)
    assert [(u.data, u.method, u.numbers) for u in shards] == [
        *[(0, 0, (0, 1)), (0, 1, (0, 1)), (0, 0, (2, 3)), (0, 1, (2,)), (0, 0, (4,))],
        *[(1, 0, (0, 1)), (1, 1, (0, 1))],
    ]


def test_names_of_files_are_unique_and_tame() -> None:
    data = [Listed(Sample("a", picture()), name="Ä b")]
    methods = [any_method(name) for name in ("a:b=c,d=e", "a b=c d=e", "../x", "ÄÖ", "ä")]
    names = [shard.name for shard in shards_of(data, methods, size=1, max_slow_images=1)]
    assert len({*names}) == 5
    assert names[0] == "units/00-b/000000-00-a-b=c-d=e.npz"
    assert all(name.isascii() and ".." not in name and " " not in name for name in names)
