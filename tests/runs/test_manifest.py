"""A folder goes on with the same settings only, and says what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from captum_clip.errors import InputError
from captum_clip.runs import Engine, manifest, storage_of

KIND = manifest.ManifestFormat(
    "evaluation", "some evaluation 1", {"config": dict}, lambda a, b: differences(a, b)
)
ABOUT = {"config": {"seed": 0, "texts": ("a", "ä")}}
ENGINE = Engine("local", 1, 0, 1)


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    if "jobs" in before:
        before["jobs"][0]["model"]
    return manifest.changes(before["config"], now["config"])


def test_a_manifest_goes_on_and_lists_every_environment_once(tmp_path: Path) -> None:
    output = storage_of(tmp_path)
    for engine, count in ((ENGINE, 1), (ENGINE, 1), (Engine("local", 1, 0, 2), 2)):
        begun = manifest.begin(KIND, ABOUT, output, engine)
        assert list(begun) == ["format", "config", "environments", "state"]
        assert [one["threads"] for one in begun["environments"]] == [1, 2][:count]
        output.write(manifest.NAME, manifest.to_bytes(begun))
    assert {"torch", "captum_clip", "device"} <= begun["environments"][0].keys()


def test_settings_that_changed_are_said(tmp_path: Path) -> None:
    output = storage_of(tmp_path)
    output.write(manifest.NAME, manifest.to_bytes(manifest.begin(KIND, ABOUT, output, ENGINE)))
    other = {"config": {"seed": 1, "texts": ("a",)}}
    message = r'an evaluation with other settings: seed was 0 and is 1; texts was \["a", "ä"\] and'
    with pytest.raises(InputError, match=message):
        manifest.begin(KIND, other, output, ENGINE)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"format": "other"}',
        json.dumps({"format": KIND.name, "config": 3, "environments": []}),
        json.dumps({"format": KIND.name, "config": {}, "environments": None}),
        json.dumps({"format": KIND.name, "config": {}, "environments": [], "jobs": ["a"]}),
    ],
)
def test_a_manifest_of_something_else_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / manifest.NAME).write_text(content)
    with pytest.raises(InputError, match=r"not a manifest of an evaluation that .* name another"):
        manifest.begin(KIND, ABOUT, storage_of(tmp_path), ENGINE)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    output = storage_of(tmp_path)
    assert manifest.begin(KIND, ABOUT, output, ENGINE)["state"] == "running"
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"are no evaluation's, such as thesis\.tex"):
        manifest.begin(KIND, ABOUT, output, ENGINE)
