"""Adapters of one's own, and a text's end token: explained with what runs, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_clip import DirectContribution, TextSimilarity, attr, load_clip, targets
from captum_clip.errors import CaptumClipError
from tests import builders
from tests.attr import running
from tests.attr.running import FEW, TAKEN_APART, Plain

SCALE = torch.linspace(0.5, 2, 24, dtype=torch.float64)
POSTS: dict[str, Callable[[Tensor], Tensor]] = {
    "centered": lambda e: e - torch.linspace(-1, 1, 24, dtype=e.dtype),
    "scaled": lambda e: SCALE * e,
    "turned": lambda e: e.flip(-1),
}


def adapted(clip: Any, part: str, post: Callable[[Tensor], Tensor]) -> Any:
    """An adapter whose features are more than the library's."""

    def features(self: Any, *args: Any) -> Tensor:
        return post(getattr(super(kind, self), part)(*args))

    kind: Any = type("OwnAdapter", (type(clip),), {part: features})
    parts = {"processor": clip.processor, "tokenizer": clip.tokenizer}
    return kind(clip.model, clip.tower, name="own", **parts)


@pytest.mark.parametrize("post", POSTS)
def test_an_adapter_of_ones_own_is_explained_with_what_it_adds(post: str) -> None:
    small = running.double()
    similarity = running.similarity_of(adapted(small.load(), "image_features", POSTS[post]))
    plain = Plain(small.model, running.images(), post=POSTS[post])
    torch.testing.assert_close(similarity(running.images()), plain.scores)
    methods = [*FEW, "grad-eclip"]
    running.assert_right_or_refused(running.verdicts(methods, similarity, plain))
    # of the others the score at least
    running.assert_right_or_refused(running.verdicts(TAKEN_APART, similarity))


def test_a_text_adapter_of_ones_own_is_explained_with_what_it_adds() -> None:
    """The shares are linear in the direction, so those along all axes say what they have to be."""
    small, post = running.double(), POSTS["centered"]
    clip, target = small.load(), targets.embedding(running.rows())
    ids, mask = clip.text_inputs(["a horse", "a dog"])
    axes = TextSimilarity(clip, targets.embedding(torch.eye(24, dtype=torch.float64)))
    shares = DirectContribution(axes).attribute_targets(ids, additional_forward_args=mask)
    plain = clip.text_features(ids, mask).detach()
    shares = shares * plain.norm(dim=-1)[:, None, None]
    maps: Any = [
        torch.einsum("bet,bke->bkt", shares, direction(plain))
        for direction in running.directions(post)
    ]
    similarity = TextSimilarity(adapted(clip, "text_features", post), target)
    answers = running.verdicts(
        ["direct"],
        similarity,
        lambda method: maps,
        ids,
        scores=similarity(ids, mask),
        additional_forward_args=mask,
    )
    running.assert_right_or_refused(answers)


def text_maps(model: Any, small: builders.Small) -> dict[str, Any]:
    """Every method's maps of the text side, or that it refuses."""
    clip = load_clip(model, tokenizer=small.tokenizer)
    similarity = TextSimilarity(clip, targets.embedding(running.rows()))
    ids, mask = clip.text_inputs(["a horse", "a dog"])
    found: dict[str, Any] = {"scores": similarity(ids, mask).detach()}
    for method in (*FEW, "conservative", "grad-eclip"):
        try:
            found[method] = attr.METHODS[method](similarity).attribute_targets(
                ids, additional_forward_args=mask
            )
        except CaptumClipError:
            found[method] = None
    return found


@pytest.mark.parametrize("part", ["configuration", "legacy"])
def test_the_token_that_a_text_tower_reads_is_the_one_that_is_explained(part: str) -> None:
    """The library keeps the number of the end token when it makes the module.

    A token of the text stands for the end here, so that another position would be read; 2 says
    that the largest number is the end.
    """
    small = running.double()
    tower, letter = small.model.text_model, int(small.tokenizer("a")["input_ids"][1])
    wanted = text_maps(small.model, small)
    number = 2 if part == "legacy" else letter
    small.model.config.text_config.eos_token_id = tower.config.eos_token_id = number
    found = text_maps(small.model, small)
    torch.testing.assert_close(found.pop("scores"), wanted.pop("scores"))
    for method, maps in found.items():
        if maps is not None:
            torch.testing.assert_close(maps, wanted[method], msg=method)
    assert found["last-grad"] is not None
