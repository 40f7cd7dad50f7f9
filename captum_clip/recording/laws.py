"""The laws that must hold in a forward for a map of it to be right: one tuple, `LAWS`.

Some are seen to after each forward, on its `Recording`; others, which cost backward passes, in an
inspection of a model, on its `Cuts`.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import CaptureError, UnsupportedModelError
from ..models.library import refuse_not_finite
from ..models.rounding import difference, is_rounding, size_of
from .cuts import Cuts
from .graph import is_exact
from .records import Claim, Recording

Facts = dict[str, Any]
"""What is special about one breach of a law: values for the names in its sentence."""
When = Literal["after", "inspection"]


class ChangedInPlaceError(UnsupportedModelError):
    """The forward works in place on tokens whose rows were to be read after it."""


@dataclass(frozen=True)
class Law:
    """What must hold in a forward, and what is said where it does not.

    Attributes:
        name: by which a method names a law that only some need.
        when: after each forward, on its `Recording`, or in an inspection, on its `Cuts`.
        check: yields the facts of each breach.
        sentence: formatted with these, the `method` that asks and the `noun` of the tower.
        error: raised with the sentence.
        is_general: whether it must hold for every method.
    """

    name: str
    when: When
    check: Callable[[Any], Iterable[Facts]]
    sentence: str
    error: type[Exception]
    is_general: bool = True

    def breach(self, **facts: Any) -> Exception:
        """The error that tells of a breach."""
        return self.error(self.sentence.format(**facts))


def verify(record: Recording, method: str) -> None:
    """Raise unless a forward has kept all laws that are seen to after it.

    Its claims are then let go, so that each is compared once.
    """
    try:
        _uphold("after", record, record, method=method)
    finally:
        record.claims.clear()


def refuse_other_weights(record: Recording) -> None:
    """Raise CaptureError where parts of a tower cannot run again with the weights that ran."""
    if record.switched:
        raise SAME_WEIGHTS.breach(noun=record.noun)


def uphold_in(cuts: Cuts, names: Collection[str]) -> None:
    """Raise unless an inspected forward has kept the general laws and those that are named."""
    _uphold("inspection", cuts, cuts.record, names, method="a look at the model")


def _uphold(
    when: When, evidence: Any, record: Recording, names: Collection[str] = (), **words: str
) -> None:
    """Raise the first breach that the evidence, a `Recording` or `Cuts`, shows."""
    for law in LAWS:
        if law.when == when and (law.is_general or law.name in names):
            for facts in law.check(evidence):
                raise law.breach(noun=record.noun, **words, **facts)


# Laws of each forward


def _changes_in_place(record: Recording) -> Iterator[Facts]:
    if record.graph.is_changed:
        yield {}


def _other_weights(record: Recording) -> Iterator[Facts]:
    # What was not computed again may have run with any weights.
    if record.switched and any(_broken_parts(record)):
        yield {}


def _broken_parts(record: Recording) -> Iterator[Facts]:
    # With dropout a part that is computed again differs from what ran, and nothing is wrong.
    if is_exact():
        yield from _broken(record, record.claims)


class _Compared(NamedTuple):
    """Claims of one shape, compared together."""

    names: list[str]  # of n parts
    bound: float
    off: Tensor  # (n, ...), how far they are off
    most: Tensor  # (n, ...), how far they may be off


def _broken(record: Recording, claims: Sequence[Claim]) -> Iterator[Facts]:
    """The first part that is not what the library returned, if there is one."""
    groups: dict[Any, list[Claim]] = defaultdict(list)
    for claim in claims:
        shapes = [tensor.shape[1:] for tensor in (claim.recomputed, *claim.sizes)]
        groups[(claim.returned.dtype, *shapes)].append(claim)
    compared = [_compared(record, group) for group in groups.values()]
    if not compared:
        return
    # All results are read at once, since each read waits for the device.
    off = _concatenated([group.off.flatten() for group in compared])
    most = _concatenated([group.most.flatten() for group in compared])
    # The bounds are in `most` already. Where the size overflows, the map shows it.
    wrong = ~is_rounding(off, most, 1) & (most < torch.inf)
    if wrong.any():
        index = int(wrong.int().argmax())
        part, bound = _part_at(compared, index)
        # A part of zeros has no size, over which nothing can be divided.
        excess = float(off[index]) / max(float(most[index]), 1e-30)
        yield {"part": part, "ratio": excess * bound, "bound": bound}


def _compared(record: Recording, group: Sequence[Claim]) -> _Compared:
    recomputed = _concatenated([claim.recomputed for claim in group])
    returned = _concatenated([claim.returned for claim in group])
    sizes = [_concatenated(same) for same in zip(*(claim.sizes for claim in group), strict=True)]
    bound = record.rounding(returned)
    off = difference(recomputed, returned, dim=-1)
    most = bound * size_of(*(sizes or [returned]), dim=-1)
    names = [name for claim in group for name in claim.names]
    return _Compared(names, bound, off, most.expand_as(off))


def _part_at(compared: Sequence[_Compared], index: int) -> tuple[str, float]:
    """The name and the bound of the part to which a number among all differences belongs."""
    for group in compared:
        if index < group.off.numel():
            return group.names[index // group.off[0].numel()], group.bound
        index -= group.off.numel()
    raise IndexError(index)


def _concatenated(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


# Laws of an inspection


def _not_finite(cuts: Cuts) -> Iterator[Facts]:
    for read in cuts.broken_reads:
        # Parameters that are not finite explain all else, so they have an error of their own.
        refuse_not_finite(cuts.record.tower.module)
        if not read.out.isfinite().all():
            yield {"part": read.name}


def _other_attention(cuts: Cuts) -> Iterator[Facts]:
    for read in cuts.broken_reads:
        yield {"part": read.name}


def _other_merge(cuts: Cuts) -> Iterator[Facts]:
    yield from _broken(cuts.record, cuts.claims)


def _disorder(cuts: Cuts) -> Iterator[Facts]:
    for part in cuts.disordered():
        yield {"part": part}


def _displaced_pixels(cuts: Cuts) -> Iterator[Facts]:
    for cut in cuts.displaced:
        if not cut.in_blocks:
            yield {"part": cut.name, "entered": cut.entered}


def _displaced_tokens(cuts: Cuts) -> Iterator[Facts]:
    for cut in cuts.displaced:
        if cut.in_blocks:
            yield {"part": cut.name, "entered": cut.entered}


def _reads_nothing(cuts: Cuts) -> Iterator[Facts]:
    for scored in cuts.score_gradients:
        if scored.embedding is None and not scored.others:
            yield {}


def _reads_below_alone(cuts: Cuts) -> Iterator[Facts]:
    for scored in cuts.score_gradients:
        if scored.embedding is None and scored.others:
            yield {"part": scored.others[-1]}


def _reads_below_too(cuts: Cuts) -> Iterator[Facts]:
    for scored in cuts.score_gradients:
        if scored.others:
            yield {"part": scored.others[-1]}


def _mixed_images(cuts: Cuts) -> Iterator[Facts]:
    if cuts.mixes_images():
        yield {}


_OTHER_PART: Final = (
    "{method}: {part} of the {noun} does not return what its weights make of its input (off by "
    "{ratio:.1g} of its size, where rounding is at most {bound:g}); a hook, a patch or an adapter "
    "changes it. Remove that, or use a method that does not compute this part again, such as "
    "all-grad on a ViT, or Captum's Occlusion."
)
_NOT_AT_ITS_PLACE: Final = (
    "{part} of the {noun} does not read {entered} each at its own place: something beside the "
    "attention merges, drops, adds, mixes or permutes tokens, such as prompts. Remove that, or use "
    "a method of Captum that does not look inside, such as Occlusion."
)
SAME_WEIGHTS: Final = Law(
    "same weights",
    "after",
    _other_weights,
    "The forward function ran the {noun} with other weights or adapters than it has outside of it, "
    "as torch.func.functional_call and peft's disable_adapter() do, so its parts cannot be "
    "computed again. Make that change around the whole call of the method, such as with "
    "load_state_dict on a copy or `with model.disable_adapter():`.",
    CaptureError,
)

LAWS: Final = (
    Law(
        "kept tokens",
        "after",
        _changes_in_place,
        "{method}: the forward of the {noun} changes the input tokens of an attention in place "
        "afterwards; change a clone of them instead.",
        ChangedInPlaceError,
    ),
    SAME_WEIGHTS,
    Law("parts", "after", _broken_parts, _OTHER_PART, UnsupportedModelError),
    Law(
        "finite",
        "inspection",
        _not_finite,
        "{part} of the {noun} returns NaN or infinity, and its weights are finite; look for NaN in "
        "the images, or for an overflow in half precision.",
        CaptureError,
    ),
    Law(
        "attention",
        "inspection",
        _other_attention,
        "{part} of the {noun} does not return the sum of its values by its weights; use a method "
        "of Captum that does not look inside, such as Occlusion.",
        UnsupportedModelError,
    ),
    Law("merge", "inspection", _other_merge, _OTHER_PART, UnsupportedModelError, is_general=False),
    Law(
        "order",
        "inspection",
        _disorder,
        "the {part} of the {noun} do not lie in the order of the pixels that they see: something "
        "permutes them, or takes their gradient. Remove that, or use a method of Captum that does "
        "not look inside, such as Occlusion.",
        UnsupportedModelError,
    ),
    Law("patches", "inspection", _displaced_pixels, _NOT_AT_ITS_PLACE, UnsupportedModelError),
    Law(
        "blocks",
        "inspection",
        _displaced_tokens,
        _NOT_AT_ITS_PLACE,
        UnsupportedModelError,
        is_general=False,
    ),
    Law(
        "a score of the tower",
        "inspection",
        _reads_nothing,
        "The scores do not depend on what the tower computed.",
        CaptureError,
    ),
    Law(
        "a score of the last layer",
        "inspection",
        _reads_below_alone,
        "The scores read what enters {part}, and not what the last layer of the {noun} returns, so "
        "a map of its attention would be zero everywhere. Score what the tower returns; for a "
        "vision-language model use Captum's LLMAttribution with ImageMaskInput (docs/captum.md).",
        CaptureError,
    ),
    Law(
        "embedding",
        "inspection",
        _reads_below_too,
        "The scores read what enters {part} of the {noun} beside the embedding, so they cannot be "
        "taken apart. Use a method with gradients, such as all-grad.",
        CaptureError,
        is_general=False,
    ),
    Law(
        "images apart",
        "inspection",
        _mixed_images,
        "The scores of an image depend on other images of the batch, as a softmax over images, a "
        "batch's mean or sorted images do; score each image by itself.",
        CaptureError,
    ),
)
"""All laws, in the order in which they are seen to, so that the first breach tells the reason."""
