"""Tokens, scores and modules of other people's code: right, or refused, in a sentence."""

from __future__ import annotations

import dataclasses
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from captum_clip.errors import CaptumClipError, UnsupportedModelError
from tests import builders, explicit, oracles
from tests.attr import cases, running
from tests.attr import test_others_methods as others
from tests.attr.changes import changed, of_tokens, placed
from tests.attr.running import FEW, GRADIENTS, MOST, TAKEN_APART, Plain, shared
from tests.vendored.clip import model as published

LAST = "vision_model.encoder.layers.2"


def cosine(embedding: Tensor) -> Tensor:
    return F.normalize(embedding, dim=-1) @ cases.embeddings().T


def given_as(given: str, name: str) -> Any:
    """A callable of one's own with its layer, or None for the similarity."""
    model = shared(name)
    return (lambda x: cosine(cases.embed(model, x)), model) if given == "callable" else None


# Tokens that are no patches, and patches that are no tokens any more


PROMPTS = torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def with_prompts(x: Tensor, where: str, index: int = 0) -> Tensor:
    prompts = PROMPTS[index].to(x).expand(len(x), -1, -1)
    kept = (
        x if index == 0 else torch.cat([x[:, :1], x[:, 3:]], 1) if where == "first" else x[:, :-2]
    )
    parts = [kept[:, :1], prompts, kept[:, 1:]] if where == "first" else [kept, prompts]
    return torch.cat(parts, 1)


def prompted(model: Any, where: str, way: str) -> None:
    encoder: Any = model.vision_model.encoder
    kind = type(encoder)

    def forward(self: Any, inputs_embeds: Tensor, *args: Any, **options: Any) -> Any:
        return kind.forward(self, with_prompts(inputs_embeds, where), *args, **options)

    if way == "class":
        encoder.__class__ = type("PromptedEncoder", (kind,), {"forward": forward})
    for index in range({"class": 0, "hook": 1, "deep": 3}[way]):
        encoder.layers[index].register_forward_pre_hook(
            lambda m, args, i=index: (with_prompts(args[0], where, i), *args[1:])
        )


@pytest.mark.parametrize("way", ["class", "hook", "deep"])
@pytest.mark.parametrize("where", ["first", "last"])
def test_prompts_among_the_tokens_have_no_cell_of_the_map(where: str, way: str) -> None:
    """Between CLS and the patches, as visual prompt tuning has them, or after the patches.

    Whether they are explained is left open; no patch may be taken for another.
    """
    small = running.double()
    prompted(small.model, where, way)
    span = slice(3, 19) if where == "first" else slice(1, 17)
    plain = Plain(small.model, running.images(), span=span)
    similarity = running.similarity_of(small.load())
    running.assert_right_or_refused(running.verdicts([*FEW, "grad-eclip"], similarity, plain))


class VisionTransformer_MaPLe(published.VisionTransformer):
    """A tower of OpenAI's code with prompts, and the attribute that MaPLe's has."""

    VPT_shallow = True
    where = "last"

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).mT
        first = self.class_embedding + torch.zeros(len(x), 1, x.shape[-1], dtype=x.dtype)
        x = torch.cat([first, x], 1) + self.positional_embedding
        x = self.transformer(self.ln_pre(with_prompts(x, self.where)).transpose(0, 1))
        return self.ln_post(x[0]) @ self.proj


def test_prompts_before_the_patches_are_no_patches_in_a_class_that_has_them_after() -> None:
    """An attention knows no order: the scores are the same, and so are the shares of patches."""
    sizes = {"input_resolution": 32, "patch_size": 8, "width": 32, "layers": 3, "heads": 4}
    visual: Any = builders.randomize(VisionTransformer_MaPLe(output_dim=24, **sizes), 0)

    def forward(images: Tensor) -> Tensor:
        return F.normalize(visual(images), dim=-1) @ cases.embeddings().float().T

    methods, pixels = [*FEW, "grad-eclip"], running.images().float()
    wanted = {m: running.explained(m, (forward, visual), pixels)[0] for m in methods}
    visual.where = "first"
    answers = running.verdicts(methods, (forward, visual), wanted.get, pixels, tolerance=1e-4)
    running.assert_right_or_refused(answers)


def of_patches(change: Callable[[Tensor], Tensor], prefix: int) -> Callable[[Tensor], Tensor]:
    return of_tokens(lambda x: torch.cat([x[:, :prefix], change(x[:, prefix:])], 1))


MOVED: dict[str, Callable[[Tensor], Tensor]] = {
    "rolled": lambda x: x.roll(1, 1),
    "turned": lambda x: x.flip(1),
    "dropped": lambda x: x[:, :12],
    "merged": lambda x: (x[:, ::2] + x[:, 1::2]) / 2,
}


@pytest.mark.parametrize("moved", MOVED)
@pytest.mark.parametrize(("name", "prefix"), [("hf_vit", 1), ("open_clip_vit", 1), ("siglip", 0)])
def test_patches_that_change_places_between_layers_are_refused(
    name: str, prefix: int, moved: str
) -> None:
    """A position of a later attention is no place of the image then."""
    model = shared(name)
    with placed(model, ""):
        change = of_patches(MOVED[moved], prefix)
        others.blocks_of(model)[0].register_forward_hook(lambda m, a, out: changed(out, change))
        given, pixels = cases.similarity(name, torch.float64), cases.images(name).double()
        # the gradient at the patches themselves goes through whatever moves tokens later
        moved_later = [method for method in MOST if method != "conservative"]
        running.assert_refused(running.verdicts(moved_later, given, pixels=pixels))
        running.assert_right(running.verdicts(["conservative"], given, pixels=pixels))


# Scores of more, or of something else, than the tower pools


def also_reading(name: str, score: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Cosines and a score of the last block's tokens, which a hook catches."""
    model = shared(name)

    def forward(images: Tensor) -> Tensor:
        caught: list[Any] = []
        handle = others.blocks_of(model)[-1].register_forward_hook(lambda *c: caught.append(c[2]))
        scores = cosine(cases.embed(model, images))
        handle.remove()
        tokens = caught[0] if isinstance(caught[0], Tensor) else caught[0][0]
        return scores + 0.5 * score(tokens)

    return forward


READOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "hf_vit": lambda x: cosine(x[:, 1:, :24].mean(1)),
    "open_clip_vit": lambda x: cosine(x[:, 1:, :24].mean(1)),
    "eva02": lambda x: cosine(x[:, 7, :24]),
    "open_clip_vit_mean": lambda x: cosine(x[:, 0, :24]),
    "siglip": lambda x: cosine(x.mean(1)),
}


@pytest.mark.parametrize("name", READOUTS)
def test_a_score_of_more_tokens_than_the_map_reads_is_not_taken_apart(name: str) -> None:
    """If a map is given, the score depends on nothing of the last block but what the map reads."""
    given = (also_reading(name, READOUTS[name]), shared(name))
    pixels = cases.images(name).double()
    running.assert_refused(running.verdicts(TAKEN_APART, given, pixels=pixels))


def gradient_maps(name: str, forward: Any, row: oracles.Row) -> Callable[[str], Tensor]:
    pixels, prefix = cases.images(name).double().requires_grad_(), others.READ[name][1]
    with explicit.explicit_attention(len(pixels)) as attention:
        scores = forward(pixels)
    seen = oracles.Seen(scores, scores, scores, tuple(attention), (4, 4), row, prefix)
    names = {"last-grad": "LastGradAttention", "all-grad": "AllGradAttention"}
    return lambda method: oracles.maps(names[method], seen, scores)


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit", "eva02"])
def test_methods_of_gradients_explain_a_score_of_more_tokens(name: str) -> None:
    """Read at CLS wherever the score depends on it; or refused."""
    forward = also_reading(name, READOUTS[name])
    wanted = gradient_maps(name, forward, "cls")
    pixels = cases.images(name).double()
    answers = running.verdicts(GRADIENTS, (forward, shared(name)), wanted, pixels)
    running.assert_right_or_refused(answers)


@pytest.mark.parametrize("part", ["model", "tower", "trunk"])
@pytest.mark.parametrize("name", ["timm_registers", "eva02"])
def test_a_tower_that_returns_all_tokens_is_explained_by_those_that_are_read(
    name: str, part: str
) -> None:
    """A pool of one's own reads the patches and not CLS: their mean row, or a refusal."""
    model = shared(name)
    trunk, prefix = model.visual.trunk, others.READ[name][1]

    def forward(images: Tensor) -> Tensor:
        return cosine(trunk.head(model.visual(images)[:, prefix:].mean(1)))

    with placed(model, ""):
        trunk.forward = trunk.forward_features
        given = (forward, {"model": model, "tower": model.visual, "trunk": trunk}[part])
        pixels, wanted = cases.images(name).double(), gradient_maps(name, forward, "mean")
        running.assert_right_or_refused(running.verdicts(GRADIENTS, given, wanted, pixels))
        taken = ["direct", "legrad", "patches"]
        running.assert_refused(running.verdicts(taken, given, pixels=pixels))


def test_grad_eclip_of_a_pool_of_ones_own_reads_the_rows_that_are_pooled() -> None:
    """The mean of the patches' gradients and queries where CLS has none, or a refusal."""
    small = running.double()
    model: Any = small.model

    def score(_: Tensor, hidden: Tensor) -> Tensor:
        pooled = model.vision_model.post_layernorm(hidden[:, 1:].mean(1))
        return F.normalize(model.visual_projection(pooled), dim=-1) @ running.rows().T

    def forward(images: Tensor) -> Tensor:
        return score(images, model.vision_model(images).last_hidden_state)

    plain = Plain(model, running.images(), score=score, row="mean")
    given = (forward, model)
    running.assert_right_or_refused(running.verdicts(["grad-eclip", *GRADIENTS], given, plain))
    running.assert_refused(running.verdicts(TAKEN_APART, given))


# What is not the same twice


class Counting(nn.Module):
    """A module that changes with every call, unless it is held."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls, self.held = inner, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        noise = torch.Generator().manual_seed(self.held or self.calls)
        return self.inner(x) + torch.randn(x.shape[1:], generator=noise, dtype=x.dtype)


@pytest.mark.parametrize("reads", ["all tokens", "the embedding"])
@pytest.mark.parametrize("method", [*FEW, "conservative", "grad-eclip", "legrad", "patches"])
def test_a_map_is_of_one_forward_and_no_other(method: str, reads: str) -> None:
    """Map and score are those of the same draw of noise, whichever it is."""
    small = running.double()
    model: Any = small.model
    block = running.layers_of(model)[1]
    block.mlp = counting = Counting(block.mlp)

    def forward(images: Tensor) -> Tensor:
        out = model.vision_model(images)
        pooled = out.last_hidden_state.mean(1) if reads == "all tokens" else out.pooler_output
        return F.normalize(model.visual_projection(pooled), dim=-1) @ running.rows().T

    try:
        found = running.explained(method, (forward, model), running.images())
    except CaptumClipError:
        return
    same = []
    for number in range(1, counting.calls + 1):
        counting.held = number
        draw = running.explained(method, (forward, model), running.images())
        same.append(all(map(torch.allclose, found, draw)))
    assert any(same)


# Exceptions of others


AROUND: dict[str, Callable[[], Any]] = {
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "flops": lambda: FlopCounterMode(display=False),
    "saved tensors": lambda: torch.autograd.graph.save_on_cpu(),
    "mutation": lambda: torch.autograd.graph.allow_mutation_on_saved_tensors(),
}


@pytest.mark.parametrize(
    ("name", "around"), [*(("hf_vit", around) for around in AROUND), ("siglip", "saved tensors")]
)
def test_what_watches_a_call_does_not_change_it(name: str, around: str) -> None:
    """A counter of operations keeps the map, or is refused by a sentence."""
    answers = running.of_unchanged(name, MOST, lambda model: None, around=AROUND[around])
    running.assert_right_or_refused(answers)


Pair = namedtuple("Pair", "hidden weights")


@dataclasses.dataclass
class Output:
    hidden: Tensor
    weights: Any

    def __iter__(self) -> Iterator[Any]:
        yield from (self.hidden, self.weights)


class Returning(nn.Module):
    """A module that returns an object of another class."""

    def __init__(self, inner: nn.Module, kind: Any) -> None:
        super().__init__()
        self.inner, self.kind = inner, kind

    def forward(self, *args: Any, **options: Any) -> Any:
        return self.kind(*self.inner(*args, **options))


def returning(kind: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for block in others.blocks_of(model):
            block.self_attn = Returning(block.self_attn, kind)

    return change


def own_output(model: Any) -> None:
    own = model.vision_model.forward

    def forward(*args: Any, **options: Any) -> Any:
        return SimpleNamespace(**own(*args, **options))

    model.vision_model.forward = forward


def perceptron(width: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width)
    return nn.Sequential(*layers).double().eval()


def exchanged(made: Callable[[nn.Module], Any], path: str = f"{LAST}.mlp") -> Any:
    def change(model: Any) -> None:
        owner, _, name = path.rpartition(".")
        width = model.vision_model.post_layernorm.normalized_shape[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            setattr(model.get_submodule(owner), name, made(perceptron(width)))

    return change


def traced(module: nn.Module) -> Any:
    return torch.jit.trace(module, torch.zeros(1, 17, 32, dtype=torch.float64))


def exported(module: nn.Module) -> Any:
    sizes = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
    example = (torch.zeros(3, 17, 32, dtype=torch.float64),)
    return torch.export.export(module, example, dynamic_shapes=sizes).module()


STRANGE: dict[str, tuple[str, Callable[[Any], None]]] = {
    "attentions that return a NamedTuple": ("hf_vit", returning(Pair)),
    "attentions that return a dataclass": ("hf_vit", returning(Output)),
    "a tower that returns an object": ("hf_vit", own_output),
    "another MLP of the pool": ("siglip", exchanged(lambda m: m, "vision_model.head.mlp")),
    "a scripted MLP": ("hf_vit", exchanged(torch.jit.script)),
    "a traced MLP": ("hf_vit", exchanged(traced)),
    "an exported MLP": ("hf_vit", exchanged(exported)),
}


@pytest.mark.parametrize(
    ("strange", "given"),
    [*((strange, "similarity") for strange in STRANGE), ("a traced MLP", "callable")],
)
def test_strange_modules_are_explained_or_refused_in_a_sentence(strange: str, given: str) -> None:
    name, change = STRANGE[strange]
    model = shared(name)
    # the gates of a graph are of aten, which the other implementation does not see
    unknown = {"conservative"} if strange == "an exported MLP" else set()
    with placed(model, ""):
        change(model)
        methods = [method for method in MOST if method not in unknown]
        answers = running.of_shared(name, methods, given_as(given, name))
        running.assert_right_or_refused(answers)


STOPPED = [*GRADIENTS, "conservative", "grad-eclip", "legrad"]


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("vision_model.encoder.layers.1", "similarity"),
        (LAST, "callable"),
        (f"{LAST}.mlp", "similarity"),
    ],
)
def test_a_part_under_inference_mode_has_the_same_map_or_a_sentence(path: str, given: str) -> None:
    """It changes no value; what leads through it has no gradient, and may be taken for constant."""

    def change(model: Any) -> None:
        module = model.get_submodule(path)
        module.forward = torch.inference_mode()(module.forward)

    answers = running.of_unchanged("hf_vit", MOST, change, given_as(given, "hf_vit"), stops=STOPPED)
    running.assert_right_or_refused(answers)


# What changes nothing


LOOKED_AT = ("self_attn", "mlp", "layer_norm1", "layer_norm2")


def backward_hooks(model: Any) -> None:
    for block in others.blocks_of(model):
        for module in (block, *(getattr(block, name) for name in LOOKED_AT)):
            module.register_full_backward_hook(lambda *_: None)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # where a graph begins
@pytest.mark.parametrize("name", ["hf_vit", "siglip"])
def test_hooks_that_only_look_at_gradients_change_no_map(name: str) -> None:
    running.assert_right(running.of_unchanged(name, MOST, backward_hooks))


@pytest.mark.parametrize("index", [0, 2])
def test_a_checkpointed_block_has_the_same_map_or_a_sentence(index: int) -> None:
    def change(model: Any) -> None:
        layers = running.layers_of(model)
        layers[index] = checkpoint_wrapper(layers[index])

    running.assert_right_or_refused(running.of_unchanged("hf_vit", MOST, change))


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit"])
def test_a_model_within_a_sequential_is_found_as_the_layer(name: str) -> None:
    model = shared(name)
    wrapped = nn.Sequential(model)
    given = (lambda images: cosine(cases.embed(wrapped[0], images)), wrapped)
    running.assert_right(running.of_shared(name, FEW, given))


def test_a_sequential_that_begins_with_the_tower_is_its_own_layer() -> None:
    head = torch.nn.Linear(24, 4, bias=False).double()
    head.weight.data.copy_(cases.embeddings())
    given = nn.Sequential(shared("open_clip_vit").visual, nn.Identity(), head).eval()
    pixels = cases.images("open_clip_vit").double()
    running.assert_right(running.verdicts(FEW, (given, given), pixels=pixels))


def test_a_model_that_accelerate_offloads_is_refused_in_a_sentence() -> None:
    """As `accelerate.cpu_offload` leaves a module: its weights on no device, and a hook of its."""
    small = running.double()
    part: Any = small.model.vision_model.encoder.layers[0].mlp.fc1
    part.to("meta")._hf_hook = object()
    with pytest.raises(UnsupportedModelError, match="accelerate's cpu_offload"):
        small.load()
