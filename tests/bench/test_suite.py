"""Frozen suites: what is frozen, one file of a model, and two of them side by side."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captum_clip.bench import suite
from captum_clip.bench.run import EvaluationConfig
from captum_clip.bench.suite import compare_suites, run_suite
from captum_clip.bench.tasks import TASKS
from captum_clip.cli import main
from captum_clip.demo import scenes
from captum_clip.errors import InputError
from captum_clip.metrics import holm, paired_difference
from tests import folders
from tests.bench.cases import SMALL_SUITE, Suites


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    """A suite of six scenes."""
    monkeypatch.setitem(suite.SUITES, "small", dict(SMALL_SUITE))
    suite.SUITES["small"]["hash"] = suite.suite_hash("small")
    return "small"


def config(model: str, output: Path, **given: Any) -> EvaluationConfig:
    return EvaluationConfig(model, str(output), threads=1, **given)


def test_a_suite_draws_what_was_frozen() -> None:
    """A change of the scenes, the masks, the vocabulary or the settings is another suite: v3."""
    assert suite.suite_hash("v2") == suite.SUITES["v2"]["hash"]


def test_a_hash_notices_every_change(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from captum_clip.bench.data import demo

    for part in SMALL_SUITE["parts"]:  # of which one scene is as good as six
        one = {**SMALL_SUITE["parts"][part], "images": 1}
        monkeypatch.setitem(
            suite.SUITES[small], "parts", {**suite.SUITES[small]["parts"], part: one}
        )
    frozen = suite.suite_hash(small)
    assert suite.suite_hash(small) == frozen
    changes: list[Callable[[pytest.MonkeyPatch], None]] = [
        lambda patch: patch.setitem(suite.SUITES[small], "seed", 6),
        lambda patch: patch.setitem(suite.SUITES[small]["columns"], "energy", "energy"),
        lambda patch: patch.setattr(demo, "article", lambda noun: f"one {noun}"),
        lambda patch: patch.setattr(demo, "compose", " or ".join),
        lambda patch: patch.setattr(demo, "_CELL_SIDE", 111),
    ]
    for change in changes:
        with monkeypatch.context() as patch:
            change(patch)
            assert suite.suite_hash(small) != frozen
    draw = scenes.draw_scene

    def one_pixel(*given: Any, **options: Any) -> Any:
        scene = draw(*given, **options)
        scene.image[3, 4, 0] ^= 1
        return scene

    monkeypatch.setattr(scenes, "draw_scene", one_pixel)
    assert suite.suite_hash(small) != frozen


def test_columns_are_those_of_the_tasks() -> None:
    """Each finds means of rows, in one part, of which high is good."""
    for frozen in suite.SUITES.values():
        parts = {
            name: [
                metric
                for task in part["tasks"]
                for metrics in TASKS[task]
                .metrics(EvaluationConfig("m", "o", fills=("mean",)))
                .values()
                for metric in metrics
            ]
            for name, part in frozen["parts"].items()
        }
        for column, pattern in frozen["columns"].items():
            found = {
                name: {(m.statistic, m.better) for m in metrics if re.fullmatch(pattern, m.name)}
                for name, metrics in parts.items()
            }
            assert [of for of in found.values() if of] == [{("mean", "high")}], column


@pytest.fixture
def made(suites: Suites) -> Path:
    """The small suite of demo/vit."""
    return suites.folder


def content(made: Path, name: str) -> Any:
    return json.loads((made / name / "suite_small.json").read_text())


def test_a_file_has_the_gate_and_a_value_of_each_scene(made: Path) -> None:
    found = content(made, "vit")
    assert found["model"]["name"] == "demo/vit"
    assert set(found["gate"]) == {"demo", "demo-mosaics"}
    assert found["gate"]["demo"]["|effect| on them"]["images"] == 6
    assert "demo: above chance on what is asked (recall among 119 texts" in found["verdict"][0]
    assert [*found["values"]] == ["pointing", "effect", "words", "pairs"]
    for by_method in found["values"].values():
        assert {len(of) for of in by_method.values()} == {6}
    drawn = {"random", "uniform", "center"}
    predictors = {"named", "score", "text-only"}
    assert set(found["values"]["pairs"]) == {"direct", *predictors}
    assert set(found["values"]["words"]) == {"direct", "legrad", *drawn}


def test_values_are_the_statistic_of_a_scene_alone(suites: Suites) -> None:
    """The mean of its regions, and the rank correlation within it."""
    found, _ = suites.evaluations
    rows = found.table[found.table["method"] == "legrad"]
    values = content(suites.folder, "vit")["values"]
    for number, name in enumerate(sorted({*rows["sample"]})):
        here = rows[rows["sample"] == name]
        pointing = here[here["metric"] == "pointing"]["value"].mean()
        assert values["pointing"]["legrad"][number] == pytest.approx(pointing, abs=1e-4)
        [rank] = here[here["metric"] == "effect_spearman_scene"]["value"]
        assert values["effect"]["legrad"][number] == pytest.approx(rank, abs=1e-4)
        words = here[here["metric"].isin([f"words_{n}" for n in range(1, 5)])]["value"].mean()
        assert values["words"]["legrad"][number] == pytest.approx(words, abs=1e-4)


def test_a_suite_tells_how_far_each_of_its_evaluations_is(suites: Suites) -> None:
    """Nine methods and rivals by two data sets, seven of pairs: each anew."""
    assert [*dict.fromkeys(total for _, total, _ in suites.told)] == [108, 42]


def test_a_model_that_knows_nothing_has_no_values(tmp_path: Path, vit: str, small: str) -> None:
    found = run_suite(small, config(vit, tmp_path))
    assert "this model is at chance on what is asked; do not interpret" in found["verdict"][0]
    assert "values" not in found
    path = str(tmp_path / "suite_small.json")
    with pytest.raises(InputError, match=r"no values to compare\. demo: this model is at chance"):
        compare_suites(path, path)


def test_the_folder_of_another_model_is_left_alone(
    made: Path, tmp_path: Path, vit: str, small: str
) -> None:
    shutil.copytree(made / "vit", tmp_path / "vit")
    before = folders.content(tmp_path / "vit")
    with pytest.raises(InputError, match=r"maps holds another evaluation: .*model\.name was"):
        run_suite(small, config(vit, tmp_path / "vit"))
    assert folders.content(tmp_path / "vit") == before


def written(path: Path, values: Any, **given: Any) -> str:
    equal = {"hash": "0" * 64, "versions": {"torch": "1"}}
    head = {"format": "captum_clip suite 2", "suite": "v1", "verdict": [], **equal}
    path.write_text(json.dumps({**head, "values": values, **given}))
    return str(path)


def test_two_models_are_compared_scene_by_scene(tmp_path: Path) -> None:
    """A known difference, over the scenes that both have, of the methods that both have."""
    generator = np.random.default_rng(0)
    first, noise = generator.random(40), 0.01 * generator.standard_normal(40)
    second = first - 0.25 + noise
    a = {"pointing": {"direct": [*first, None, 1], "only": [1.0] * 42}, "alone": {"direct": [1]}}
    b = {"pointing": {"direct": [*second, 0.5, None]}}
    names = written(tmp_path / "a.json", a), written(tmp_path / "b.json", b)
    rows = compare_suites(*names)
    assert [*rows] == ["pointing, direct"]
    [row] = rows.values()
    expected = paired_difference(first, second, resamples=20_000)
    assert [*row] == [*names, "difference", "low", "high", "p_holm"]
    assert row["difference"] == pytest.approx(0.25, abs=0.01)
    assert [*row.values()] == pytest.approx([first.mean(), second.mean(), *expected])
    assert row["high"] - row["low"] < 0.02  # paired: each alone spreads by .3


def test_p_values_are_corrected_for_the_number_of_rows(tmp_path: Path) -> None:
    """Of twenty rows without a difference none is told, and the one that differs is."""
    generator = np.random.default_rng(0)
    a = {f"column {n}": {"direct": [*generator.random(60)]} for n in range(20)}
    b = {f"column {n}": {"direct": [*generator.random(60)]} for n in range(20)}
    b["other"] = {"direct": [*generator.random(60)]}
    a["other"] = {"direct": [x + 0.2 + 0.1 * generator.random() for x in b["other"]["direct"]]}
    names = written(tmp_path / "a.json", a), written(tmp_path / "b.json", b)
    rows = compare_suites(*names)
    given = [paired_difference(a[c]["direct"], b[c]["direct"], resamples=20_000).p_value for c in a]
    assert [row["p_holm"] for row in rows.values()] == pytest.approx(holm(given).tolist())
    assert min(given[:20]) < 0.05
    assert [name for name, row in rows.items() if row["p_holm"] < 0.05] == ["other, direct"]


def test_a_model_equals_itself(made: Path) -> None:
    path = str(made / "vit/suite_small.json")
    for row in compare_suites(path, path).values():
        assert [*row.values()][1:] == [0, 0, 0, 1]  # both means have one name


def test_only_files_of_one_suite_are_compared(tmp_path: Path) -> None:
    good = written(tmp_path / "good.json", {})
    other = written(tmp_path / "other.json", {}, hash="1" * 64, suite="v2")
    versions = written(tmp_path / "versions.json", {}, versions={"torch": "2"})
    wrong = {
        other: r"good.json and .*other.json have different scenes \(0{60} and 1{60}\); measure",
        versions: r"have different versions \({'torch': '1'} and {'torch': '2'}\)",
        str(tmp_path / "none.json"): "there is no file",
    }
    odd: tuple[Any, ...] = ([], {"pointing": [1]}, {"pointing": {"direct": ["1"]}})
    texts = [Path(written(tmp_path / "odd.json", values)).read_text() for values in odd]
    others: list[dict[str, Any]] = [{"hash": 3}, {"verdict": "a"}, {"model": []}]
    texts += [Path(written(tmp_path / "odd.json", {}, **other)).read_text() for other in others]
    texts += [Path(good).read_text()[:-9], "[]", '{"format": "other"}', "1", "[" * 99_999]
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        wrong[str(path)] = "is damaged, or not a suite_v2.json written by `suite`"
    for other_path, message in wrong.items():
        with pytest.raises(InputError, match=message):
            compare_suites(good, str(other_path))


def test_what_a_suite_fixes_is_refused(tmp_path: Path, small: str) -> None:
    for given in ({"images": 3}, {"seed": 1}, {"methods": ("direct",)}, {"tasks": ("words",)}):
        with pytest.raises(InputError, match=f"suite small fixes `{next(iter(given))}`"):
            run_suite(small, config("demo/vit", tmp_path, **given))
    with pytest.raises(InputError, match="expected a suite of v2, small, got 'v0'"):
        run_suite("v0", config("demo/vit", tmp_path))
    suite.SUITES[small]["hash"] = "f" * 64
    with pytest.raises(InputError, match=r"differ on this installation .*expected f{12}.*Pillow 1"):
        run_suite(small, config("demo/vit", tmp_path))
    assert not [*tmp_path.iterdir()]


def test_a_line_runs_a_suite_and_compares_two(
    made: Path, tmp_path: Path, small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It goes on after a stop: units that are there are left alone, and the values are the same."""
    shutil.copytree(made / "vit", tmp_path / "vit")
    for name in ("suite_small.json", "maps/results.csv"):
        (tmp_path / "vit" / name).unlink()
    units = [*tmp_path.rglob("*.npz")]
    units.pop().unlink()
    before = [path.stat().st_mtime_ns for path in units]
    line = f"evaluate --suite small --model demo/vit --threads 1 --quiet -o {tmp_path}/vit/"
    assert main(line.split()) == 0
    assert [path.stat().st_mtime_ns for path in units] == before
    found, expected = content(tmp_path, "vit"), content(made, "vit")
    assert found == expected
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("demo: above chance on what is asked")
    stem = f"{tmp_path}/vit/suite_small"
    assert printed[1].startswith("demo-mosaics: above chance")
    assert printed[2:] == [f"values   {stem}.json"]
    files = [str(folder / "vit/suite_small.json") for folder in (made, tmp_path)]
    assert main(["evaluate", "--compare", *files]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == [*files, "difference", "low", "high", "p_holm"]
    assert lines[0].startswith("pointing, direct")
    assert main(["evaluate", "--model", "demo/vit"]) == 2
    assert "evaluate needs --output, a folder for these" in capsys.readouterr().err


def test_a_missing_extra_is_told_before_the_gate(
    tmp_path: Path, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captum_clip.bench.evaluator.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pandas is needed: pip install"):
        run_suite(small, config("no model", tmp_path))
