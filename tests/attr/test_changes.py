"""What people do to CLIPs is right or refused: each change by each method on four towers."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_clip import attr
from captum_clip.errors import CaptumClipError
from tests.attr import cases, plain
from tests.attr.changes import CHANGES, METHODS, OF_PATCHES, Change, site_of

OPTIONS: dict[str, dict[str, Any]] = {
    "removal": {"window": 1, "share": None},
    "legrad": {"layers": 2},
}


def explained(explainer: Any, method: str, pixels: Tensor) -> Any:
    """Maps and scores, and a rest where there is one."""
    extra = {"return_rest": True} if explainer.additive else {}
    options = OPTIONS.get(method, {})
    return explainer.attribute_targets(pixels.clone(), return_scores=True, **extra, **options)


def right_of(change: Change, method: str) -> str:
    """What the map has to be."""
    return change.of_patches or change.right if method in OF_PATCHES else change.right


@cache
def of_plain(name: str, method: str, change: Change) -> Tensor | None:
    """The map of the model that is not changed, of the images that a function prepares."""
    if change.moved is None:
        return plain.wanted(name, method)
    own = cases.images
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cases, "images", lambda *a, **k: change.moved(own(*a, **k)))
        return plain.wanted(name, method)


def judge(change: Change, name: str, method: str) -> str:
    """ "right", "refused" or "unknown", else what is wrong."""
    similarity, pixels = cases.similarity(name, torch.float64), plain.pixels_of(name)
    right = right_of(change, method)
    expected = of_plain(name, method, change) if right == "plain" else None
    with site_of(name) as site:
        given: tuple[Any, ...] = (similarity,)
        if change.scores is not None:
            given = change.scores(site, similarity), site.model
        explainer = attr.METHODS[method](*given) if change.between else None
        if explainer is not None:
            explained(explainer, method, pixels)
        change.make(site)
        with torch.no_grad():
            scores = given[0](pixels)
        try:
            explainer = explainer or attr.METHODS[method](*given)
            maps, found, *rest = explained(explainer, method, pixels)
        except CaptumClipError as error:
            return "refused" if error.reason.rstrip().endswith(".") else f"no sentence: {error}"
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"
        if right == "computed" and change.factor is not None and method not in plain.OF_ATTENTIONS:
            known = of_plain(name, method, change)
            expected = None if known is None else change.factor * known
        elif right == "computed":
            forward = given[0] if change.scores else None
            expected = plain.wanted(name, method, forward)
    if right == "none":
        return "not refused"
    bound = change.tolerance
    if not torch.allclose(found, scores, rtol=bound, atol=1e-3 * bound):
        return f"scores off by {(found - scores).abs().max():.1e}"
    if rest and (maps.sum((-2, -1)) + rest[0] - scores).abs().max() > max(1e-5, bound):
        return "maps and rest are not the score"
    if expected is None:
        return "unknown"
    off = float((maps - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    return "right" if off < bound else f"map off by {off:.1e}"


CELLS = [(who, name) for who, change in CHANGES.items() for name in change.towers]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # where a graph begins
@pytest.mark.parametrize(("who", "name"), CELLS)
def test_what_people_do_is_right_or_refused(who: str, name: str) -> None:
    change, kind = CHANGES[who], cases.adapter(name, torch.float64).kind
    wrong = {}
    for method in METHODS:
        if kind not in attr.METHODS[method].towers:
            continue
        answer, right = judge(change, name, method), right_of(change, method)
        allowed = {"refused"} if right == "none" else {"right", "unknown"}
        if method in change.refused:
            allowed.add("refused")
        if answer not in allowed:
            wrong[method] = answer
    assert wrong == {}
