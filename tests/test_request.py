"""What `explain` can be asked stands once, in the fields of a request."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, Field, fields
from typing import Any

import pytest

from captum_clip import explain
from captum_clip.errors import InputError, argument, spelled
from captum_clip.explaining.request import (
    TARGET,
    Request,
    Side,
    Sign,
    check_request,
)

FIELDS: dict[str, Field[Any]] = {entry.name: entry for entry in fields(Request)}


def test_the_signature_of_explain_is_the_fields_of_a_request() -> None:
    parameters = inspect.signature(explain).parameters
    assert [*parameters] == [*FIELDS]
    for name, parameter in parameters.items():
        if name not in ("image", "options"):
            assert FIELDS[name].default == parameter.default, name
    assert FIELDS["options"].default_factory is dict


def test_each_argument_of_explain_arrives_in_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captum_clip.explaining.explain.answer", lambda request: request)
    values: dict[str, Any] = {name: f"the {name}" for name in FIELDS if name != "options"}
    asked: Any = explain(**values, depth="all")
    assert {name: getattr(asked, name) for name in values} == values
    assert asked.options == {"depth": "all"}


def test_the_documentation_of_explain_tells_each_argument() -> None:
    told = inspect.getdoc(explain) or ""
    assert [name for name in FIELDS if f"    {'**' * (name == 'options')}{name}:" not in told] == []


def test_every_field_has_a_default_and_knows_what_it_excludes() -> None:
    for name, entry in FIELDS.items():
        assert entry.default is not MISSING or name == "options"
        for conflict in entry.metadata.get("conflicts", ()):
            assert conflict.others.keys() <= {*FIELDS, TARGET} - {name}
    assert FIELDS["side"].metadata["choices"] == Side.__args__  # type: ignore[attr-defined]
    assert FIELDS["sign"].metadata["choices"] == Sign.__args__  # type: ignore[attr-defined]


def test_conflicts_are_told_in_the_readers_words() -> None:
    request = Request("a.png", reference="b.png", words=True)
    with pytest.raises(InputError, match=r"^`reference` has no words; leave `words=True` out.$"):
        check_request(request)
    with (
        spelled(lambda name, value: f"<{name}>"),
        pytest.raises(InputError, match=r"^<reference> has no words; leave <words> out.$"),
    ):
        check_request(request)
    assert argument("sign", "both") == "`sign='both'`"
