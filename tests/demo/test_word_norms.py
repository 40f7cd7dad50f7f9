"""How much each word of a caption matters, as the demo's script prints it."""

from __future__ import annotations

import pytest

from captum_clip import load_clip, targets
from captum_clip.demo import word_norms


def test_norms_are_those_of_the_targets_by_kind_of_word() -> None:
    """One caption by hand: its nouns, its articles, its "and"."""
    clip = load_clip("demo/vit")
    target = targets.words(clip, "a horse and an owl")
    assert target.names == ("a", "horse", "and", "an", "owl")
    article, horse, joint, other, owl = target.norms.tolist()
    found = word_norms.norms(clip, [("horse", "owl")])
    assert found["nouns"].mean == pytest.approx((horse + owl) / 2)
    assert found["a, an"].mean == pytest.approx((article + other) / 2)
    assert found["and"].mean == pytest.approx(joint)


def test_the_table_has_a_row_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    """As the command prints it; nouns matter more than what stands between them."""
    word_norms.main(["--model", "demo/vit", "demo/resnet", "--captions", "4"])
    *_, vit, resnet = capsys.readouterr().out.strip().splitlines()
    assert vit.startswith("| demo/vit | ")
    assert resnet.startswith("| demo/resnet | ")
    nouns, *others = (float(cell.split()[0]) for cell in vit.split("|")[2:5])
    assert nouns > max(others)
