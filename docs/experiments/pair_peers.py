"""Which word with which region: this package next to exCLIP and FIxLIP, on the same scenes.

``pip install exclip shapiq`` next to captum_clip, in an environment of its own; then
``python docs/experiments/pair_peers.py`` prints a table for demo/vit: Spearman's rank correlation
with the exact interaction of word and object, of all scenes together; the pointing of words;
seconds a pair. A pair is done alone, on one thread.

- exCLIP (Möller et al. 2025, arXiv:2408.14153) is the package's own ``explain``, with its ten steps
  and its references; only how a model of transformers is run between two layers is written here.
- FIxLIP (Baniecki et al. 2025, arXiv:2508.05430) is not on PyPI, so its least squares are written
  here, for its cross-modal sampling: cells of the mean color, tokens hidden from attention.
- shapiq (MIT) checks the Shapley interaction index of the task.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import shapiq
import torch
from exclip.explanation import Explainer, interpolate_reference_embedding
from torch import Tensor
from torch.nn import functional as F

from captum_clip import (
    ClipPairSimilarity,
    ClipSimilarity,
    DirectContribution,
    DirectInteraction,
    load_clip,
    metrics,
    targets,
)
from captum_clip.bench.data import DATA_SETS
from captum_clip.bench.tasks.effects import exact_interactions
from tables import pooled_spearman

Pair = SimpleNamespace
"""pixels (1, 3, H, W), masks (n, H, W) of the objects, ids (1, T), caption, the n words; of each
word its tokens and its span."""


class ExclipOfTransformers(Explainer):
    """exCLIP's explainer for a CLIP of transformers; it brings those of two other libraries."""

    def __init__(self, clip: Any) -> None:
        self.clip = clip.model
        start, end = clip.text_inputs("")[0][0, :2].tolist()
        self.ends = (start, end)
        # what `explain` asks a model for: whether its positions are tokens
        known = SimpleNamespace(visual=SimpleNamespace(transformer=None))
        length = clip.text_inputs("")[0].shape[1]
        super().__init__(known, text_seq_len=length, device=torch.device("cpu"))

    __setattr__ = object.__setattr__  # the model stays outside of `torch.nn.Module`

    def _make_txt_ref(self) -> Tensor:
        reference = torch.zeros(1, self.text_seq_len, dtype=torch.long)
        reference[0, 0], reference[0, self.text_ref_len + 1] = self.ends
        return reference

    def init_text_attribution(self, layer: int, N_interpolations: int) -> None:  # noqa: N803
        self.txt_intermediates: list[Tensor] = []
        self.text_plan = layer, N_interpolations, self.txt_intermediates

    def init_image_attribution(self, layer: int, N_interpolations: int) -> None:  # noqa: N803
        self.img_intermediates: list[Tensor] = []
        self.image_plan = layer, N_interpolations, self.img_intermediates

    def encode_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        both, tower = torch.cat([text, self.txt_ref]), self.clip.text_model
        causal = torch.full((self.text_seq_len,) * 2, -torch.inf).triu(1)[None, None]
        hidden = tower.embeddings(input_ids=both)
        hidden = tower.final_layer_norm(through(tower, hidden, causal, *self.text_plan))
        ends = (both == self.ends[1]).int().argmax(1)
        rows = ends[[0] * (len(hidden) - 1) + [1]]
        found = self.clip.text_projection(hidden[torch.arange(len(hidden)), rows])
        return found[:-1], found[-1]

    def encode_image(self, image: Tensor) -> tuple[Tensor, Tensor]:
        tower = self.clip.vision_model
        hidden = tower.pre_layrnorm(tower.embeddings(torch.cat([image, self.img_ref])))
        hidden = through(tower, hidden, None, *self.image_plan)
        found = self.clip.visual_projection(tower.post_layernorm(hidden[:, 0]))
        return found[:-1], found[-1]


def through(
    tower: Any, hidden: Tensor, mask: Tensor | None, start: int, steps: int, seen: list[Tensor]
) -> Tensor:
    """All layers, from `start` on of the steps between input and reference."""
    for index, layer in enumerate(tower.encoder.layers):
        if index == start:
            hidden = interpolate_reference_embedding(hidden, steps)
            seen.append(hidden)
        hidden = layer(hidden, attention_mask=mask)
    return hidden


def exclip_maps(clip: Any, pair: Pair, *, last: bool) -> Tensor:
    """Interactions from the last layers on, as by default, or from the embedded inputs on."""
    layers = {
        f"{side}_layer": len(tower.encoder.layers) - 1 if last else 0
        for side, tower in (("text", clip.model.text_model), ("image", clip.model.vision_model))
    }
    explain = ExclipOfTransformers(clip).explain
    found = explain(pair.ids, pair.pixels, cut_txt_padding=False, **layers)  # (T, h, w)
    return torch.stack([found[own].sum(0) for own in pair.tokens])


@torch.no_grad()
def fitted_maps(
    clip: Any, pair: Pair, directions: Tensor, *, stay: float, draws: int = 512
) -> Tensor:
    """What a cell adds along each direction (K, E), each cell staying with a chance of `stay`.

    Least squares of order one over draws of cells; (K, h, w).
    """
    cells = clip.grid(*pair.pixels.shape[-2:])
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(draws, 1, *cells, generator=generator) < stay).float()
    large = F.interpolate(images, pair.pixels.shape[-2:], mode="nearest-exact")
    parts = [clip.image_features(pair.pixels * part) for part in large.split(64)]
    scores = F.normalize(torch.cat(parts), dim=1) @ directions.T
    columns = torch.cat([torch.ones(draws, 1), images.flatten(1)], 1)
    return torch.linalg.lstsq(columns, scores).solution[1:].T.unflatten(1, cells)


@torch.no_grad()
def fixlip_maps(clip: Any, pair: Pair, *, stay: float) -> Tensor:
    """Weighted Banzhaf interactions of tokens and cells, each staying with a chance of `stay`.

    Least squares of order two over draws of cells by all subsets of the K tokens. These are drawn
    independently of cells, so what is fitted along a token and along a token and a cell is the
    fit over cells of the scores' contrast along that token.
    """
    first, stop = pair.tokens[0][0], pair.tokens[-1][-1] + 1
    count = stop - first
    texts = torch.tensor([[i >> bit & 1 for bit in range(count)] for i in range(2**count)])
    seen = torch.ones(2**count, pair.ids.shape[1], dtype=torch.long)
    seen[:, first:stop] = texts
    t = F.normalize(clip.text_features(pair.ids.expand(2**count, -1), seen), dim=1)
    weights = torch.where(texts == 1, stay, 1 - stay).prod(1, keepdim=True)
    contrasts = (weights * (texts - stay) / (stay * (1 - stay))).T @ t  # (K, E)
    fitted = fitted_maps(clip, pair, contrasts, stay=stay)
    return torch.stack([fitted[[i - first for i in own]].sum(0) for own in pair.tokens])


def differences(clip: Any, pair: Pair) -> Tensor:
    """Of each word w, t - t without w (n, E): the text's half of the interaction, exactly."""
    words = targets.words(clip, pair.caption, pair.spans)
    return words.embeddings * words.norms[:, None]


def fixlip_half_maps(clip: Any, pair: Pair, *, stay: float) -> Tensor:
    """FIxLIP's fit over cells alone, given the text's half as `difference_maps` is."""
    return fitted_maps(clip, pair, differences(clip, pair), stay=stay)


def share_maps(clip: Any, pair: Pair, **options: Any) -> Tensor:
    """The rows of the words among the shares."""
    method = DirectInteraction(ClipPairSimilarity(clip))
    found = method.attribute((pair.pixels, pair.ids), **options)[0].detach()
    return torch.stack([found[own].sum(0) for own in pair.tokens])


def difference_maps(clip: Any, pair: Pair) -> Tensor:
    """What is lost without a word: the direct map of the difference of two texts."""
    words = targets.words(clip, pair.caption, pair.spans)
    maps = DirectContribution(ClipSimilarity(clip, words)).attribute_targets(pair.pixels)[0]
    return maps.detach() * words.norms[:, None, None]


def named(clip: Any, pair: Pair) -> Tensor:
    """1 for the object that a word names, 0 for others: (n, n), no map."""
    return torch.eye(len(pair.words))


def text_only(clip: Any, pair: Pair) -> Tensor:
    """The text's half with the text of each object in place of the image: (n, n), no map."""
    return differences(clip, pair) @ targets.text(clip, pair.words).embeddings.T


ESTIMATORS: dict[str, tuple[Callable[..., Tensor], str]] = {
    "no map: 1 where the word names the object, else 0": (named, "nothing"),
    "no map: the text's half times the text of the object": (text_only, "texts, no image"),
    "`DirectInteraction`": (share_maps, "a forward of each tower"),
    '`DirectInteraction`, `depth="all"` of the text': (
        partial(share_maps, depth=("pooling", "all")),
        "plus 49 backwards of the text tower, one per cell",
    ),
    '`DirectInteraction`, `depth="all"`': (
        partial(share_maps, depth="all"),
        "plus 128 backwards of a tower, one per dimension, and one of the other per token",
    ),
    "`targets.words` under `direct`; given the text's half": (
        difference_maps,
        "a forward, and one text without each word",
    ),
    "exCLIP, last layers": (
        partial(exclip_maps, last=True),
        "128 backwards of both towers, one per dimension, each over 10 steps",
    ),
    "exCLIP, all layers": (partial(exclip_maps, last=False), "the same through all layers"),
    "FIxLIP, p = .5": (
        partial(fixlip_maps, stay=0.5),
        "512 masked images, all 2^T subsets of the tokens",
    ),
    "FIxLIP, p = .7": (partial(fixlip_maps, stay=0.7), "the same"),
    "FIxLIP given the text's half, p = .5": (
        partial(fixlip_half_maps, stay=0.5),
        "512 masked images, one text without each word",
    ),
    "FIxLIP given the text's half, p = .7": (partial(fixlip_half_maps, stay=0.7), "the same"),
}


def read(clip: Any, sample: Any) -> tuple[Pair, Tensor, float]:
    """A pair, its exact interactions, and how far shapiq's index is off the task's."""
    words = [region.text for region in sample.regions]
    subsets = range(2 ** len(words))
    chosen = [[word for i, word in enumerate(words) if subset >> i & 1] for subset in subsets]
    texts = targets.text(clip, [" and ".join(own) for own in chosen], allow_empty=True)
    pixels = clip.preprocess(list(sample.subsets))
    with torch.no_grad():
        scores = ClipSimilarity(clip, texts)(pixels).T
    exact, index = exact_interactions(scores)
    count = len(words)
    bits = 2 ** np.arange(count)

    def game(coalitions: Any) -> Any:
        return scores[coalitions[:, :count] @ bits, coalitions[:, count:] @ bits].double().numpy()

    found = shapiq.ExactComputer(game, n_players=2 * count)("SII", order=2)
    off = max(abs(found[(w, count + o)] - index[w, o]) for w in range(count) for o in range(count))
    caption, start, tokens, spans = texts.names[-1], 0, [], []
    places = [own for _, own in targets.word_tokens(clip, caption)]
    for word in words:
        stop = start + len(word.split())
        tokens.append([i for own in places[start:stop] for i in own])
        spans.append((start - 1, stop) if start else (0, stop + 1))  # with the "and" next to it
        start = stop + 1
    ids = clip.text_inputs(caption)[0]
    masks = torch.from_numpy(np.stack([region.mask for region in sample.regions]))
    text = {"ids": ids, "caption": caption, "words": words, "tokens": tokens, "spans": spans}
    return Pair(pixels=pixels[-1:], masks=masks, **text), exact, float(off)


def shown(figures: tuple[float, float, float]) -> str:
    """A figure with its interval."""
    mean, low, high = (f"{value:.2f}" for value in figures)
    return f"{mean} [{low}, {high}]".replace("0.", ".").replace("-", "\N{MINUS SIGN}")


def ranked(rows: list[Any]) -> str:
    """Spearman's of the rows of all scenes together; a dash for one value."""
    tables = [np.array(of_scene, dtype=float) for of_scene in rows]
    constant = not np.ptp(np.concatenate(tables)[:, 0])
    return "\N{EN DASH}" if constant else shown(pooled_spearman(tables, 2000))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--scenes", type=int, default=100)
    count = parser.parse_args().scenes
    torch.set_num_threads(1)
    clip, data = load_clip("demo/vit"), DATA_SETS["demo"](number=count)
    pairs = [read(clip, data.read(index)) for index in range(count)]
    print(f"shapiq's index differs by {max(off for *_, off in pairs):.1e} at most")
    heads = ("estimator", "*I*, all, pooled", "*I*, others, pooled", "pointing", "seconds a pair")
    print(f"| {' | '.join(heads)} | what a pair takes |")
    print("|---|---|---|---|---|---|")
    for name, (maps_of, needs) in ESTIMATORS.items():
        rows, others, hits, seconds = [], [], [], []
        for scene, (pair, exact, _) in enumerate(pairs):
            begun = time.perf_counter()
            maps = maps_of(clip, pair)
            seconds.append(time.perf_counter() - begun)
            is_map = maps.dim() == 3
            mass = metrics.object_mass(maps, pair.masks) if is_map else maps
            every = [
                (word, thing, [float(mass[word, thing]), float(exact[word, thing])])
                for word, thing in np.ndindex(*exact.shape)
            ]
            rows.append([row for *_, row in every])
            others.append([row for word, thing, row in every if word != thing])
            pointed = metrics.pointing_game(maps, pair.masks).tolist() if is_map else []
            hits += [(scene, hit) for hit in pointed]
        cells = [ranked(rows), ranked(others), "\N{EN DASH}"]
        if hits:
            owners, values = zip(*hits, strict=True)
            cells[2] = shown(metrics.bootstrap_mean(values, owners))
        print(f"| {name} | {' | '.join(cells)} | {np.median(seconds):.3f} | {needs} |", flush=True)


if __name__ == "__main__":
    main()
