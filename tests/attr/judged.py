"""What a method says of a small model that was changed, beside what is right.

Right is what plain autograd and explicit attention make of the changed model, or of a plain model
that computes the same: where tokens change places, a map has to follow them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Final, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_clip import ClipSimilarity, attr, targets
from captum_clip.errors import CaptumClipError
from tests import explicit, oracles
from tests.attr import cases, hooked, running
from tests.attr import test_others_methods as others
from tests.attr.changes import Place, placed, unchanged
from tests.attr.test_removal import blinded

Make = Callable[[Place], object]
Forward = Callable[[Tensor], Tensor]
Scores = Callable[[ClipSimilarity, Place], Forward]
Truth = Callable[[str], Any]
"""Of a method: its map, several of which any is right, None where none is known, or `NO_MAP`."""
NO_MAP: Final = "no map"
FLOWS = ("rollout", "all-grad")  # they multiply the attentions of layers
METHODS = [*running.MOST, "attention-grad-cam", "removal"]
OPTIONS: dict[str, dict[str, Any]] = {"removal": {"window": 1, "share": None}}
COUNT = 16  # patches


class Change(NamedTuple):
    """A change of a model.

    Attributes:
        make: it makes the change.
        instead: what has the right maps: the changed model itself, or another one.
        tower: the name of the small model.
        refused: the methods that have no right map.
        truth: knows the right maps in the place of `instead`, of the forward function.
        scores: makes a forward function of one's own.
        moves: what happens to the maps of `instead`.
        before: it is done before the method's first call, and `make` between its calls.
        batch: images.
        tolerance: of maps and scores, relative.
        unknown: the methods whose oracle does not see the change.
    """

    make: Make = unchanged
    instead: Make | None = None
    tower: str = "hf_vit"
    refused: Sequence[str] = ()
    truth: Callable[[Change, Forward], Truth] | None = None
    scores: Scores | None = None
    moves: Callable[[Tensor], Tensor] = lambda maps: maps
    before: Make | None = None
    batch: int = 3
    tolerance: float = 1e-6
    unknown: Sequence[str] = ()

    @property
    def pixels(self) -> Tensor:
        """The images."""
        return cases.images(self.tower).double()[: self.batch]


def methods_of(change: Change) -> list[str]:
    """Those that explain the tower."""
    kind = "vit" if change.tower in hooked.TOWERS else "resnet"
    names = METHODS if kind == "vit" else ["grad-cam", "direct", "removal"]
    return [n for n in names if kind in attr.METHODS[n].towers and n not in change.unknown]


def judge(change: Change, method: str) -> str:
    """ "right", "refused", "unknown" or "no model", else what is wrong."""
    model, similarity = running.shared(change.tower), similarity_of(change.tower)
    similarity.clip.looks.clear()  # one name may have had another kernel
    with placed(model, "") as place:
        if change.before is not None:
            change.before(place)
        given: tuple[Any, ...] = (similarity,)
        if change.scores is not None:
            given = change.scores(similarity, place), model
        explainer: Any = None
        if change.before is not None:
            explainer = attr.METHODS[method](*given)
            _explained(explainer, change.pixels, method)
        change.make(place)
        try:
            with torch.no_grad():
                scores = given[0](change.pixels)
        except Exception as error:
            return f"no model: {error}"
        try:
            explainer = explainer or attr.METHODS[method](*given)
            maps, found, *rest = _explained(explainer, change.pixels, method)
        except CaptumClipError as error:
            return "refused" if error.reason.rstrip().endswith(".") else f"no sentence: {error}"
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"
        if not torch.allclose(found, scores, rtol=change.tolerance, atol=1e-3 * change.tolerance):
            return f"scores off by {(found - scores).abs().max():.1e}"
        if rest and (maps.sum((-2, -1)) + rest[0] - scores).abs().max() > max(
            1e-5, change.tolerance
        ):
            return "maps and rest are not the score"
        if method in change.refused:
            return "not refused"
        wanted: Any = None
        if change.truth is not None:
            wanted = change.truth(change, given[0])(method)
        elif change.instead is None:
            wanted = known(change.tower, method, change.batch)
    if change.instead is not None and change.truth is None:
        wanted = of_plain(change.tower, change.instead, method)
        wanted = None if wanted is None else wanted[: change.batch]
    if isinstance(wanted, str):
        return "not refused"
    each = [one for one in (wanted if isinstance(wanted, list) else [wanted]) if one is not None]
    if not each:
        return "unknown"
    offs = [_off(maps, change.moves(one)) for one in each]
    return "right" if min(offs) < max(change.tolerance, 1e-6) else f"map off by {min(offs):.1e}"


def _explained(explainer: Any, pixels: Tensor, method: str) -> Any:
    extra = {"return_rest": True} if explainer.additive else {}
    options = OPTIONS.get(method, {})
    return explainer.attribute_targets(pixels.clone(), return_scores=True, **extra, **options)


def _off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


def similarity_of(name: str) -> ClipSimilarity:
    """The cosines of a shared model."""
    return ClipSimilarity(cases.adapter(name, torch.float64), targets.embedding(running.rows()))


# What is right


@cache
def of_plain(name: str, make: Make, method: str) -> Tensor:
    """The map of a plain model; by the method itself where no oracle knows it."""
    with placed(running.shared(name), "") as place:
        make(place)
        wanted = known(name, method)
        if wanted is None:
            explainer = attr.METHODS[method](similarity_of(name))
            wanted = _explained(explainer, cases.images(name).double(), method)[0]
    return wanted


def known(name: str, method: str, batch: int = 3) -> Tensor | None:
    """The map of a shared model as it computes now, read position by position."""
    found = removed(name) if method == "removal" else hooked.wanted(name, method)
    return None if found is None else found[:batch, : len(running.rows())]


def removed(name: str, forward: Forward | None = None) -> Tensor | None:
    """What the scores lose (B, K, 4, 4) where the reader does not see a patch."""
    row, prefix = others.READ.get(name, ("", 0))
    if row not in ("cls", "attention"):
        return None
    model, pixels = running.shared(name), cases.images(name).double()
    embed = partial(cases.embed, model, pixels)
    with torch.no_grad():
        clean, losses = F.normalize(embed(), dim=-1), list[Tensor]()
        for cell in range(COUNT):
            hidden = torch.zeros(prefix + COUNT, dtype=torch.bool)
            hidden[prefix + cell] = True
            ids = torch.zeros(len(pixels), row == "cls").long()
            losses.append(clean - blinded(embed, hidden, ids))
        lost = torch.stack(losses, -1).transpose(1, 2) @ running.rows().T  # (B, N, K)
        return lost.transpose(1, 2).unflatten(-1, (4, 4))


def of_forms(*forms: running.Form, last: Sequence[str] = ()) -> Any:
    """Maps of attentions that are written as matrices; of other methods those of the model."""

    def truth(change: Change, forward: Forward) -> Truth:
        def wanted(method: str) -> Any:
            if method in last or method not in ("direct", "grad-eclip", *GRADIENTS):
                return known(change.tower, method, change.batch)
            model = running.shared(change.tower)
            score = lambda embedding, _: oracles.cosines(embedding, running.rows())  # noqa: E731
            plain = running.Plain(model, change.pixels, forms * (3 // len(forms)), score=score)
            found = plain(method)
            return [one.detach() for one in found] if isinstance(found, list) else found

        return wanted

    return truth


GRADIENTS = ("last-grad", "all-grad", "rollout", "attention-grad-cam")


def of_gradients(row: oracles.Row | None = None, among: Sequence[str] = GRADIENTS) -> Any:
    """Maps of a forward function of one's own by the attentions' gradients; no others are right."""

    def truth(change: Change, forward: Forward) -> Truth:
        def wanted(method: str) -> Any:
            if method == "grad-eclip" and among is GRADIENTS:
                return None
            if method not in among:
                return NO_MAP
            pixels = change.pixels.requires_grad_()
            own, prefix = others.READ[change.tower]
            with explicit.explicit_attention(len(pixels)) as attention:
                scores = forward(pixels)
            seen = oracles.Seen(
                scores, scores, scores, tuple(attention), (4, 4), row or own, prefix
            )
            return oracles.maps(attr.METHODS[method].__name__, seen, scores)

        return wanted

    return truth


def of_moved(move: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Any:
    """Maps of images that are moved before the tower sees them, moved back."""

    def truth(change: Change, forward: Forward) -> Truth:
        own = cases.images

        def moved(*args: Any, **options: Any) -> Tensor:
            return move(own(*args, **options))

        def wanted(method: str) -> Any:
            with patch.object(cases, "images", moved):
                found = known(change.tower, method, change.batch)
            return None if found is None else back(found)

        return wanted

    return truth


def no_truth(change: Change, forward: Forward) -> Truth:
    """No method has a right map."""
    return lambda method: NO_MAP


# Counts


def kind_of(answer: str) -> str:
    """right, refused, wrong, foreign, unknown or "no model"."""
    if answer in ("right", "refused", "unknown"):
        return answer
    if answer.startswith("no model"):
        return "no model"
    return "wrong" if answer.startswith(("map", "scores", "not refused")) else "foreign"


def told(name: str, change: Change) -> Counter[str]:
    """Print what every method says of a change, and count it."""
    groups: dict[str, list[str]] = defaultdict(list)
    for method in methods_of(change):
        groups[judge(change, method)].append(method)
    print(name)
    for answer, methods in groups.items():
        print(f"    {answer}: {', '.join(methods)}", flush=True)
    counts = Counter[str]()
    for answer, methods in groups.items():
        counts[kind_of(answer)] += len(methods)
    return counts
