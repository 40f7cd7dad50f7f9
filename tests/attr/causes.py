"""Changes that were once explained in silence as something else, or ended in others' exceptions.

``python -m tests.attr.causes`` prints what every method says of each; ``stem`` of those alone whose
names have this part.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from tests.attr import moves
from tests.attr import own_kernels as kernels
from tests.attr import own_modules as modules
from tests.attr.changes import Place, unchanged
from tests.attr.judged import (
    FLOWS,
    METHODS,
    Change,
    Make,
    no_truth,
    of_forms,
    of_gradients,
    of_moved,
    told,
)

# Between two calls


class Flag:
    """A switch that somebody's code reads."""

    on = False


def flagged(
    place: Place, make: Callable[[Callable[[Tensor], Tensor]], None], move: moves.Move
) -> None:
    """Code that changes nothing until a flag is set."""
    place.model.__dict__["flag"] = flag = Flag()
    make(lambda x: move(x) if flag.on else x)


def set_flag(place: Place) -> None:
    """Set it."""
    place.model.__dict__["flag"].on = True


def stem_flag(place: Place) -> None:
    """A stem that exchanges two patches once a flag is set."""
    order = moves.swapped(2, 9)
    flagged(
        place,
        lambda change: moves.after(moves.stem(place), change),
        lambda x: x.flatten(2)[..., order].view_as(x).contiguous(),
    )


FLAGS = {"on": False}


def closed_flag(place: Place) -> None:
    """A stem whose hook encloses a flag, and exchanges two patches once that is set."""
    flags, order = FLAGS, moves.swapped(0, 1)
    flags["on"] = False

    def change(x: Tensor) -> Tensor:
        return x.flatten(2)[..., order].view_as(x).contiguous() if flags["on"] else x

    moves.after(moves.stem(place), change)


def three_turned(place: Place) -> None:
    """Two blocks that get three images, and no other number, in another order."""
    order = torch.tensor([2, 0, 1])
    moves.before(moves.blocks(place)[1], lambda x: x[order] if len(x) == 3 else x)
    moves.after(moves.blocks(place)[2], lambda x: x[order.argsort()] if len(x) == 3 else x)


def block_flag(place: Place) -> None:
    """A block that turns its patches once a flag is set."""
    flagged(
        place,
        lambda change: moves.inside(moves.blocks(place)[1], change),
        moves.of_patches(moves.rolled, 1),
    )


def passive_hook(where: Callable[[Place], nn.Module]) -> Make:
    """A hook that does nothing, and can be taken away."""

    def make(place: Place) -> None:
        handle = where(place).register_forward_hook(lambda *_: None)
        place.model.__dict__["handle"] = handle

    return make


def other_hook(make: Make) -> Make:
    """Another one in its place."""

    def change(place: Place) -> None:
        place.model.__dict__["handle"].remove()
        make(place)

    return change


def plain_inside(place: Place) -> None:
    """A block's forward in one's own words."""
    moves.inside(moves.blocks(place)[1], lambda x: x)


# The table

EVEN, ODD = moves.swapped(0, 1), moves.swapped(2, 7)
# of which half of the tokens alone tells no image's two from the other way round
PAIRS = {"0 and 1": EVEN, "0 and 10": moves.swapped(0, 10), "3 and 7": moves.swapped(3, 7)}


def token_swap(order: Sequence[int]) -> moves.Move:
    """Tokens (B, s, D) of which two patches are exchanged."""
    return moves.of_patches(moves.ordered(order), 1)


CAUSES: dict[str, Change] = {}
for _tower in ("hf_vit", "open_clip_vit", "siglip", "open_clip_vit_mean"):
    for _name, _move in {"rolled": moves.rolled, "sorted": moves.sorted_by_length}.items():
        CAUSES[f"{_tower}: patches {_name} inside a block"] = Change(
            moves.moving_inside(_move), unchanged, _tower
        )
    CAUSES[f"{_tower}: ToMe, unmerged"] = Change(
        moves.moving_inside(moves.tome_unmerged),
        tower=_tower,
        refused=FLOWS if _tower[-3:] == "vit" else (*FLOWS, "last-grad"),
    )
    CAUSES[f"{_tower}: the grid transposed in the stem"] = Change(
        moves.moving_stem(moves.transposed()), moves.moved_positions(moves.transposed()), _tower
    )
for _tower in ("hf_vit", "open_clip_vit"):
    CAUSES[f"{_tower}: a second attention beside the module"] = Change(
        moves.second_attention(slice(1, None)), tower=_tower, refused=(*FLOWS, "removal")
    )
    CAUSES[f"{_tower}: a second attention, of CLS as well"] = Change(
        moves.second_attention(slice(0, None)), tower=_tower, refused=(*FLOWS, "direct", "removal")
    )
for _name, _order in PAIRS.items():
    _swap, _plain = token_swap(_order), moves.moved_positions(_order)
    _values = partial(moves.projections, "v_proj", change=_swap)
    _keys = partial(moves.projections, "k_proj", change=_swap)
    for _where, _change in {
        "in the stem": Change(moves.moving_stem(_order), _plain),
        "before the blocks": Change(moves.moving_before(moves.ordered(_order), 0), unchanged),
        "between blocks": Change(moves.moving_before(moves.ordered(_order)), unchanged),
        "in the queries": Change(moves.projections("q_proj", change=_swap)),
        "in the values": Change(_values(), _keys()),
        "in the last values": Change(_values(index=2), _keys(index=2)),
        "in keys and values": Change(
            moves.projections("k_proj", "v_proj", change=_swap), unchanged
        ),
    }.items():
        CAUSES[f"{_name} swapped {_where}"] = _change._replace(batch=1)
CAUSES |= {
    "queries in another order": Change(kernels.kernel(kernels.turned_queries), unchanged),
    "queries of the last layer in another order": Change(
        kernels.kernel(kernels.turned_queries, (2,)), unchanged
    ),
    "sdpa + S v": Change(
        kernels.kernel(kernels.summed(kernels.SUM)),
        truth=of_forms(kernels.of_sum(kernels.SUM)),
        refused=("removal",),
    ),
    "sdpa + S v, not of CLS": Change(
        kernels.kernel(kernels.summed(kernels.LOWER)), truth=of_forms(kernels.of_sum(kernels.LOWER))
    ),
    "logged and thrown away, the same": Change(
        kernels.kernel(kernels.logged(kernels.fused)), unchanged
    ),
    "logged and thrown away, another": Change(
        kernels.kernel(kernels.logged(kernels.of_others)), unchanged
    ),
    "logged and thrown away, of twice the scale": Change(
        kernels.kernel(kernels.logged(lambda q, k, v, s: kernels.fused(q, k, v, 2 * s))), unchanged
    ),
    "thrown away, and the values' mean taken": Change(
        kernels.kernel(
            kernels.logged(kernels.fused, lambda q, k, v, s: v.mean(2, keepdim=True).expand_as(q))
        ),
        refused=[method for method in METHODS if method != "conservative"],
    ),
    "top-k attention": Change(
        kernels.kernel(kernels.top(5)), truth=kernels.removed_of(kernels.top(5))
    ),
    "top-k attention, in the last layer": Change(
        kernels.kernel(kernels.top(9), (2,)),
        truth=kernels.removed_of(kernels.top(9), (2,)),
    ),
    # images
    "softmax over the batch": Change(scores=modules.scored(lambda y: y.softmax(0)), truth=no_truth),
    "softmax over one image": Change(
        scores=modules.scored(lambda y: y.softmax(0)), truth=no_truth, batch=1
    ),
    "less the batch's mean": Change(scores=modules.scored(lambda y: y - y.mean(0)), truth=no_truth),
    "less the mean of one image": Change(
        scores=modules.scored(lambda y: y - y.mean(0)), truth=no_truth, batch=1
    ),
    "over the batch's largest": Change(
        scores=modules.scored(lambda y: y / y.abs().amax(0)), truth=no_truth
    ),
    "images sorted and put back": Change(
        unchanged, unchanged, scores=modules.of_images(modules.put_back)
    ),
    # what the score reads
    "LLaVA's hidden state": Change(scores=modules.llava, truth=of_gradients("mean", ("all-grad",))),
    "a score of the stem as well": Change(scores=modules.also(moves.stem), truth=of_gradients()),
    "a score of an attention as well": Change(
        scores=modules.also(lambda place: moves.blocks(place)[1].self_attn), truth=of_gradients()
    ),
    "a score of an MLP as well": Change(
        scores=modules.also(lambda place: moves.blocks(place)[1].mlp), truth=of_gradients()
    ),
    "a score of the last attention as well": Change(
        scores=modules.also(lambda place: moves.blocks(place)[2].self_attn), truth=of_gradients()
    ),
    "a score of the last MLP as well": Change(
        scores=modules.also(lambda place: moves.blocks(place)[2].mlp), truth=of_gradients()
    ),
    "a score of queries as well": Change(
        scores=modules.also(lambda place: moves.blocks(place)[2].self_attn.q_proj),
        truth=of_gradients(),
    ),
    "a score of values as well": Change(
        scores=modules.also(lambda place: moves.blocks(place)[1].self_attn.v_proj),
        truth=of_gradients(),
    ),
    "a score of a block as well": Change(
        scores=modules.also(lambda place: moves.blocks(place)[1]), truth=of_gradients()
    ),
    # between calls
    "a flag of the stem between calls": Change(
        set_flag, moves.moved_positions(moves.swapped(2, 9)), before=stem_flag
    ),
    "a flag of a block between calls": Change(set_flag, unchanged, before=block_flag),
    "a forward exchanged between calls": Change(
        moves.moving_inside(moves.rolled), unchanged, before=plain_inside
    ),
    "a library's forward exchanged between calls": Change(
        moves.moving_inside(moves.rolled), unchanged, before=unchanged
    ),
    "a block's hook swapped for another between calls": Change(
        other_hook(
            lambda place: moves.after(moves.blocks(place)[0], moves.of_patches(moves.rolled, 1))
        ),
        unchanged,
        before=passive_hook(lambda place: moves.blocks(place)[0]),
    ),
    "a stem's hook swapped for another between calls": Change(
        other_hook(moves.moving_stem(EVEN)),
        moves.moved_positions(EVEN),
        before=passive_hook(moves.stem),
    ),
    "a module exchanged between calls": Change(
        moves.moving_stem(ODD), moves.moved_positions(ODD), before=unchanged
    ),
    "a flag in a closure between calls": Change(
        lambda place: FLAGS.update(on=True), moves.moved_positions(EVEN), before=closed_flag
    ),
    "a kernel registered anew between calls": Change(
        kernels.kernel(kernels.turned_queries), unchanged, before=kernels.kernel(kernels.fused)
    ),
    "three images in another order": Change(three_turned, unchanged),
    "images exchanged before the tower": Change(
        scores=modules.of_images(lambda similarity, pixels: similarity(pixels.flip(0))),
        truth=no_truth,
    ),
    "images transposed before the tower": Change(
        scores=modules.of_images(lambda similarity, pixels: similarity(pixels.mT)),
        truth=of_moved(lambda x: x.mT, lambda maps: maps.mT),
    ),
    "images mirrored before the tower": Change(
        scores=modules.of_images(lambda similarity, pixels: similarity(pixels.flip(-1))),
        truth=of_moved(lambda x: x.flip(-1), lambda maps: maps.flip(-1)),
    ),
    "a constant score": Change(
        scores=modules.scored(lambda y: y * 0 + 1), truth=of_gradients(None, ("rollout",))
    ),
    "padded keys": Change(kernels.kernel(kernels.padded_keys), unchanged),
    "padded queries": Change(kernels.kernel(kernels.padded), unchanged),
    "an attention of two heads": Change(modules.two_heads),
    # exceptions of others
    "a convolution beside an MLP": Change(modules.mlp(modules.Convolved)),
    "a convolution beside the last MLP": Change(modules.mlp(modules.Convolved, 2)),
    "LePE": Change(kernels.kernel(kernels.with_local), refused=FLOWS),
    "CLIP-Adapter": Change(
        lambda place: setattr(
            place.model, "visual_projection", modules.Adapter(place.model.visual_projection)
        )
    ),
    "a Mixer's MLP": Change(modules.mlp(lambda _: modules.Mixer()), refused=("removal",)),
    "attention in an autograd.Function": Change(kernels.kernel(kernels.flash), unchanged),
    "the last attention in an autograd.Function": Change(
        kernels.kernel(kernels.flash, (2,)), unchanged
    ),
    "a kernel under no_grad": Change(kernels.kernel(kernels.without_graph), unchanged),
    "backward hooks on a pooling head": Change(
        modules.backward_hooks("vision_model.head", "vision_model.head.attention"), tower="siglip"
    ),
    "token counts that differ": Change(modules.registers, refused=("rollout",)),
    "an input changed in place": Change(
        scores=modules.of_images(modules.in_place), truth=lambda change, _: lambda method: None
    ),
    "a kernel in bfloat16": Change(kernels.kernel(kernels.in_bfloat16), unchanged, tolerance=0.05),
    "a tower that returns an object": Change(modules.own_output(modules.Output)),
    "a tower that returns a dictionary of attributes": Change(
        modules.own_output(modules.Attributes)
    ),
    "a score without a gradient": Change(
        scores=modules.scored(Tensor.detach), truth=of_gradients(None, ("rollout",))
    ),
    "a block's input changed in place": Change(
        lambda place: moves.before(moves.blocks(place)[1], lambda x: x.mul_(1.1))
    ),
    "SigLIP without its head": Change(
        lambda place: setattr(place.model.vision_model, "use_head", False),
        tower="siglip",
        scores=modules.headless,
        truth=of_gradients("mean"),
    ),
    "keys of two further tokens in one layer": Change(kernels.kernel(kernels.with_prefix, (1,))),
    "keys of two further tokens in the last layer": Change(
        kernels.kernel(kernels.with_prefix, (2,))
    ),
    "an exported MLP of one size": Change(
        modules.mlp(partial(modules.exported, sizes=None)), unknown=("conservative",)
    ),
    # a ResNet
    "a last stage that is rolled": Change(
        modules.rolled_stage, modules.rolled_positions, "open_clip_resnet"
    ),
    "a pool whose attention is thrown away": Change(
        modules.thrown_away, tower="open_clip_resnet", refused=("direct", "removal")
    ),
    "an exported MLP": Change(modules.mlp(modules.exported), unknown=("conservative",)),
    # explained, or refused in a sentence
    "maps shared between layers": Change(modules.shared_maps),
    "an MLP in chunks": Change(modules.mlp(modules.Chunked)),
    "a product logged before the kernel": Change(
        kernels.kernel(kernels.with_logged_product), unchanged
    ),
    "einsum with dots": Change(kernels.kernel(kernels.with_dots), unchanged),
    "softmax by hand": Change(kernels.kernel(kernels.by_hand), unchanged),
}


if __name__ == "__main__":  # all, or those with a part of their names among the arguments
    parts, total = sys.argv[1:] or [""], Counter[str]()
    warnings.simplefilter("ignore")
    for _name, _change in CAUSES.items():
        if any(part in _name for part in parts):
            total += told(_name, _change)
    print(dict(total))
