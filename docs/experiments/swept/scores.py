"""Forward functions of one's own: what they make of embeddings, of images, of other outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_clip import ClipSimilarity
from docs.experiments.swept.entries import Entries, Entry
from tests.attr import cases, hooked, running
from tests.attr import own_modules as modules
from tests.attr.changes import Place, unchanged
from tests.attr.judged import NO_MAP, Change, known, no_truth, of_gradients, of_moved
from tests.attr.moves import blocks, noise
from tests.attr.own_modules import also, cosines, of_images

Score = Callable[[Tensor], Tensor]


# Functions of the embedding


def of_embedding(score: Score) -> Any:
    """A forward function."""

    def make(similarity: ClipSimilarity, place: Place) -> Any:
        return lambda pixels: score(cases.embed(place.model, pixels))

    return make


def shares(score: Score) -> Any:
    """The truth: gradients, and for shares the direction along which a score is all of itself."""
    gradients = of_gradients()

    def linear(embedding: Tensor) -> Tensor:
        e = embedding.detach().requires_grad_()
        values = score(e)
        slopes = [torch.autograd.grad(y.sum(), e, retain_graph=True)[0] for y in values.T]
        slope = torch.stack(slopes, 1)
        left = values - torch.einsum("be,bke->bk", e, slope)
        whole = slope + left[..., None] * e[:, None] / e.square().sum(-1)[:, None, None]
        return torch.einsum("be,bke->bk", embedding, whole.detach())

    def truth(change: Change, forward: Any) -> Any:
        def wanted(method: str) -> Any:
            if method in ("direct", "conservative"):
                with patch.object(hooked, "_linear_scores", linear):
                    return known(change.tower, method, change.batch)
            found = gradients(change, forward)(method)
            return None if isinstance(found, str) else found

        return wanted

    return truth


ROWS = running.rows()
CENTER, SECOND = 0.3 * noise(24, seed=60), noise(24, 24, seed=61) / 5
EMBEDDED: dict[str, Score] = {
    "a temperature": lambda e: 100 * cosines(e),
    "a bias": lambda e: cosines(e) + 3.0,
    "logits of SigLIP": lambda e: torch.sigmoid(10 * cosines(e) - 2),
    "a softmax over texts": lambda e: (5 * cosines(e)).softmax(-1),
    "a log softmax over texts": lambda e: (5 * cosines(e)).log_softmax(-1),
    "less the mean text": lambda e: cosines(e) - cosines(e).mean(-1, keepdim=True),
    "less the best text": lambda e: cosines(e) - cosines(e).amax(-1, keepdim=True),
    "squares": lambda e: cosines(e).square(),
    "exponentials": lambda e: cosines(e).exp(),
    "products": lambda e: e @ ROWS.T,
    "products over a root": lambda e: e @ ROWS.T / e.norm(dim=-1, keepdim=True).sqrt(),
    "distances": lambda e: -torch.cdist(F.normalize(e, dim=-1)[:, None], ROWS[None]).squeeze(1),
    "euclidean distances": lambda e: -torch.cdist(e[:, None], 3 * ROWS[None]).squeeze(1),
    "a centered embedding": lambda e: cosines(e - CENTER),
    "a mapped embedding": lambda e: cosines(e @ SECOND),
    "an MLP on the embedding": lambda e: cosines(F.gelu(e @ SECOND) @ SECOND.T),
    "half of the embedding": lambda e: cosines(torch.cat([e[:, :12], 0 * e[:, 12:]], 1)),
    "matryoshka": lambda e: F.normalize(e[:, :12], dim=-1) @ F.normalize(ROWS[:, :12], dim=-1).T,
    "the signs": lambda e: F.normalize(torch.tanh(3 * e), dim=-1) @ ROWS.T,
    "binary codes": lambda e: (e.sign() + e - e.detach()) @ ROWS.T,
    "1-norms": lambda e: e @ ROWS.T / e.abs().sum(-1, keepdim=True),
    "ranks of texts": lambda e: cosines(e).argsort(-1).argsort(-1).to(e),
    "a hinge": lambda e: (cosines(e) - 0.1).relu(),
    "another text's part taken": lambda e: cosines(e) - 0.5 * cosines(e).roll(1, -1),
    "its square and itself": lambda e: cosines(torch.cat([e[:, :8].square(), e[:, 8:]], 1)),
    "a constant": lambda e: torch.ones(len(e), 3).to(e) + 0 * e.sum(),
    "the length": lambda e: e.norm(dim=-1, keepdim=True).expand(-1, 3),
    "detached": lambda e: cosines(e).detach(),
    "half detached": lambda e: 0.5 * cosines(e) + 0.5 * cosines(e).detach(),
    "of a detached length": lambda e: e @ ROWS.T / e.norm(dim=-1, keepdim=True).detach(),
    "rounded": lambda e: cosines(e) + (cosines(e).round(decimals=2) - cosines(e)).detach(),
    "in single precision": lambda e: cosines(e.float().double()),
    "clamped": lambda e: cosines(e).clamp(-0.05, 0.05),
}
FLAT = ("ranks of texts", "a constant", "detached")


def embedded() -> Entries:
    """Any function of the embedding, on a CLS token and a pooling head."""
    found: Entries = {}
    for number, (name, score) in enumerate(EMBEDDED.items()):
        truth = no_truth if name in FLAT else shares(score)
        if name in FLAT:  # rollout minds no score
            truth = of_gradients(None, ("rollout",))
        tolerance = 1e-4 if name == "in single precision" else 1e-6
        towers = ("hf_vit", "siglip") if number % 2 else ("hf_vit", "open_clip_vit")
        for tower in towers:
            found[f"{tower}: {name}"] = Entry(
                Change(scores=of_embedding(score), truth=truth, tower=tower, tolerance=tolerance)
            )
    return found


# Images that are moved before the tower sees them


def patchwise(order: list[int]) -> Score:
    """Patches of the image in another order."""

    def move(x: Tensor) -> Tensor:
        cells = F.unfold(x, 8, stride=8)[..., order]
        return F.fold(cells, x.shape[-2:], 8, stride=8)

    return move


def cellwise(order: list[int]) -> Score:
    """Cells of a map, put back."""
    back = torch.tensor(order).argsort()
    return lambda maps: maps.flatten(2)[..., back].view_as(maps)


MIRROR: list[int] = torch.arange(16).view(4, 4).flip(1).flatten().tolist()
RANDOM: list[int] = torch.randperm(16, generator=torch.Generator().manual_seed(8)).tolist()
MOVED: dict[str, tuple[Score, Score]] = {
    "mirrored": (lambda x: x.flip(-1), lambda m: m.flip(-1)),
    "upside down": (lambda x: x.flip(-2), lambda m: m.flip(-2)),
    "turned": (lambda x: x.rot90(1, (-2, -1)), lambda m: m.rot90(-1, (-2, -1))),
    "transposed": (lambda x: x.mT, lambda m: m.mT),
    "rolled by a patch": (lambda x: x.roll(8, -1), lambda m: m.roll(-1, -1)),
    "rolled by three rows": (lambda x: x.roll(24, -2), lambda m: m.roll(-3, -2)),
    "patches in another order": (patchwise(RANDOM), cellwise(RANDOM)),
    "channels turned": (lambda x: x.flip(1), lambda m: m),
    "brighter": (lambda x: 1.2 * x + 0.1, lambda m: m),
    "smoothed": (lambda x: F.avg_pool2d(x, 3, 1, 1), lambda m: m),
    "gray": (lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1), lambda m: m),
    "with a frame": (lambda x: F.pad(x[..., 2:-2, 2:-2], [2] * 4), lambda m: m),
    "noise added": (lambda x: x + 0.1 * noise(1, 3, 32, 32, seed=62).to(x), lambda m: m),
}


def images() -> Entries:
    """What happens to images first."""
    found: Entries = {}
    for number, (name, (move, back)) in enumerate(MOVED.items()):
        for tower in ("hf_vit", "siglip") if number % 2 else ("hf_vit", "open_clip_vit"):
            found[f"{tower}: {name}"] = Entry(
                Change(
                    scores=of_images(lambda similarity, x, move=move: similarity(move(x))),
                    truth=of_moved(move, back),
                    tower=tower,
                )
            )
    return found


def several() -> Entries:
    """Towers that run several times, or for several images."""
    ways: dict[str, Callable[[ClipSimilarity, Tensor], Tensor]] = {
        "an image and its mirror": lambda s, x: (s(x) + s(x.flip(-1))) / 2,
        "both in one batch": lambda s, x: (
            s(torch.cat([x, x.flip(-1)])).unflatten(0, (2, -1)).mean(0)
        ),
        "a difference from gray": lambda s, x: s(x) - s(0 * x),
        "gray in the same batch": lambda s, x: (lambda y: y[: len(x)] - y[len(x) :])(
            s(torch.cat([x, 0 * x]))
        ),
        "the first image alone": lambda s, x: s(x[:1]).expand(len(x), -1),
        "the best of the batch": lambda s, x: s(x).amax(0, keepdim=True).expand(len(x), -1),
        "the median of the batch": lambda s, x: s(x) - s(x).median(0).values,
        "images by name": lambda s, x: s(x.flip(0)),
        "one by one": lambda s, x: torch.cat([s(one) for one in x.split(1)]),
        "with an image before": lambda s, x: s(torch.cat([0 * x[:1], x]))[1:],
        "with an image behind": lambda s, x: s(torch.cat([x, 0 * x[:1]]))[:-1],
        "doubled": lambda s, x: s(x.repeat_interleave(2, 0))[::2],
        "standardized over the batch": lambda s, x: (
            lambda y: (y - y.mean(0)) / (y.std(0, unbiased=False) + 0.1)
        )(s(x)),
        "a log softmax over the batch": lambda s, x: (3 * s(x)).log_softmax(0),
        "logits per text": lambda s, x: (10 * s(x)).T.softmax(-1).T,
        "ranks in the batch": lambda s, x: (s(x)[:, None] - s(x)[None]).sigmoid().mean(1),
        "images averaged": lambda s, x: s(x.mean(0, keepdim=True)).expand(len(x), -1),
        "mixup": lambda s, x: s(0.7 * x + 0.3 * x.flip(0)),
        "a running mean of scores": lambda s, x: (
            s(x).cumsum(0) / torch.arange(1, len(x) + 1).to(x)[:, None]
        ),
    }
    right = {
        "with an image behind": unchanged,
        "doubled": unchanged,
        "with an image before": unchanged,
        "one by one": unchanged,
    }
    found: Entries = {}
    for name, way in ways.items():
        if name in right:
            found[name] = Entry(Change(unchanged, unchanged, scores=of_images(way)), harmless=True)
        else:
            found[name] = Entry(Change(scores=of_images(way), truth=no_truth))
    for name in (
        "standardized over the batch",
        "a log softmax over the batch",
        "logits per text",
        "the median of the batch",
        "ranks in the batch",
    ):
        found[f"{name}, one image"] = Entry(
            Change(scores=of_images(ways[name]), truth=no_truth, batch=1)
        )
    return found


# Other outputs


def hidden(read: Callable[[Any, Any], Tensor]) -> Any:
    """A score of the tower's outputs."""

    def make(similarity: ClipSimilarity, place: Place) -> Any:
        model = place.model

        def forward(pixels: Tensor) -> Tensor:
            out = model.vision_model(pixels, output_hidden_states=True)
            return cosines(model.visual_projection(read(model.vision_model, out)))

        return forward

    return make


def reading(row: Any, among: tuple[str, ...], *, token: bool) -> Any:
    """Maps by the attentions' gradients, where CLS is among what is read or not.

    Grad-ECLIP is left open, and rollout where the last layer is read: no score changes it.
    """
    gradients = of_gradients(row, among)

    def truth(change: Change, forward: Any) -> Any:
        found = gradients(change, forward)

        def wanted(method: str) -> Any:
            open_ones = ("grad-eclip", "rollout") if token or among[1:] else ("grad-eclip",)
            return None if method in open_ones else found(method)

        return wanted

    return truth


def outputs() -> Entries:
    """What is read of the tower."""
    gradients = ("last-grad", "all-grad", "attention-grad-cam")
    last = reading("cls", gradients, token=True)
    below = reading("cls", ("all-grad",), token=False)
    mean, mean_below = (
        reading("mean", gradients, token=False),
        reading("mean", ("all-grad",), token=False),
    )
    nothing = reading("cls", (), token=False)
    reads: dict[str, tuple[Callable[[Any, Any], Tensor], Any]] = {
        "CLS before the last norm": (lambda v, o: o.last_hidden_state[:, 0], of_gradients("cls")),
        "the patches' mean": (lambda v, o: o.last_hidden_state[:, 1:].mean(1), mean),
        "the patches' mean, normed": (
            lambda v, o: v.post_layernorm(o.last_hidden_state[:, 1:]).mean(1),
            mean,
        ),
        # any patches are read at the mean of all patches' rows, as is documented
        "one patch": (lambda v, o: o.last_hidden_state[:, 7], mean),
        "the largest patch": (lambda v, o: o.last_hidden_state[:, 1:].amax(1), mean),
        "all tokens' mean": (lambda v, o: o.last_hidden_state.mean(1), last),
        "CLS and the patches' mean": (
            lambda v, o: o.last_hidden_state[:, 0] + o.last_hidden_state[:, 1:].mean(1),
            last,
        ),
        "CLS of the layer below": (lambda v, o: o.hidden_states[-2][:, 0], below),
        "CLS of the first layer": (lambda v, o: o.hidden_states[1][:, 0], below),
        "the patches' mean of the layer below": (
            lambda v, o: o.hidden_states[-2][:, 1:].mean(1),
            mean_below,
        ),
        "the stem's patches": (lambda v, o: o.hidden_states[0][:, 1:].mean(1), nothing),
        "CLS of two layers": (
            lambda v, o: o.hidden_states[-2][:, 0] + o.hidden_states[-1][:, 0],
            last,
        ),
        "a mean over layers": (lambda v, o: torch.stack(o.hidden_states)[:, :, 0].mean(0), last),
    }
    found: Entries = {
        name: Entry(Change(scores=hidden(read), truth=truth))
        for name, (read, truth) in reads.items()
    }
    modules_read: dict[str, Callable[[Place], Any]] = {
        "the embeddings": lambda p: p.model.vision_model.embeddings,
        "the first norm": lambda p: p.model.vision_model.pre_layrnorm,
        "queries": lambda p: blocks(p)[2].self_attn.q_proj,
        "values": lambda p: blocks(p)[1].self_attn.v_proj,
        "an output map": lambda p: blocks(p)[0].self_attn.out_proj,
        "a hidden layer": lambda p: blocks(p)[1].mlp.fc1,
        "the last attention": lambda p: blocks(p)[2].self_attn,
        "the last MLP": lambda p: blocks(p)[2].mlp,
        "the first block": lambda p: blocks(p)[0],
        "the last block": lambda p: blocks(p)[2],
    }
    for name, where in modules_read.items():
        found[f"cosines and {name}"] = Entry(Change(scores=also(where), truth=last))
    for name, factor in {"the pooled output": 1.0, "half of the pooled output": 0.5}.items():
        found[name] = Entry(
            Change(unchanged, unchanged, scores=hidden(lambda v, o, f=factor: f * o.pooler_output)),
            harmless=True,
        )
    found["SigLIP's patches, with its head"] = Entry(
        Change(scores=headless_beside, tower="siglip", truth=lambda *_: lambda method: NO_MAP)
    )
    return found


def headless_beside(similarity: ClipSimilarity, place: Place) -> Any:
    """The mean of the patches, where the pooling head runs for nothing."""
    return modules.headless(similarity, place)


def families() -> dict[str, Entries]:
    """By name."""
    return {
        "scores of embeddings": embedded(),
        "images moved": images(),
        "several images": several(),
        "other outputs": outputs(),
    }
