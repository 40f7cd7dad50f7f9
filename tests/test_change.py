"""The ledger of a change: its equation, its laws, what is refused, its table, words and figure."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_clip import ClipSimilarity, DirectContribution, load_clip, metrics, targets
from captum_clip.apps import heads
from captum_clip.apps.change import Change, compare
from captum_clip.attr import HeadVectors
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import CaptumClipError, InputError
from tests import builders
from tests.attr.changes import Lora
from tests.builders import Small
from tests.figure_parts import lines_of

TEXTS = ["a horse", "a dog", "snow"]


def tuned(small: Small, *parts: str, seed: int = 7) -> Small:
    """A model as a training leaves it: some of its weights are a little different."""
    generator, model = torch.Generator().manual_seed(seed), copy.deepcopy(small.model)
    for name, weight in model.named_parameters():
        if any(part in name for part in parts):
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return small._replace(model=model)


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """A ViT of 3 layers and 4 heads, and the same with both towers tuned."""
    small = builders.hf_vit()
    return small.load(), tuned(small, "vision_model", "text_model").load()


@pytest.fixture(scope="module")
def change(pair: Any) -> Change:
    return compare(pair[0], pair[1], builders.hf_vit().images(5), TEXTS, batch_size=2)


@torch.no_grad()
def stream_of(model: Any, images: Tensor) -> tuple[Tensor, ...]:
    """What heads (B, n, H, D) and MLPs (B, n, D) of a CLIP add to CLS, CLS, and its way J."""
    vision, seen = model.vision_model, list[Any]()
    blocks = vision.encoder.layers
    modules = [m for block in blocks for m in (block.self_attn.out_proj, block.mlp)]
    hooks = [
        m.register_forward_hook(lambda _, args, out: seen.append((*args, out))) for m in modules
    ]
    token = vision(images).last_hidden_state[:, 0]
    for hook in hooks:
        hook.remove()
    heads = [  # the columns of a head in the output map, times its outputs
        torch.einsum("bhd,whd->bhw", e[:, 0].unflatten(1, (4, -1)), m.weight.unflatten(1, (4, -1)))
        for m, (e, _) in zip(modules[::2], seen[::2], strict=True)
    ]
    norm, projection = vision.post_layernorm, model.visual_projection.weight
    deviation = (token.var(-1, correction=0) + norm.eps).sqrt()
    centered = torch.eye(32) - 1 / 32
    length = (norm(token) @ projection.T).norm(dim=-1)
    way = projection * norm.weight @ centered / (deviation * length)[:, None, None]
    return torch.stack(heads, 1), torch.stack([o[:, 0] for _, o in seen[1::2]], 1), token, way


def test_a_change_is_what_its_equation_says(pair: Any, change: Change) -> None:
    """Region by region and head by head, from each model's own maps and vectors."""
    images, (before, after) = builders.hf_vit().images(5), pair
    old, new = (targets.text(clip, TEXTS) for clip in pair)
    numbers = targets.embedding(old.embeddings, old.names)
    forwards = [ClipSimilarity(clip, numbers) for clip in pair]
    maps = [DirectContribution(forward).attribute_targets(images) for forward in forwards]
    torch.testing.assert_close(change.regions, maps[1] - maps[0], rtol=0, atol=1e-6)
    (*first, way), (*second, other) = (stream_of(clip.model, images) for clip in pair)
    moved, both = [b - a for a, b in zip(first, second, strict=True)], (way + other) / 2
    whole = moved.pop()
    left = whole - moved[0].sum((1, 2)) - moved[1].sum(1)
    for found, part in zip((change.heads, change.mlps, change.rest), (*moved, left), strict=True):
        expected = torch.einsum("b...d,bed,ke->bk...", part, both, old.embeddings)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        unit = after.encode_image(images)
        scores = [before.encode_image(images) @ old.embeddings.T, unit @ new.embeddings.T]
        added = unit @ (new.embeddings - old.embeddings).T
        tower = unit @ old.embeddings.T - scores[0]
    scale = tower - torch.einsum("bd,bed,ke->bk", whole, both, old.embeddings)
    torch.testing.assert_close(change.scale, scale, rtol=0, atol=1e-6)
    assert float(scale.abs().min()) > 1e-4
    torch.testing.assert_close(change.scores, torch.stack(scores), rtol=0, atol=1e-6)
    torch.testing.assert_close(change.text, added, rtol=0, atol=1e-6)
    assert float(added.abs().min()) > 1e-4


TOWERS = {
    "hf_vit": builders.hf_vit,
    "siglip": builders.siglip,
    "resnet": builders.open_clip_resnet,
    "mean": builders.open_clip_vit_mean,
    "convnext": builders.timm_convnext,
}


@pytest.mark.filterwarnings("ignore:the layers and heads of:UserWarning")
@pytest.mark.parametrize("name", TOWERS)
def test_all_that_changed_adds_up_to_the_change_of_the_score(name: str) -> None:
    """On every kind of tower; a mean has no heads, and says so."""
    small = TOWERS[name]()
    found = compare(small.load(), tuned(small, "").load(), small.images(2), TEXTS[:2])
    by = found.scores[1] - found.scores[0]
    assert float(by.abs().max()) > 0.01
    regions = found.regions.sum((-2, -1)) + found.outside + found.text
    torch.testing.assert_close(regions, by, rtol=0, atol=2e-6)
    if name in ("mean", "convnext"):
        with pytest.raises(InputError, match="none but a mean"):
            _ = found.heads
        return
    whole = found.heads.sum((-2, -1)) + found.mlps.sum(-1) + found.rest + found.scale + found.text
    torch.testing.assert_close(whole, by, rtol=0, atol=2e-6)


NAMES = ("regions", "outside", "heads", "mlps", "rest", "scale")


def test_lora_that_is_merged_changes_nothing_against_lora_that_is_not() -> None:
    small = builders.hf_vit()
    unmerged, merged = copy.deepcopy(small.model), copy.deepcopy(small.model)
    path = "vision_model.encoder.layers.1.self_attn.v_proj"
    adapter = Lora(unmerged.get_submodule(path))
    attention: Any = unmerged.get_submodule(path.rpartition(".")[0])
    attention.v_proj = adapter
    plain: Any = merged.get_submodule(path)
    plain.weight.data += adapter.b.weight @ adapter.a.weight
    clips = [small._replace(model=model).load() for model in (small.model, unmerged, merged)]
    images = small.images(2)
    same, other = (
        compare(clips[1], clips[2], images, TEXTS),
        compare(clips[0], clips[1], images, TEXTS),
    )
    for name in NAMES:
        assert float(getattr(same, name).abs().max()) < 1e-6, name
    assert {row.mean for row in same.table()} == {0}  # rounding alone, of which none is a change
    assert float(other.heads.abs().max()) > 1e-3


LAST = "vision_model.encoder.layers.2"
CHANGES: dict[str, tuple[str, str, slice, set[str]]] = {
    "the last MLP's bias": ("hf_vit", f"{LAST}.mlp.fc2.bias", slice(None), {"mlp 2"}),
    "the last norm": ("hf_vit", "vision_model.post_layernorm.weight", slice(None), set()),
    "one head": ("hf_vit", f"{LAST}.self_attn.v_proj.weight", slice(8, 16), {"head 2 1", "mlp 2"}),
    "one MLP": ("hf_vit", f"{LAST}.mlp.fc1.weight", slice(None), {"mlp 2"}),
    "the pool's MLP": ("siglip", "vision_model.head.mlp.fc1.weight", slice(None), set()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_only_what_has_other_weights_or_inputs_changes(name: str) -> None:
    """The scale takes what the last norm and the embedding's length change in all other parts."""
    tower, path, rows, moved = CHANGES[name]
    small = TOWERS[tower]()
    other = small._replace(model=copy.deepcopy(small.model))
    weight = other.model.get_parameter(path).data
    weight[rows] += torch.randn(weight[rows].shape, generator=torch.Generator().manual_seed(0))
    found = compare(small.load(), other.load(), small.images(31), TEXTS, batch_size=31)
    for values, kind in ((found.heads, "head"), (found.mlps, "mlp")):
        for place in np.ndindex(values.shape[2:]):
            largest = float(values[(slice(None), slice(None), *place)].abs().max())
            is_moved = " ".join(map(str, (kind, *place))) in moved
            assert largest > 1e-3 if is_moved else largest == 0, place
    assert float(found.rest.abs().max()) < 1e-6 < 1e-3 < float(found.scale.abs().max())
    changed = {row[2:4] for row in found.table() if row.what == "head" and row.mean}
    assert changed == ({(2, 1)} if name == "one head" else set())


# What two models do not have in common


@pytest.mark.parametrize(
    ("other", "message", "left"),
    [
        (
            {"patch_size": 16},
            r"grids of .* are \(4, 4\) and \(2, 2\), so regions, outside",
            "heads",
        ),
        (
            {"num_hidden_layers": 2},
            r"layers and heads of .* are \(3, 4\) and \(2, 4\), so heads",
            "regions",
        ),
    ],
)
def test_what_does_not_correspond_is_refused_in_a_sentence(
    pair: Any, other: dict[str, int], message: str, left: str
) -> None:
    """The rest is compared all the same."""
    with pytest.warns(UserWarning, match=message):
        found = compare(
            pair[0], builders.hf_vit(**other).load(), builders.hf_vit().images(2), TEXTS
        )
    missing = {"heads": "regions", "regions": "heads"}[left]
    with pytest.raises(InputError, match=message):
        getattr(found, missing)
    assert getattr(found, left).shape[:2] == (2, 3)
    assert found.text.shape == found.scores[0].shape == (2, 3)
    with pytest.raises(InputError, match=message):
        found.plot() if left == "heads" else found.describe(targets.text(pair[0], TEXTS))


def test_a_change_says_which_texts_fit_badly_before_and_after() -> None:
    image, before, after = draw_scene(0, objects=["horse"]).image, *map(load_clip, ["demo/vit"] * 2)
    [doubt] = compare(before, after, [image] * 2, ["a horse", "a zebra"]).doubts
    assert doubt.startswith("“a zebra” fits 2 of these 2 images no better than unrelated texts")
    weight: Any = after.model.get_parameter("visual_projection.weight")
    weight.data *= -1  # so that what fitted before does not
    found = compare(before, after, [image], ["a horse", "a zebra"])
    assert not any("horse" in sentence for sentence in found.doubts)
    with_doubt = replace(found, doubts=(doubt,)).plot(count=1)
    assert "a zebra" in " ".join(lines_of(with_doubt))


class Words:
    """A tokenizer that ends each text with an exclamation mark of its own."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, texts: Any, **options: Any) -> Any:
        texts = [text + "!" for text in texts] if isinstance(texts, list) else texts + "!"
        return self.tokenizer(texts, **options)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("tokenizer", r"the tokens of .* are \[\[257, .* and \[\[257, "),
        ("processor", "the processors of .* make different pixels from the same image"),
        ("size", r"the image sizes of .* are \(32, 32\) and \(64, 64\)"),
    ],
)
def test_other_inputs_are_named_before_anything_is_computed(option: str, message: str) -> None:
    """A warning, here an error, comes before the first forward."""
    small, runs = builders.hf_vit(), list[nn.Module]()
    other = builders.hf_vit(image_size=64) if option == "size" else builders.hf_vit()
    if option == "tokenizer":
        other = other._replace(tokenizer=Words(other.tokenizer))
    if option == "processor":
        processor = copy.deepcopy(other.processor)
        processor.image_mean = [0.2, 0.2, 0.2]
        other = other._replace(processor=processor)
    if option == "size":
        other = other._replace(processor=builders.hf_processor(64))
    for each in (small, other):
        for tower in (each.model.vision_model, each.model.text_model):
            tower.register_forward_hook(lambda module, *_: runs.append(module))
    photo = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    with pytest.raises(UserWarning, match=message):
        compare(small.load(), other.load(), [photo], TEXTS)
    assert runs == []


# The table


def made(images: int = 40, *, seed: int = 0, texts: int = 2) -> Change:
    """A change of random sums, of 2 layers and 3 heads, in which one head adds much to one text."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(2, images, texts, *shape, generator=generator)

    sums = {"scores": normal(), "text": normal(), "rest": normal(), "scale": normal()}
    sums |= {"heads": normal(2, 3), "mlps": normal(2), "regions": normal(4, 4)}
    sums["heads"][1, :, 1, 1, 2] += 5
    pixels = torch.zeros(images, 3, 32, 32, dtype=torch.uint8)
    vectors = HeadVectors(
        torch.randn(images, 2, 3, 8), torch.randn(images, 2, 8), torch.randn(images, 8)
    )
    return Change(("old", "new"), ("a", "b", "c")[:texts], pixels, sums, {}, vectors)


def test_rows_of_a_table_are_bootstraps_over_images_and_holm_over_a_text() -> None:
    change = made()
    table = change.table(seed=3)
    rows = [row for row in table if row.what == "head"]
    assert rows[0][1:4] == ("b", 1, 2)
    assert [abs(row.mean) for row in rows] == sorted((abs(row.mean) for row in rows), reverse=True)
    for k, text in enumerate("ab"):
        family = [row for row in rows if row.text == text]
        columns = [change.heads[:, k, row.layer, row.head] for row in family]
        plain = [metrics.paired_difference(c, 0 * c, seed=3) for c in columns]
        np.testing.assert_allclose([row[4:7] for row in family], [p[:3] for p in plain], rtol=1e-5)
        adjusted = metrics.holm([p.p_value for p in plain])
        np.testing.assert_allclose([row.p_value for row in family], adjusted)
    layer = next(row for row in table if row[:3] == ("layer", "b", 1))
    expected = (change.heads[:, 1, 1].sum(-1) + change.mlps[:, 1, 1]).mean()
    assert layer.mean == pytest.approx(float(expected), abs=1e-6)
    kinds = [*dict.fromkeys(row.what for row in table)]
    assert kinds == ["score", "image tower", "text tower", "layer", "rest", "scale", "head", "mlp"]


def test_a_confusion_has_the_heads_that_mistakes_share() -> None:
    """By what the contrast of the model after is larger in wrong images than in right ones."""
    change = made(50, texts=3)
    best = change.scores[1].argmax(1)
    wrong, right = change.confusion("a", "b")
    assert (len(wrong), len(right)) == (int((best == 1).sum()), int((best == 0).sum()))
    contrast = change.sums["heads"][1][:, 1] - change.sums["heads"][1][:, 0]
    expected = contrast[best == 1].mean(0) - contrast[best == 0].mean(0)
    rows = [row for row in wrong.table(right) if row.what == "head"]
    for row in rows:
        assert row.mean == pytest.approx(float(expected[row.layer, row.head]), abs=1e-5)
        assert row.low < row.mean < row.high
        assert row.text == "b rather than a"
    alone = [row for row in wrong.table(right[:0]) if row.what == "head"]
    by_place = {row[2:4]: row.mean for row in alone}
    assert by_place[1, 2] == pytest.approx(float(contrast[best == 1].mean(0)[1, 2]), abs=1e-5)


def test_words_of_a_change_are_those_of_its_vectors(pair: Any, change: Change) -> None:
    pool = targets.text(pair[0], [*TEXTS, "a cake", "sand"])
    assert change.vectors is not None
    products = torch.einsum("nlhe,ke->nklh", change.vectors.heads, pool.embeddings[:3])
    torch.testing.assert_close(products, change.heads, rtol=0, atol=1e-6)
    for (layer, head), span in change.describe(pool, count=2).items():
        assert span.texts == heads.text_span(change.vectors.heads[:, layer, head], pool, 2).texts


def test_figure_begins_with_the_image_that_moved_most(change: Change) -> None:
    by = (change.scores[1] - change.scores[0]).abs()
    image, text = divmod(int(by.argmax()), len(TEXTS))
    written = lines_of(change.plot(count=2))
    numbers = [
        float(n)
        for n in (
            *change.scores[:, image, text],
            (change.scores[1] - change.scores[0])[image, text],
        )
    ]
    expected = [f"{number:+.3f}".replace("-", "\N{MINUS SIGN}") for number in numbers]
    notes = [line for line in written if line[:1] in "+\N{MINUS SIGN}"]
    assert notes[:3] == expected
    assert len(notes) == 6
    assert TEXTS[text] in written


WRONG: list[tuple[Any, str]] = [
    (
        lambda pair, _: compare(pair[0], pair[1], [], TEXTS),
        "compare: expected at least one image, got none",
    ),
    (
        lambda pair, _: compare(pair[0], pair[1], "a.png", TEXTS),
        "expected images, in a list or one after",
    ),
    (
        lambda pair, _: compare(pair[0], pair[1], builders.hf_vit().images(1), []),
        "a text or several",
    ),
    (
        lambda pair, _: compare(pair[0], 3, builders.hf_vit().images(1), TEXTS),
        "a name, a folder or",
    ),
    (lambda _, change: change.confusion("a horse", "a cake"), "one of the texts .*got 'a cake'"),
    (lambda _, change: change.plot(count=0), "count of 1 or more"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_a_change_names_what_is_wrong(pair: Any, change: Change, call: Any, message: str) -> None:
    with pytest.raises(CaptumClipError, match=message):
        call(pair, change)


def test_a_change_back_is_its_negative() -> None:
    """Where the texts stay, all of it; else the score's, since each goes its own way there."""
    small = builders.hf_vit()
    before, after = small.load(), tuned(small, "vision_model").load()
    there = compare(before, after, small.images(2), TEXTS)
    back = compare(after, before, small.images(2), TEXTS)
    torch.testing.assert_close(there.scores, back.scores.flip(0), rtol=0, atol=1e-6)
    for name in NAMES:
        values = getattr(there, name)
        torch.testing.assert_close(values, -getattr(back, name), rtol=0, atol=1e-6)
        assert float(values.abs().max()) > 1e-3
    assert float(there.text.abs().max()) < 1e-6


def test_a_model_against_itself_changes_nothing(pair: Any) -> None:
    same = compare(pair[0], pair[0], builders.hf_vit().images(2), TEXTS)
    for name in (*NAMES, "text"):
        assert float(getattr(same, name).abs().max()) < 1e-6, name
    assert {(row.mean, row.low) for row in same.table()} == {(0, 0)}


def test_heads_of_streams_of_other_widths_are_refused(pair: Any) -> None:
    other = builders.hf_vit(hidden_size=48)
    message = "the widths of .* are .32,. and .48,., so heads, mlps, rest, scale cannot"
    with pytest.warns(UserWarning, match=message):
        found = compare(pair[0], other.load(), other.images(2), TEXTS)
    with pytest.raises(InputError, match=message):
        _ = found.scale
    assert found.regions.shape[:2] == (2, 3)
