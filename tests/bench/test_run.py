"""The order of a run, with units that need no model, here and in a worker of Ray."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typing_extensions import override

from captum_clip import load_clip
from captum_clip.bench.run import (
    MANIFEST,
    Arrays,
    Plan,
    StudyConfig,
    TellShare,
    Unit,
    UnitWriter,
    Worker,
    read_unit,
    run,
    to_npz,
)
from captum_clip.bench.study import run_study
from captum_clip.errors import InputError
from captum_clip.files import slug
from captum_clip.folders import workers
from captum_clip.folders.storage import Content, Skipped, Storage, storage_of
from captum_clip.folders.workers import ModelLoader
from tests import folders

UNITS = tuple(Unit(f"units/{number}.npz", 0, (number, number + 1)) for number in range(4))
UNIT = UNITS[0]


def config_of(output: Path, **settings: Any) -> StudyConfig:
    return StudyConfig("images", str(output), "a", ("m",), threads=1, **settings)


@dataclass(frozen=True)
class Squares(Plan):
    """Squares numbers, and fails at one of the units."""

    noun = "evaluation"
    result = "results.csv"

    config: Any
    units: tuple[Unit, ...] = UNITS
    settings: Content = field(default_factory=lambda: {"seed": 0, "texts": ["a", "ä"]})
    identity: dict[str, str] = field(default_factory=dict)
    fails_at: str = ""
    skipped: tuple[Skipped, ...] = ()
    computed: list[str] = field(default_factory=list)
    shares: tuple[float, ...] = ()

    @override
    def manifest(self) -> Content:
        return {"config": self.settings, "jobs": [{"model": "m", "identity": self.identity}]}

    @override
    def worker(self, models: ModelLoader) -> Worker:
        return self._compute

    def _compute(self, unit: Unit, tell: TellShare) -> tuple[Arrays, list[Skipped]]:
        if unit.name == self.fails_at:
            raise InputError("no more")
        self.computed.append(unit.name)
        for share in self.shares:
            tell(share)
        return {"squares": np.square(np.array(unit.numbers, dtype=float))}, list(self.skipped)


def summarize(plan: Squares, manifest: Content, output: Storage, _: ModelLoader) -> Content:
    values = [read_unit(output, unit)[0]["squares"].tolist() for unit in plan.units]
    output.write(MANIFEST, json.dumps({**manifest, "state": "done"}).encode())
    output.write(plan.result, json.dumps(values).encode())
    return manifest


def done(plan: Squares) -> list[tuple[int, int]]:
    """What the progress was told."""
    told: list[tuple[int, int]] = []
    run(
        plan.config,
        lambda *_: plan,
        summarize,
        lambda *counts: told.append(counts[:2]),
    )
    return told


def test_a_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    """What was done is counted and kept, half-written files go away, and the bytes are the same."""
    whole = Squares(config_of(tmp_path / "whole"))
    assert done(whole) == [(0, 8), (2, 8), (4, 8), (6, 8), (8, 8)]
    plan = Squares(config_of(tmp_path / "out"))
    with pytest.raises(InputError, match="no more"):
        done(replace(plan, fails_at=UNITS[2].name))
    output = storage_of(tmp_path / "out")
    output.write("units/.3.npz.0f.part", b"")
    output.write(UNIT.name, b"damaged")
    plan.computed.clear()
    assert done(plan) == [(2, 8), (4, 8), (6, 8), (8, 8)]
    assert plan.computed == [UNITS[0].name, UNITS[2].name, UNITS[3].name]
    assert folders.content(tmp_path / "out") == folders.content(tmp_path / "whole")


def test_progress_counts_images_within_a_unit(tmp_path: Path) -> None:
    """Each once, when it is done; the last of a unit with the unit, whose file is there then."""
    assert done(Squares(config_of(tmp_path), UNITS[:1], shares=(0.1, 0.5, 0.6, 1.0))) == [
        *((0, 2), (1, 2), (2, 2))
    ]


def test_results_go_away_while_something_is_missing_and_only_then(tmp_path: Path) -> None:
    plan, output = Squares(config_of(tmp_path / "out")), storage_of(tmp_path / "out")
    done(plan)
    assert done(plan) == [(8, 8)]
    output.remove(UNITS[1].name)
    with pytest.raises(InputError, match="no more"):
        done(replace(plan, fails_at=UNITS[1].name))
    assert output.read("results.csv") is None
    assert json.loads(output.read(MANIFEST) or b"")["state"] == "running"


def test_a_unit_with_an_image_that_was_away_is_computed_again(tmp_path: Path) -> None:
    plan = Squares(config_of(tmp_path), skipped=(Skipped(1, "away.", again=True),))
    done(plan)
    plan.computed.clear()
    done(replace(plan, skipped=(Skipped(1, "broken"),)))
    assert len(plan.computed) == 4
    done(plan)
    assert len(plan.computed) == 4


def test_a_manifest_lists_every_environment_once(tmp_path: Path) -> None:
    plan = Squares(config_of(tmp_path))
    for threads, count in ((1, 1), (1, 1), (2, 2)):
        done(replace(plan, config=replace(plan.config, threads=threads)))
        begun = json.loads((tmp_path / MANIFEST).read_bytes())
        assert list(begun) == ["format", "config", "jobs", "environments", "state"]
        assert [one["threads"] for one in begun["environments"]] == [1, 2][:count]
    assert {"torch", "captum_clip", "device"} <= begun["environments"][0].keys()


def test_what_changed_is_told_and_nothing_is_touched(tmp_path: Path) -> None:
    plan = Squares(config_of(tmp_path))
    done(plan)
    before = folders.content(tmp_path)
    other = replace(plan, settings={"seed": 1, "texts": ["a"]})
    message = (
        r'holds another evaluation: config\.seed was 0 and is 1; config\.texts was \["a", "ä"\] '
        r'and is \["a"\]\. Take another'
    )
    with pytest.raises(InputError, match=message):
        done(other)
    assert folders.content(tmp_path) == before


def test_a_run_goes_on_with_the_same_model_on_another_machine_and_with_no_other(
    tmp_path: Path,
) -> None:
    """Embeddings may differ by rounding, and those of the beginning stay in the manifest."""
    identity = {"weights": "a1", "image_embeddings": "0.5 -0.25"}
    plan = Squares(config_of(tmp_path), settings={"text": "0.5"}, identity=identity)
    done(plan)
    storage_of(tmp_path).remove(UNIT.name)
    before = folders.content(tmp_path)
    done(replace(plan, identity={"weights": "a1", "image_embeddings": "0.5009 -0.2509"}))
    assert {**folders.content(tmp_path), **before} == folders.content(tmp_path)
    with pytest.raises(InputError, match=r"config\.text was"):  # no embedding
        done(replace(plan, settings={"text": "0.5009"}))
    for part, other in {"weights": "b1", "image_embeddings": "0.5011 -0.2511"}.items():
        with pytest.raises(InputError, match=rf"another evaluation: jobs\.0\.identity\.{part} was"):
            done(replace(plan, identity={**plan.identity, part: other}))


def test_a_manifest_of_something_else_is_refused(tmp_path: Path) -> None:
    broken = '{"format": "captum_clip evaluation 2", "environments": ["a"]}'
    for content in ("{", "[]", "{}", '{"format": "other"}', broken, "[" * 99_999):
        (tmp_path / MANIFEST).write_text(content)
        with pytest.raises(InputError, match=r"is not a manifest of the kind .* name another"):
            done(Squares(config_of(tmp_path)))


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(
        InputError, match=r"files that do not belong to the evaluation, such as thesis\.tex"
    ):
        done(Squares(config_of(tmp_path)))
    assert sorted(folders.content(tmp_path)) == ["thesis.tex"]


def whole_unit() -> bytes:
    arrays = {"squares": np.array([0.0, 1.0]), "unit": np.array(UNIT.name)}
    return to_npz({**arrays, "skipped": np.array("[]")})


WHOLE = whole_unit()
CHECKSUM = WHOLE.rindex(b"squares.npy") - 30  # in the table of contents
FLIPPED = WHOLE[:CHECKSUM] + bytes([WHOLE[CHECKSUM] ^ 1]) + WHOLE[CHECKSUM + 1 :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "it is gone"),
        (WHOLE[: len(WHOLE) // 2], ""),
        (FLIPPED, "CRC"),
        (to_npz({"cubes": np.zeros(2)}), "unit"),
        (to_npz({"unit": np.array([{}])}), "pickle"),
        (to_npz({"unit": np.array("units/1.npz")}), r"it was written as units/1\.npz"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_computed_again(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    plan, storage = Squares(config_of(tmp_path)), storage_of(tmp_path)
    done(plan)
    before = folders.content(tmp_path)
    if content is None:
        storage.remove(UNIT.name)
    else:
        storage.write(UNIT.name, content)
    with pytest.raises(InputError, match=rf"units/0\.npz cannot be used \(.*{message}.*delete it"):
        read_unit(storage, UNIT)
    done(plan)
    assert folders.content(tmp_path) == before


def test_a_worker_of_ray_reports_what_it_cannot_do(tmp_path: Path) -> None:
    """Called as Ray calls it, without Ray: errors travel as text."""
    output = storage_of(tmp_path)
    plan = Squares(config_of(tmp_path), fails_at=UNITS[1].name)
    worker = workers.UnitWorker(UnitWriter(plan, UNITS, output, ModelLoader()), 1)
    first, second = worker({"unit": [0]}), worker({"unit": [1]})
    assert (first["error"], pickle.loads(first["result"][0])) == ([""], UNITS[0])
    assert second["error"] == ["no more"]
    assert UNIT.name in output.files()
    output.write("units/.2.npz.tries.part", b"xxxxx")
    [error] = worker({"unit": [2]})["error"]
    assert "5 workers died over units/2.npz" in error


def test_a_ray_that_does_not_start_is_a_sentence(tmp_path: Path) -> None:
    """On a busy machine it gives up after a while, with an Exception of no class of its own."""

    class Late:
        def init(self, **_: Any) -> None:
            raise Exception("The current node timed out.\nLook here.")

    with pytest.raises(
        InputError, match=r"started or reached \(The current node timed out\); what"
    ):
        workers._join_or_start(Late(), config_of(tmp_path))


def test_slugs_are_tame_names_of_files() -> None:
    names = [slug(name) for name in ("ViT-B/32", "a:b=c,d=e", "../x", "Ä b")]
    assert names == ["vit-b-32", "a-b-c-d-e", "x", "ä-b"]


@pytest.fixture
def bare(tmp_path: Path, vit: str) -> str:
    """The model of `vit`, saved without its processor and its tokenizer."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(Path(vit, name).read_bytes())
    return str(folder)


def test_a_loader_takes_its_processor_and_tokenizer_to_other_processes(vit: str, bare: str) -> None:
    """And not the model that it has loaded."""
    loader = ModelLoader(vit, vit)
    clip = loader.load(bare)
    assert clip.identity() == load_clip(vit).identity()
    assert loader.load(bare, "cpu", clip.identity()) is clip
    sent = pickle.dumps(loader)
    assert len(sent) < 1000
    other = pickle.loads(sent).load(bare)
    assert other.identity() == clip.identity()
    assert other.encode_text(["a horse"]).shape == (1, 24)
    with pytest.raises(InputError, match="has other weights than when the run began"):
        ModelLoader(vit, vit).load(bare, "cpu", {**clip.identity(), "weights": "another"})


def test_a_study_of_a_bare_checkpoint_is_that_of_the_whole_one(
    tmp_path: Path, vit: str, bare: str
) -> None:
    images = folders.make_images(tmp_path / "images", 2)
    parts: dict[str, Any] = {"processor": vit, "tokenizer": vit}
    whole = StudyConfig(images, tmp_path / "whole", ("a",), (vit,), workers=0)
    lent = replace(whole, output=tmp_path / "lent", models=(bare,), **parts)
    assert whole.identity()["processor"] is None
    assert lent.identity()["tokenizer"] == "small-vit"
    for config in (whole, lent):
        run_study(config)
    rows = [(tmp_path / n / "statistics.csv").read_text() for n in ("whole", "lent")]
    assert rows[0].replace("small-vit", "bare") == rows[1]
