"""The text side: every method on token ids, against text towers written out in plain tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor, nn
from transformers import VisionTextDualEncoderModel

from captum_clip import TextSimilarity, attr, load_clip, targets
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import CaptureError, InputError, TargetError, UnsupportedModelError
from tests import builders, oracles
from tests.attr import cases, state

TEXTS = ["a horse and a dog", "a dog"]
MODELS: dict[str, Callable[[], builders.Small]] = {
    "hf_vit": builders.hf_vit,
    "siglip": builders.siglip,
    "naflex": builders.naflex,
    "open_clip_vit": builders.open_clip_vit,
    "open_clip_text": partial(builders._open_clip, 3, builders.VIT_CONFIG, custom_text=True),
    "metaclip": partial(builders.hf_layout, "MetaClip2"),
    "coca": partial(builders.coca, correct_cls_mask=True),
    "coca_legacy": builders.coca,
    "altclip": builders.BUILDERS["altclip"],
    "chinese_clip": builders.BUILDERS["chinese_clip"],
    "dual_encoder": builders.dual_encoder,
    "align": partial(builders.align, text_layers=2),
    "flava": builders.flava,
    "open_clip_bert": builders.open_clip_bert,
    "open_clip_roberta": partial(builders.open_clip_bert, kind="roberta", pooler="cls_pooler"),
    "open_clip_mean": partial(builders.open_clip_bert, pooler="mean_pooler"),
}
BERTS = list(MODELS)[8:]
METHODS = [
    "AttentionGradCam",
    "AttentionRollout",
    "AllGradAttention",
    "LastGradAttention",
    "GradEclip",
    "DirectContribution",
    "ConservativePropagation",
]
ADDITIVE = METHODS[-2:]


def assert_near(name: str, found: Tensor, wanted: Tensor) -> None:
    # the library's softmax of ALIGN is float32
    rtol, atol = (1e-4, 1e-7) if name == "align" else (1e-10, 1e-12)
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)


@cache
def small(name: str) -> builders.Small:
    built = MODELS[name]()
    return built._replace(model=built.model.double())


def embeddings(name: str) -> Tensor:
    """Three rows, as of images, one of them against another."""
    model: Any = small(name).model
    with torch.no_grad():
        size = small(name).load().text_features(*small(name).load().text_inputs(TEXTS)).shape[1]
    assert isinstance(model, nn.Module)
    rows = torch.randn(2, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return nn.functional.normalize(torch.cat([rows, -rows[:1]]), dim=1)


@cache
def similarity(name: str) -> TextSimilarity:
    return TextSimilarity(small(name).load(), targets.embedding(embeddings(name)))


def inputs(name: str) -> tuple[Tensor, Tensor | None]:
    ids, mask = small(name).load().text_inputs(TEXTS)
    return ids, mask


class Plain(NamedTuple):
    """What a plain text tower computed; tensors in autograd's graph."""

    scores: Tensor  # (B, K)
    attentions: list[Tensor]  # n x (B, H, s, s)
    written: list[Tensor]  # n x (B, s, s, D): what every token writes to every row
    words: Tensor  # (B, s, D), the embedded tokens
    hidden: Tensor  # (B, s, D), the last block's output
    rows: Tensor  # (B,)
    query: Tensor  # (B, s, D), of the last attention, all heads side by side
    keys: Tensor  # (B, s, D)
    visible: Tensor  # (B, s, s)
    streams: list[tuple[Tensor, Tensor]]  # what enters each block, and its attention's output


def constant(tensor: Tensor, hold: bool) -> Tensor:
    return tensor.detach() if hold else tensor


def linear(module: Any) -> tuple[Tensor, Tensor | None]:
    return module.weight, module.bias


def parts(model: Any) -> dict[str, Any]:
    """The parameters of a text tower, whichever library it comes from."""
    bert = bert_of(model)
    if bert is not None:
        return bert_parts(model, bert)
    if hasattr(model, "text_model"):
        tower = model.text_model
        blocks = [
            {
                "heads": block.self_attn.num_heads,
                "qkvo": [
                    linear(getattr(block.self_attn, f"{n}_proj")) for n in ("q", "k", "v", "out")
                ],
                "norms": (block.layer_norm1, block.layer_norm2),
                "mlp": (block.mlp.fc1, block.mlp.fc2),
                "gate": block.mlp.activation_fn,
            }
            for block in tower.encoder.layers
        ]
        head = tower.head if hasattr(tower, "head") else model.text_projection
        table, positions = tower.embeddings.token_embedding, tower.embeddings.position_embedding
        return {
            "table": table.weight,
            "positions": positions.weight,
            "blocks": blocks,
            "head": [tower.final_layer_norm, linear(head)],
        }
    tower = getattr(model, "text", model)
    blocks = []
    for block in tower.transformer.resblocks:
        pairs = zip(
            block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3), strict=True
        )
        blocks.append(
            {
                "heads": block.attn.num_heads,
                "qkvo": [*pairs, linear(block.attn.out_proj)],
                "norms": (block.ln_1, block.ln_2),
                "mlp": (block.mlp.c_fc, block.mlp.c_proj),
                "gate": oracles.exact_gelu,
            }
        )
    return {
        "table": tower.token_embedding.weight,
        "positions": tower.positional_embedding,
        "class": getattr(tower, "cls_emb", None),
        "blocks": blocks,
        "head": [tower.ln_final, (tower.text_projection.T, None)],
    }


def bert_of(model: Any) -> Any:
    """What has a BERT's embeddings and layers; None where there is none."""
    tower = getattr(model, "text_model", getattr(model, "text", model))
    tower = getattr(tower, "transformer", getattr(tower, "roberta", tower))
    return tower if hasattr(getattr(tower, "embeddings", None), "word_embeddings") else None


def bert_parts(model: Any, tower: Any) -> dict[str, Any]:
    layers = tower.encoder.layers if hasattr(tower.encoder, "layers") else tower.encoder.layer
    blocks, post = [], not hasattr(layers[0], "layernorm_before")
    for block in layers:
        own = block.attention.self if post else block.attention.attention
        maps = [*(getattr(own, name) for name in ("query", "key", "value"))]
        blocks.append(
            {
                "heads": own.num_attention_heads,
                "qkvo": [linear(m) for m in (*maps, block.attention.output.dense)],
                "norms": (block.attention.output.LayerNorm, block.output.LayerNorm)
                if post
                else (block.layernorm_before, block.layernorm_after),
                "mlp": (block.intermediate.dense, block.output.dense),
                "gate": block.intermediate.intermediate_act_fn,
            }
        )
    head: list[Any] = [] if post else [tower.layernorm]
    outer = getattr(model, "text", None)
    if hasattr(model, "text_model") and model.text_model is not tower:  # AltCLIP
        head = [model.text_model.pre_LN, linear(model.text_model.transformation)]
    pooled = isinstance(model, VisionTextDualEncoderModel)
    if pooled or getattr(getattr(outer, "pooler", None), "use_pooler_output", False):
        head = [linear(tower.pooler.dense), torch.tanh]
    if outer is not None:
        head += [linear(outer.proj[0]), oracles.exact_gelu, linear(outer.proj[2])]
    else:
        head += [linear(model.text_projection)]
    embeddings = tower.embeddings
    # positions of RoBERTa's relatives begin after that of the padding token
    first = embeddings.position_embeddings.padding_idx
    return {
        "table": embeddings.word_embeddings.weight,
        "whole_positions": embeddings.position_embeddings.weight,
        "padding": first,
        "offset": 0 if first is None else first + 1,
        "kinds": embeddings.token_type_embeddings.weight[0],
        "first_norm": embeddings.LayerNorm,
        "post": post,
        "blocks": blocks,
        "head": head,
    }


def through_head(token: Tensor, steps: list[Any], hold: bool) -> Tensor:
    for step in steps:
        if isinstance(step, tuple):
            token = nn.functional.linear(token, *step)
        elif isinstance(step, nn.Module):
            token = oracles.norm(token, step, hold)
        else:
            token = oracles.activated(step, token, hold)
    return token


def run(name: str, ids: Tensor, mask: Tensor | None, *, hold: bool = False) -> Plain:
    """The text tower in plain tensors; with `hold`, every gate is a constant."""
    tower, post = parts(small(name).model), parts(small(name).model).get("post", False)
    visible = visible_of(name, ids, mask)
    words = tower["table"][ids].detach().requires_grad_()
    x = embedded(tower, words, ids, mask, hold)
    attentions, written, streams = [], [], []
    for block in tower["blocks"]:
        heads, (q, k, v, out) = block["heads"], block["qkvo"]
        first_norm, second_norm = block["norms"]
        normed = x if post else oracles.norm(x, first_norm, hold)
        query, key, value = (
            (normed @ weight.T + bias).unflatten(-1, (heads, -1)).transpose(1, 2)
            for weight, bias in (q, k, v)
        )
        logits = query @ key.mT * query.shape[-1] ** -0.5
        weights = logits.masked_fill(~visible[:, None], -1e300).softmax(-1)
        attentions.append(weights)
        weights = constant(weights, hold)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        # (B, H, i, j) (B, H, j, d) (D, H, d) -> what j writes to i
        split = out[0].unflatten(1, (heads, -1))
        written.append(torch.einsum("bhij,bhjd,ohd->bijo", weights, value, split).detach())
        attended = mixed @ out[0].T + out[1]
        streams.append((x.detach(), attended.detach()))
        x = x + attended
        x = oracles.norm(x, first_norm, hold) if post else x
        first, second = block["mlp"]
        inner = x if post else oracles.norm(x, second_norm, hold)
        inner = inner @ first.weight.T + first.bias
        inner = oracles.activated(block["gate"], inner, hold)
        x = x + inner @ second.weight.T + second.bias
        x = oracles.norm(x, second_norm, hold) if post else x
    rows = read_rows(name, ids)
    token = x[torch.arange(len(ids)), rows]
    if name == "open_clip_mean":
        token = (weights_of(visible)[..., None] * x).sum(1)
    embedding = through_head(token, tower["head"], hold)
    length_of = constant(embedding.norm(dim=-1, keepdim=True), hold)
    scores = embedding / length_of @ embeddings(name).T
    query, key = (each.transpose(1, 2).flatten(2) for each in (query, key))
    return Plain(scores, attentions, written, words, x, rows, query, key, visible, streams)


def weights_of(visible: Tensor) -> Tensor:
    """The mean of the tokens that are no padding, (B, s)."""
    seen = visible[:, 0].double()
    return seen / seen.sum(1, keepdim=True)


def embedded(
    tower: dict[str, Any], words: Tensor, ids: Tensor, mask: Tensor | None, hold: bool
) -> Tensor:
    """What enters the first block."""
    if "kinds" in tower:
        places = torch.arange(ids.shape[1]).expand_as(ids)
        if tower["padding"] is not None:  # which has a position of its own
            filled = ids != tower["padding"]
            places = torch.where(filled, filled.cumsum(1) - 1, -1)
        positions = tower["whole_positions"][places + tower["offset"]]
        return oracles.norm(words + positions + tower["kinds"], tower["first_norm"], hold)
    if tower.get("class") is not None:
        words = torch.cat([words, tower["class"].expand(len(ids), 1, -1)], 1)
    return words + tower["positions"][: words.shape[1]]


def visible_of(name: str, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Which token attends to which, (B, s, s)."""
    length = ids.shape[1] + name.startswith("coca")
    visible = torch.ones(len(ids), length, length, dtype=torch.bool)
    if name not in ("siglip", "naflex", *BERTS):
        visible = visible.tril()
    if mask is not None:
        visible = visible & mask.bool()[:, None]
    if name in ("open_clip_bert", "open_clip_roberta", "open_clip_mean"):
        visible = visible & (ids != 1)[:, None]
    if name.startswith("coca"):
        one = torch.ones(len(ids), 1, dtype=torch.bool)
        shown = [ids != 0, one] if name == "coca" else [one, ids != 0]
        visible = visible & torch.cat(shown, 1)[:, None]
    return visible


def read_rows(name: str, ids: Tensor) -> Tensor:
    if name in ("siglip", "naflex"):
        return torch.full((len(ids),), ids.shape[1] - 1)
    if name.startswith("coca"):
        return torch.full((len(ids),), ids.shape[1])
    if name in BERTS:
        return torch.zeros(len(ids), dtype=torch.long)
    if name.startswith("open_clip"):
        return ids.argmax(-1)
    return (ids == 258).int().argmax(-1)


def gradients(y: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(y, tensors, retain_graph=True))


def directions(name: str, seen: Plain, depth: str) -> list[Tensor]:
    """G (B, K, D) of each layer: the target through the head and the stream's frozen norms.

    What attention and MLP write to the stream is a constant, so the gradient runs along it alone;
    with depth "token" the MLPs' gates are, and it runs through them as well.
    """
    tower, batch = parts(small(name).model), torch.arange(len(seen.rows))
    x, leaves = seen.streams[0][0][batch, seen.rows], []
    for block, (_, attended) in zip(tower["blocks"], seen.streams, strict=True):
        leaves.append(attended[batch, seen.rows].requires_grad_())
        x = x + leaves[-1]
        first, second = block["mlp"]
        if tower.get("post"):
            x = oracles.norm(x, block["norms"][0], detached=True)
        inner = x if depth == "token" else x.detach()
        inner = (
            inner if tower.get("post") else oracles.norm(inner, block["norms"][1], detached=True)
        )
        inner = oracles.activated(block["gate"], inner @ first.weight.T + first.bias, detached=True)
        inner = inner @ second.weight.T + second.bias
        x = x + (inner if depth == "token" else inner.detach())
        if tower.get("post"):
            x = oracles.norm(x, block["norms"][1], detached=True)
    embedding = through_head(x, tower["head"], hold=True)
    scores = embedding @ embeddings(name).T / embedding.detach().norm(dim=-1, keepdim=True)
    columns = [gradients(y, leaves) for y in scores.sum(0)]
    return [torch.stack(layer, 1) for layer in zip(*columns, strict=True)]


def direct(name: str, seen: Plain, depth: str = "pooling") -> Tensor:
    """What every token adds to the scores through the rows that are pooled, (B, K, s)."""
    if name != "open_clip_mean":
        batch = torch.arange(len(seen.rows))
        pairs = zip(directions(name, seen, depth), seen.written, strict=True)
        parts_ = [torch.einsum("bkd,bjd->bkj", g, each[batch, seen.rows]) for g, each in pairs]
        return torch.stack(parts_).sum(0).detach()
    start = weights_of(seen.visible)
    token = (start[..., None] * seen.hidden).sum(1).detach().requires_grad_()
    embedding = through_head(token, parts(small(name).model)["head"], hold=True)
    scores = embedding @ embeddings(name).T / embedding.detach().norm(dim=-1, keepdim=True)
    slopes = [gradients(y, [token])[0] for y in scores.sum(0)]
    columns = [start * torch.einsum("bd,bjd->bj", slope, seen.hidden) for slope in slopes]
    return torch.stack(columns, 1).detach()


def expected(method: str, name: str, ids: Tensor, mask: Tensor | None) -> Tensor:
    """The method's values (B, K, T) from its equation, read at the row, or the mean of rows."""
    seen = run(name, ids, mask, hold=method == "ConservativePropagation")
    if method == "DirectContribution":
        return direct(name, seen)
    pooled = torch.eye(seen.keys.shape[1], dtype=torch.float64)[seen.rows]
    start = weights_of(seen.visible) if name == "open_clip_mean" else pooled
    if method == "AttentionRollout":
        row = start
        for weights in reversed(seen.attentions):
            row = (row + at(row, weights.mean(1))) / 2
        return row[:, None].expand(-1, 3, -1).detach()
    columns = []
    for y in seen.scores.sum(0):
        if method == "ConservativePropagation":
            (gradient,) = gradients(y, [seen.words])
            columns.append((gradient * seen.words).sum(-1))
            continue
        taken = gradients(y, seen.attentions)
        last = [taken[-1]] * len(taken) if method == "LastGradAttention" else taken
        matrices = [
            (gradient * weights).clamp(min=0).mean(1)
            for gradient, weights in zip(last, seen.attentions, strict=True)
        ]
        if method == "GradEclip":
            positive = at(start, taken[-1].sum(1)).clamp(min=0)
            columns.append(loosened(positive, at(start, seen.query), seen))
        elif method == "AttentionGradCam":
            columns.append(at(start, matrices[-1]))
        else:
            columns.append(at(start, oracles.relevance(matrices)))
    return torch.stack(columns, 1).detach()


def at(row: Tensor, matrix: Tensor) -> Tensor:
    """A row (B, s) times a matrix (B, s, ...)."""
    return torch.einsum("bi,bij->bj", row, matrix)


def loosened(positive: Tensor, query: Tensor, seen: Plain) -> Tensor:
    """Values (B, s) times the min-max of the cosine of a query (B, D) and the keys that it sees."""
    cosine = nn.functional.cosine_similarity(query.detach()[:, None], seen.keys.detach(), dim=-1)
    values = torch.zeros_like(positive)
    for b, row in enumerate(seen.rows):
        sees = seen.visible[b, row].clone()
        sees[seen.words.shape[1] :] = False  # a class token at the end
        mine = cosine[b][sees]
        values[b, sees] = positive[b][sees] * (mine - mine.min()) / (mine.max() - mine.min())
    return values


def explain(method: str, name: str, ids: Tensor, mask: Tensor | None, **options: Any) -> Any:
    explainer = getattr(attr, method)(similarity(name))
    return explainer.attribute_targets(ids, additional_forward_args=mask, **options)


# every tower with one method, every method with a tower of each kind
READING = ["hf_vit", "coca", "open_clip_mean"]
CHECKED = [
    *((method, name) for name in READING for method in METHODS),
    *(("DirectContribution", name) for name in MODELS if name not in READING),
]


@pytest.mark.parametrize(("method", "name"), CHECKED)
def test_a_method_equals_its_equation_on_words(method: str, name: str) -> None:
    """With every attention in autograd's graph, at the row that the tower reads."""
    ids, mask = inputs(name)
    wanted = expected(method, name, ids, mask)[..., : ids.shape[1]]
    assert wanted.abs().max() > 1e-4
    values = explain(method, name, ids, mask)
    assert values.shape == (2, 3, ids.shape[1])
    assert_near(name, values, wanted)
    one = getattr(attr, method)(similarity(name)).attribute(
        ids, target=1, additional_forward_args=mask
    )
    assert_near(name, one, wanted[:, 1:2])


@pytest.mark.parametrize("name", MODELS)
def test_the_plain_tower_is_the_librarys(name: str) -> None:
    """Otherwise the oracle would say nothing."""
    ids, mask = inputs(name)
    with torch.no_grad():
        wanted = run(name, ids, mask).scores
        assert_near(name, similarity(name)(ids, mask), wanted)
        whole = small(name).load().encode_text(TEXTS) @ embeddings(name).T
    assert_near(name, whole, wanted)


@pytest.mark.parametrize("name", ["hf_vit", "coca", "dual_encoder"])
def test_depth_token_equals_its_equation(name: str) -> None:
    """Through the MLPs of the pooled token, on norms before and after the sums."""
    ids, mask = inputs(name)
    found = explain("DirectContribution", name, ids, mask, depth="token")
    wanted = direct(name, run(name, ids, mask), "token")
    assert_near(name, found, wanted[..., : ids.shape[1]])
    assert not torch.allclose(found, explain("DirectContribution", name, ids, mask), rtol=0.01)


OPTIONS: list[dict[str, Any]] = [
    *({}, {"baseline": "mean"}, {"per": "head"}, {"start_layer": 1}, {"depth": "token"}),
]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ("hf_vit", "siglip", "altclip", "flava")),
        *((name, options) for name in ("coca", "open_clip_mean") for options in OPTIONS),
    ],
)
def test_values_and_rest_add_up_to_the_score(name: str, options: dict[str, Any]) -> None:
    ids, mask = inputs(name)
    if name == "open_clip_mean" and options.keys() & {"per", "depth"}:
        with pytest.raises(InputError, match=r"no attention, and so no|text tower pools by mean"):
            explain("DirectContribution", name, ids, mask, **options)
        return
    for method in ADDITIVE if not options else ADDITIVE[:1]:
        values, scores, rest = explain(
            method, name, ids, mask, return_scores=True, return_rest=True, **options
        )
        while values.ndim > 3:
            values = values.sum(2)
        with torch.no_grad():
            wanted = similarity(name)(ids, mask)
        assert_near(name, scores, wanted)
        assert_near(name, values.sum(-1) + rest, wanted)


@pytest.mark.parametrize("method", [METHODS[3], *ADDITIVE])
def test_padding_changes_nothing(method: str) -> None:
    """A short text has the same values alone and next to a long one, and its padding has none."""
    ids, mask = inputs("hf_vit")
    assert mask is not None
    count = int(mask[1].sum())
    together = explain(method, "hf_vit", ids, mask)[1]
    alone = explain(method, "hf_vit", ids[1:, :count], mask[1:, :count])[0]
    torch.testing.assert_close(together[:, :count], alone, rtol=1e-10, atol=1e-12)
    assert together[:, count:].abs().max() == 0


def test_a_mask_is_honored_where_every_token_sees_every_other() -> None:
    """Masked tokens of a SigLIP get nothing, and the others what a plain tower gives them."""
    ids, mask = inputs("siglip")
    assert mask is None
    mask = torch.ones_like(ids)
    mask[:, 3] = 0
    for method in METHODS:
        values = explain(method, "siglip", ids, mask)
        wanted = expected(method, "siglip", ids, mask)
        torch.testing.assert_close(values, wanted, rtol=1e-10, atol=1e-12)
        assert values[..., 3].abs().max() == 0


@pytest.mark.parametrize("name", ["hf_vit", "siglip"])
def test_captums_integrated_gradients_work_on_the_token_embeddings(name: str) -> None:
    """Against a reference of padding for words, as Captum's users do it, it is complete."""
    forward, (ids, mask) = similarity(name), inputs(name)
    table = forward.tower.stem
    positions = torch.arange(ids.shape[1])
    words = (positions > 0) & (positions < read_rows(name, ids)[:, None])
    reference = ids.masked_fill(words, 0)  # start and end stay, or another row would be read
    explainer = LayerIntegratedGradients(forward, table)
    values, delta = explainer.attribute(
        ids,
        reference,
        target=0,
        additional_forward_args=mask,
        n_steps=60,
        return_convergence_delta=True,
    )
    assert values.shape[:2] == ids.shape
    assert values.abs().max() > 1e-3
    assert delta.abs().max() < 1e-2


def test_values_do_not_depend_on_the_callers_mode() -> None:
    ids, mask = inputs("hf_vit")
    for method in METHODS:
        wanted = explain(method, "hf_vit", ids, mask)
        with torch.inference_mode():
            torch.testing.assert_close(explain(method, "hf_vit", ids, mask), wanted)


# What is refused, before any work


def test_a_target_of_texts_is_refused() -> None:
    clip = small("hf_vit").load()
    for target in (targets.text(clip, "a horse"), -targets.text(clip, TEXTS)[:1]):
        with pytest.raises(TargetError, match=r"holds texts.*targets\.image"):
            TextSimilarity(clip, target)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            {"input_ids": 1},
            "expected token ids .* got {'input_ids': 1}; ids, mask = clip.text_inputs",
        ),
        (
            torch.zeros(1, 78, dtype=torch.long),
            "up to 77 tokens, .* got Tensor .*; ids, mask",
        ),
        (torch.zeros(1, 7), "of whole numbers, got .* of torch.float32"),
        (torch.zeros(7, dtype=torch.long), "expected token ids .*B, T"),
        (torch.full((1, 7), 300), "token ids from 0 to 258, .*, got 300; make"),
        (torch.tensor([[5, -1]]), "token ids from 0 to 258, .*, got -1; make"),
    ],
)
def test_token_ids_that_are_none_are_refused(ids: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        similarity("hf_vit")(ids)


def test_a_mask_of_another_shape_is_refused() -> None:
    ids, _ = inputs("hf_vit")
    with pytest.raises(InputError, match=r"expected an attention_mask of shape \(2, 19\)"):
        similarity("hf_vit")(ids, torch.ones(2, 3))


def test_open_clip_takes_no_mask_and_its_own_length() -> None:
    ids, _ = inputs("open_clip_vit")
    with pytest.raises(InputError, match="takes no attention_mask"):
        similarity("open_clip_vit")(ids, torch.ones_like(ids))
    with pytest.raises(InputError, match=r"texts of 77 tokens, which .* takes, got Tensor"):
        similarity("open_clip_vit")(ids[:, :5])


@pytest.mark.parametrize("method", ["ClipGradCam", "LayerAttention"])
def test_a_method_that_needs_a_grid_is_refused(method: str) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"and this is a text tower; take .*DirectContribution"
    ):
        getattr(attr, method)(similarity("hf_vit"))


def test_other_text_towers_are_refused_with_what_is_supported() -> None:
    clip = builders.tipsv2().load()
    with pytest.raises(UnsupportedModelError, match="cannot be explained; supported are those of"):
        TextSimilarity(clip, targets.embedding(torch.eye(24)[:1]))


@pytest.mark.parametrize("name", ["open_clip_bert", "coca"])
def test_open_clip_makes_its_masks_itself(name: str) -> None:
    ids, _ = inputs(name)
    with pytest.raises(InputError, match="finds padding itself, and takes no attention_mask"):
        similarity(name)(ids, torch.ones_like(ids))


def in_half(own: builders.Small) -> builders.Small:
    return own._replace(model=own.model.to(torch.bfloat16))


@pytest.mark.parametrize("name", ["dual_encoder"])
def test_half_precision_gives_nearly_the_same(name: str) -> None:
    whole, (ids, mask) = MODELS[name](), inputs(name)
    target = targets.embedding(embeddings(name).float())
    half = TextSimilarity(in_half(MODELS[name]()).load(), target)
    for method in METHODS:
        wanted = getattr(attr, method)(TextSimilarity(whole.load(), target)).attribute_targets(
            ids, additional_forward_args=mask
        )
        found = getattr(attr, method)(half).attribute_targets(ids, additional_forward_args=mask)
        assert found.dtype == torch.float32
        assert (found - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_a_text_similarity_with_code_of_its_own_is_explained_with_it() -> None:
    class Doubled(TextSimilarity):
        def forward(self, *inputs: Any) -> Tensor:
            return 2 * super().forward(*inputs)

    own = builders.hf_vit().load()
    ids, mask = own.text_inputs(TEXTS)
    for method in (*ADDITIVE, "GradEclip"):
        twice, once = (
            getattr(attr, method)(kind(own, targets.embedding(torch.eye(24)[:1]))).attribute(
                ids, additional_forward_args=mask
            )
            for kind in (Doubled, TextSimilarity)
        )
        torch.testing.assert_close(twice, 2 * once)


def test_errors_name_the_text_tower() -> None:
    """Those of a recording, whose caller runs the forward, and of a method."""

    class Twice(TextSimilarity):
        def forward(self, *inputs: Any) -> Tensor:
            return super().forward(*inputs) + super().forward(*inputs)

    own = builders.open_clip_vit()
    forward = Twice(own.load(), targets.embedding(torch.eye(24)[:1]))
    ids, _ = own.load().text_inputs(TEXTS)
    with pytest.raises(CaptureError, match="ran the text tower twice"):
        attr.AllGradAttention(forward).attribute(ids)
    own.model.set_grad_checkpointing()
    plain = TextSimilarity(forward.clip, forward.target)
    with pytest.raises(UnsupportedModelError, match="The text tower checkpoints its activations"):
        attr.AllGradAttention(plain).attribute(ids)


@pytest.mark.parametrize("name", ["demo/vit"])
def test_the_word_of_the_object_that_is_there_gets_more(name: str) -> None:
    """On the embedded models, of "a horse and a dog" where only the horse is there."""
    clip = load_clip(name)
    pictures = [draw_scene(seed, objects=["horse"]).image for seed in range(4)]
    forward = TextSimilarity(clip, targets.image(clip, pictures))
    ids, mask = clip.text_inputs(TEXTS[0])
    for method in (attr.DirectContribution, attr.ConservativePropagation):
        values = method(forward).attribute_targets(ids, additional_forward_args=mask)[0]
        assert (values[:, 2] > values[:, 5]).all()


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit"])
def test_nothing_is_left_on_the_model(name: str) -> None:
    model = small(name).model
    before = state.of_model(model)
    for method in METHODS:
        explain(method, name, *inputs(name))
    state.assert_same(before, state.of_model(model))


@pytest.mark.parametrize("part", ["text_model.pooler.dense", "text_model.encoder.layer.0"])
def test_a_hook_on_a_text_tower_is_followed_or_refused(part: str) -> None:
    own = builders.dual_encoder()
    forward = TextSimilarity(own.load(), targets.embedding(torch.eye(24)[:1]))
    ids, mask = own.load().text_inputs(TEXTS)
    methods = [method(forward) for method in cases.OWN.values() if "text" in method.towers]
    call = {"additional_forward_args": mask}
    plain = [method.attribute(ids, **call) for method in methods]
    module, refused = own.model.get_submodule(part), set()
    for change in (lambda *_: None, lambda module, args, out: 2 * out):
        handle = module.register_forward_hook(change)
        for method, wanted in zip(methods, plain, strict=True):
            try:
                found, scores = method.attribute_targets(ids, return_scores=True, **call)
            except UnsupportedModelError:
                refused.add(method.name)
                continue
            torch.testing.assert_close(scores, forward(ids, mask).detach())
            if handle is None:
                torch.testing.assert_close(found, wanted)
        handle.remove()
    # removal is shared out by direct
    assert refused == (set() if "dense" in part else {"direct", "removal"})


def test_dropout_in_training_is_refused() -> None:
    own = builders.hf_vit()
    own.model.train()
    own.model.text_model.encoder.layers[0].self_attn.dropout = 0.1
    forward = TextSimilarity(own.load(), targets.embedding(torch.eye(24)[:1]))
    with pytest.raises(InputError, match=r"text tower is in training mode .* call model\.eval"):
        attr.DirectContribution(forward).attribute(own.load().text_inputs(TEXTS)[0])
