"""The score of a pair, as a sum over pairs of positions: which word answers which region."""

from itertools import product
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import torch
from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor

from .. import targets
from ..checks import check_flag, expect, is_integer
from ..errors import TargetError, UnsupportedModelError, public
from ..models import ClipAdapter
from ..models.library import has_no_foreign_hooks
from ..similarity import ClipPairSimilarity, ClipSimilarity, TextSimilarity
from .contributions import Baseline, Depth, DirectContribution, any_target

Option = TypeVar("Option")
OneOrTwo: TypeAlias = Option | tuple[Option, Option]
"""An option of both sides, or one for the images and one for what they are compared with."""


class InteractionRest(NamedTuple):
    """The parts of a score that belong to no pair of positions; B pairs, or B x N of all with all.

    Attributes:
        other: of a token, or of a position of the other image, alone: (B, T) or (B, h', w').
        image: of a position of the image alone, (B, h, w).
        constant: of neither, (B,).
    """

    other: Tensor
    image: Tensor
    constant: Tensor


class DirectInteraction(Attribution):  # type: ignore[misc]
    r"""What each pair of a token and a position adds to their cosine: the second order, exactly.

    Both unit embeddings are sums of vectors, one for each position and a rest
    (:meth:`DirectContribution.vectors`), so the cosine is a sum over pairs:

    .. math:: \hat e = \sum_i c_i + c_0, \quad \hat t = \sum_j d_j + d_0, \qquad
              \cos = \sum_{ij} c_i \cdot d_j + \sum_j c_0 \cdot d_j + \sum_i c_i \cdot d_0
              + c_0 \cdot d_0

    with the gates of both towers detached. It is the share that is attributed to word j at position
    i, signed: all shares and rests add up to the score. It does not answer what the word does to
    the region's effect once either is gone, which is a difference of scores (docs/text.md).

    One forward of each tower and a product, for any number of pairs. Start, end and padding have
    positions as words have; :func:`captum_clip.targets.word_tokens` tells which are whose.

    Options, keyword-only, each one for both sides or a pair (of the images, of the others):
    ``baseline``, ``start_layer`` and ``depth`` as :class:`DirectContribution` has them. With
    ``depth="all"`` of one side its tower takes a backward for each position of the other; of both,
    one takes E backwards.

    Args:
        forward_func: a :class:`captum_clip.ClipPairSimilarity`.

    Raises:
        InputError: another forward function.
        UnsupportedModelError: a tower that cannot be taken apart.

    Source: the sum over pairs of two decompositions after Gandelsman et al. 2024
    (arXiv:2310.05916), the text's ours; Möller et al. 2025 (arXiv:2408.14153), exCLIP, attribute to
    the same pairs by integrated second derivatives.

    Example:
        >>> from captum_clip import ClipPairSimilarity, DirectInteraction, load_clip
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipPairSimilarity(clip)
        >>> pair = (clip.preprocess(draw_scene(0).image), clip.text_inputs("a horse")[0])
        >>> maps, rest = DirectInteraction(forward).attribute(pair, return_rest=True)
        >>> maps.shape  # a map for each of 16 tokens
        torch.Size([1, 16, 7, 7])
        >>> total = maps.sum((1, 2, 3)) + rest.other.sum(1) + rest.image.sum((1, 2)) + rest.constant
        >>> bool((total - forward(*pair)).abs().max() < 1e-5)
        True
    """

    @public("DirectInteraction")
    def __init__(self, forward_func: ClipPairSimilarity) -> None:
        is_pair = isinstance(forward_func, ClipPairSimilarity)
        made = "pass ClipPairSimilarity(load_clip(model))"
        expect(is_pair, "a ClipPairSimilarity", forward_func, made)
        super().__init__(forward_func)
        clip = forward_func.clip
        axis = any_target(clip)
        self._image = self._other = DirectContribution(ClipSimilarity(clip, axis))
        if forward_func.side == "text":
            self._other = DirectContribution(TextSimilarity(clip, axis))

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    @public("attribute")
    def attribute(
        self,
        inputs: tuple[Tensor, Tensor],
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        return_rest: bool = False,
        baseline: OneOrTwo[Baseline] = "none",
        start_layer: OneOrTwo[int] = 0,
        depth: OneOrTwo[Depth] = "pooling",
    ) -> Any:
        """Shares (B, T, h, w) of B pairs; of pairs of images (B, h', w', h, w).

        Args:
            inputs: images (B, 3, H, W), and token ids (B, T) or as many images.
            target: as Captum has it; there is one score for each pair, so None or 0.
            additional_forward_args: the attention mask of the texts.
            return_rest: return (shares, :class:`InteractionRest`).
            baseline: see the class, like what follows.
            start_layer: first layer that takes part.
            depth: "pooling", "token" or "all".

        Raises:
            InputError: invalid inputs or options, or not as many of each.
            TargetError: a target.
        """
        expected = f"a tuple of two tensors, images and {self.forward_func.side}s"
        expect(isinstance(inputs, tuple) and len(inputs) == 2, expected, inputs)
        is_first = target is None or (is_integer(target) and target == 0)
        advice = "there is one score for each pair"
        expect(is_first, "no target", target, advice, error=TargetError)
        options = {"baseline": baseline, "start_layer": start_layer, "depth": depth}
        return self._shares(inputs, additional_forward_args, options, return_rest, paired=True)

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    @public("attribute_pairs")
    def attribute_pairs(
        self,
        images: Tensor,
        others: Tensor,
        additional_forward_args: Any = None,
        *,
        return_rest: bool = False,
        baseline: OneOrTwo[Baseline] = "none",
        start_layer: OneOrTwo[int] = 0,
        depth: OneOrTwo[Depth] = "pooling",
    ) -> Any:
        """Shares (B, N, T, h, w) of B images with each of N texts, or of N images.

        Arguments are those of :meth:`attribute`; the rest is (B, N, T), (B, N, h, w) and (B, N).
        """
        options = {"baseline": baseline, "start_layer": start_layer, "depth": depth}
        inputs, extra = (images, others), additional_forward_args
        return self._shares(inputs, extra, options, return_rest, paired=False)

    def _shares(
        self,
        inputs: tuple[Tensor, Tensor],
        extra: Any,
        options: dict[str, Any],
        return_rest: bool,
        *,
        paired: bool,
    ) -> Any:
        check_flag("return_rest", return_rest)
        is_plain = type(self.forward_func) is ClipPairSimilarity
        if not (is_plain and has_no_foreign_hooks(self.forward_func)):
            raise UnsupportedModelError(
                "the forward function has a hook, a patched method or its own code, "
                "so its score may be more than the cosine; pass a plain ClipPairSimilarity."
            )
        both = [{n: _of_side(n, v, index) for n, v in options.items()} for index in (0, 1)]
        # a wrong option of the second side must not cost the first one's forward
        for of_side in both:  # before any forward
            DirectContribution.check_options(**of_side)
        mask = extra[0] if isinstance(extra, tuple) and len(extra) == 1 else extra
        self.forward_func.check(*inputs, mask, pairs=paired)
        sides = [(self._other, inputs[1], mask, both[1]), (self._image, inputs[0], None, both[0])]
        # the side with fewer backwards first: of a deep one those along the other's vectors
        if both[1]["depth"] == "all" != both[0]["depth"]:
            whole, cells = _ledger(*sides[::-1], paired=paired)
            whole, cells = (whole if paired else whole.transpose(0, 1)).mT, cells[::-1]
        else:
            whole, cells = _ledger(*sides, paired=paired)
        lead, (of_other, of_image) = whole.shape[:-2], cells
        shares = whole[..., :-1, :-1].reshape(*lead, *of_other, *of_image)
        other = whole[..., :-1, -1].reshape(*lead, *of_other)
        image = whole[..., -1, :-1].reshape(*lead, *of_image)
        rest = InteractionRest(other, image, whole[..., -1, -1])
        return (shares, rest) if return_rest else shares


class PairMaps(NamedTuple):
    """Maps of a text and of each of its words, or of a reference image and of each of its cells.

    Attributes:
        names: of the K.
        maps: signed, (B, K, h, w): the whole first, then the shares of each part.
        scores: the cosine, then the share of each part, the sum of its map, (B, K).
        leave_one_out: what the cosine loses without the text, and without each word, (B, K); None
            of cells.
        norms: of these differences, (K,), 1 of the whole.
        cells: rows and columns of the reference's grid.
    """

    names: tuple[str, ...]
    maps: Tensor
    scores: Tensor
    leave_one_out: Tensor | None
    norms: Tensor
    cells: tuple[int, int] = (0, 0)


def pair_maps(clip: ClipAdapter, pixels: Tensor, other: str | Tensor, **options: Any) -> PairMaps:
    """The shares of images (B, 3, H, W) with one text, or with one image (1, 3, H, W).

    Start, end and padding of a text count in the whole alone.
    """
    side: Literal["text", "image"] = "text" if isinstance(other, str) else "image"
    method = DirectInteraction(ClipPairSimilarity(clip, side))
    others, mask = (other, None) if isinstance(other, Tensor) else clip.text_inputs(other)
    parts = method.attribute_pairs(pixels, others, mask, return_rest=True, **options)
    shares, rest = parts[0][:, 0], InteractionRest(*(share[:, 0] for share in parts[1]))
    cells = shares.flatten(1, -3)  # (B, T or h' w', h, w)
    whole = cells.sum(1) + rest.image
    cosine = whole.sum((-2, -1)) + rest.other.flatten(1).sum(1) + rest.constant
    norms, leave_one_out, size = torch.ones(1, device="cpu"), None, (0, 0)
    if isinstance(other, str):
        without = targets.words(clip, other)
        empty = targets.text(clip, "", allow_empty=True)
        gone = targets.concatenate([targets.text(clip, other) - empty, without])
        with torch.no_grad():
            leave_one_out = ClipSimilarity(clip, gone)(pixels) * gone.norms.to(pixels.device)
        spans = [span for _, span in targets.word_tokens(clip, other)]
        cells = torch.stack([cells[:, s.start : s.stop].sum(1) for s in spans], 1)
        names, norms = (other, *without.names), torch.cat([norms, without.norms.cpu()])
    else:
        size = (shares.shape[1], shares.shape[2])
        places = product(*map(range, size))
        names = ("reference", *(f"row {row}, column {column}" for row, column in places))
        norms = norms.expand(len(names))
    maps = torch.cat([whole[:, None], cells], 1).view(len(shares), -1, *shares.shape[-2:])
    scores = torch.cat([cosine[:, None], cells.sum((-2, -1))], 1)
    return PairMaps(names, maps, scores, leave_one_out, norms, size)


_Side: TypeAlias = tuple[DirectContribution, Tensor, Any, dict[str, Any]]


def _ledger(first: _Side, second: _Side, *, paired: bool) -> tuple[Tensor, list[Any]]:
    """Products of all parts of the first side with those of the second, the rest the last of each.

    (B, n + 1, m + 1), or with all pairs (B, N, n + 1, m + 1), B of the second; and the shapes of
    the positions of both.
    """
    method, inputs, mask, options = first
    vectors, rest = method.vectors(inputs, mask, return_rest=True, **options)
    parts = torch.cat([vectors.flatten(1, -2), rest[:, None]], 1)  # (N, n + 1, E)
    directions = parts.transpose(0, 1) if paired else parts.flatten(0, 1)[:, None]
    method, inputs, mask, options = second
    products = method._products(inputs, mask, options, directions)
    assert products.rest is not None
    whole = torch.cat([products.values.flatten(2), products.rest[..., None]], 2)
    if not paired:
        whole = whole.view(len(whole), *parts.shape[:2], -1)
    return whole, [vectors.shape[1:-1], products.values.shape[2:]]


def _of_side(name: str, value: Any, index: int) -> Any:
    """One side's value of an option."""
    if not isinstance(value, (tuple, list)):
        return value
    expect(len(value) == 2, f"{name} for both sides, or a pair of them", value)
    return value[index]
