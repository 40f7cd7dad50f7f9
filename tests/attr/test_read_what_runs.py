"""A map is read from what runs, whatever its name, its class or its owner: right, or refused."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import Mock, patch

import open_clip.transformer
import pytest
import torch
from open_clip import CLIP
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, activations
from transformers.integrations import sdpa_attention
from transformers.models.clip import modeling_clip

from captum_clip import DirectContribution, TextSimilarity, attr, load_clip, targets
from captum_clip.errors import CaptumClipError
from tests import builders
from tests.attr import cases, hooked, running
from tests.attr.changes import changed, half, placed
from tests.attr.running import FEW, GRADIENTS, MOST, TAKEN_APART, Plain, shared

Context = AbstractContextManager[object]


# An adapter of one's own


SCALE = torch.linspace(0.5, 2, 24, dtype=torch.float64)
POSTS: dict[str, Callable[[Tensor], Tensor]] = {
    "centered": lambda e: e - torch.linspace(-1, 1, 24, dtype=e.dtype),
    "scaled": lambda e: SCALE * e,
    "turned": lambda e: e.flip(-1),
}


def adapted(clip: Any, part: str, post: Callable[[Tensor], Tensor], way: str) -> Any:
    """An adapter whose features are more than the library's."""
    own = getattr(clip, part)
    if way == "instance":
        setattr(clip, part, lambda *args: post(own(*args)))
        return clip

    def features(self: Any, *args: Any) -> Tensor:
        return post(getattr(super(kind, self), part)(*args))

    kind: Any = type("OwnAdapter", (type(clip),), {part: features})
    parts = {"processor": clip.processor, "tokenizer": clip.tokenizer}
    return kind(clip.model, clip.tower, name="own", **parts)


@pytest.mark.parametrize("way", ["instance", "subclass"])
@pytest.mark.parametrize("post", POSTS)
def test_an_adapter_of_ones_own_is_explained_with_what_it_adds(post: str, way: str) -> None:
    small = running.double()
    similarity = running.similarity_of(adapted(small.load(), "image_features", POSTS[post], way))
    plain = Plain(small.model, running.images(), post=POSTS[post])
    torch.testing.assert_close(similarity(running.images()), plain.scores)
    methods = [*FEW, "grad-eclip"]
    running.assert_right_or_refused(running.verdicts(methods, similarity, plain))
    # of the others the score at least
    running.assert_right_or_refused(running.verdicts(TAKEN_APART, similarity))


@pytest.mark.parametrize("way", ["instance", "subclass"])
def test_a_text_adapter_of_ones_own_is_explained_with_what_it_adds(way: str) -> None:
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
    similarity = TextSimilarity(adapted(clip, "text_features", post, way), target)
    answers = running.verdicts(
        ["direct"],
        similarity,
        lambda method: maps,
        ids,
        scores=similarity(ids, mask),
        additional_forward_args=mask,
    )
    running.assert_right_or_refused(answers)


# Mocks, partial functions, proxies


class Proxy:
    """A namespace in the place of another, which it passes on but for some names."""

    def __init__(self, of: Any, **own: Any) -> None:
        self.__dict__.update(own, _of=of)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


def halving(function: Any) -> Any:
    return lambda *args, **options: changed(function(*args, **options), half)


def of_less(attend: Any) -> Any:
    return lambda q, k, v, *args, **options: attend(0.5 * q, k, v, *args, **options)


def mocked(owner: Any, name: str, wrap: Callable[[Any], Any] = halving) -> Context:
    return patch.object(owner, name, Mock(side_effect=wrap(getattr(owner, name))))


def mocked_plain(owner: Any, name: str) -> Context:
    """A mock is no method, so it gets no `self`."""
    return patch.object(owner, name, Mock(side_effect=lambda x: x * torch.sigmoid(x)))


def partial_in(owner: Any, name: str, wrap: Callable[[Any], Any] = halving) -> Context:
    own = getattr(owner, name)
    return patch.object(owner, name, functools.partial(lambda f, *a, **k: wrap(f)(*a, **k), own))


def mocked_class(owner: Any, name: str, wrap: Callable[[Any], Any] = halving) -> Context:
    return patch.object(owner, name, autospec=True, side_effect=wrap(getattr(owner, name)))


def turning(function: Any) -> Any:
    """The embedding the other way round, wherever a function returns it."""

    def call(*args: Any, **options: Any) -> Any:
        out = function(*args, **options)
        if isinstance(out, Tensor):
            return out.flip(-1)
        out.pooler_output = out.pooler_output.flip(-1)
        return out

    return call


def late_attend(*args: Any, **options: Any) -> Tensor:
    """The oracle exchanges the function of torch."""
    return of_less(F.scaled_dot_product_attention)(*args, **options)


def less_attention() -> Any:
    functional = Proxy(torch.nn.functional, scaled_dot_product_attention=late_attend)
    return Proxy(torch, nn=Proxy(torch.nn, functional=functional))


def less_in_the_last(model: Any) -> Any:
    """An attention of all layers that is another in the last one."""
    last, own = model.get_submodule(f"{HF}.self_attn"), AttentionInterface._global_mapping["sdpa"]
    return Mock(
        side_effect=lambda module, q, *args, **more: own(
            module, 0.5 * q if module is last else q, *args, **more
        )
    )


def in_registry(model: Any) -> Any:
    return patch.dict(AttentionInterface._global_mapping, {"sdpa": less_in_the_last(model)})


def registry(model: Any) -> Any:
    own = Proxy(AttentionInterface(), get_interface=lambda *_: less_in_the_last(model))
    return patch.object(modeling_clip, "ALL_ATTENTION_FUNCTIONS", own)


HF, HF_MLP = "vision_model.encoder.layers.2", "vision_model.encoder.layers.2.mlp"
OPEN, OPEN_MLP = "visual.transformer.resblocks.2", "visual.transformer.resblocks.2.mlp"
HALF_TORCH = Proxy(torch, sigmoid=halving(torch.sigmoid))
HALF_F = Proxy(F, layer_norm=lambda *args: 0.5 * F.layer_norm(*args))


def at(path: str, way: Callable[..., Context], name: str = "forward", *more: Any) -> Any:
    """The method of a module."""
    return lambda model: way(model.get_submodule(path), name, *more)


def of(owner: Any, way: Callable[..., Context], name: str, *more: Any) -> Any:
    """A name of a library's class or file."""
    return lambda model: way(owner, name, *more)


REPLACED: dict[str, tuple[str, Callable[[Any], Context]]] = {
    "mock of a forward": ("hf_vit", at(HF_MLP, mocked)),
    "mock of an attention": ("hf_vit", at(f"{HF}.self_attn", mocked)),
    "mock of a norm": ("hf_vit", at("vision_model.post_layernorm", mocked)),
    "mock of a class": ("hf_vit", of(modeling_clip.CLIPMLP, mocked_class, "forward")),
    "mock that passes all on": ("hf_vit", at("vision_model", mocked, "forward", lambda f: f)),
    "mock of a function": ("open_clip_vit", of(open_clip.transformer, mocked, "_expand_token")),
    "mock of a pool": ("open_clip_vit", at("visual", mocked, "_global_pool")),
    "mock of the features": ("hf_vit", at("", mocked, "get_image_features", turning)),
    "mock of a tower's class": (
        "hf_vit",
        lambda m: mocked_class(type(m.vision_model), "forward", turning),
    ),
    "mock of a model's class": ("open_clip_vit", of(CLIP, mocked_class, "encode_image", turning)),
    "mock without self": ("hf_vit", of(activations.QuickGELUActivation, mocked_plain, "forward")),
    "mock in a registry": ("hf_vit", in_registry),
    "proxy of a registry": ("hf_vit", registry),
    "partial of the features": ("open_clip_vit", at("", partial_in, "encode_image", turning)),
    "partial of a block": ("hf_vit", at(HF, partial_in)),
    "partial of a branch": ("open_clip_vit", at(OPEN_MLP, partial_in)),
    "partial of a method": ("open_clip_vit", at(OPEN, partial_in, "attention")),
    "proxy of torch": ("hf_vit", of(activations, patch.object, "torch", HALF_TORCH)),
    "proxy of functional": ("open_clip_vit", of(open_clip.transformer, patch.object, "F", HALF_F)),
    "proxy of the kernel": ("hf_vit", of(sdpa_attention, patch.object, "torch", less_attention())),
}


@pytest.mark.parametrize("replaced", REPLACED)
def test_what_stands_in_a_functions_place_is_explained_as_it_computes(replaced: str) -> None:
    name, change = REPLACED[replaced]
    with placed(shared(name), ""), change(shared(name)):
        running.assert_right_or_refused(running.of_shared(name, [*FEW, "conservative"]))


# Modules of the last block that read other tokens


class Mixing(nn.Module):
    """An activation that reads the token axis."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mix, self.inner = mix, nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.inner(x))


def convolved() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Conv1d(17, 17, 1).double()


MIXING: dict[str, Callable[[], nn.Module]] = {
    "the mean subtracted": lambda: Mixing(lambda x: x - x.mean(1, keepdim=True)),
    "the largest subtracted": lambda: Mixing(lambda x: x - x.amax(1, keepdim=True)),
    "a norm over tokens": lambda: Mixing(lambda x: F.layer_norm(x.mT, x.shape[1:2], eps=1e-5).mT),
    "GroupNorm": lambda: nn.Sequential(nn.GELU(), nn.GroupNorm(1, 17).double()),
    "Conv1d": convolved,
    "Softmax": lambda: nn.Softmax(dim=1),
    "LocalResponseNorm": lambda: nn.LocalResponseNorm(5, alpha=3.0),
    "PReLU": lambda: nn.PReLU(17).double(),
}


@pytest.mark.parametrize("mixing", MIXING)
def test_a_last_block_that_reads_other_tokens_is_explained_so_or_refused(mixing: str) -> None:
    """The score reads patches of the last attention too; the map's row stays that of CLS.

    PReLU reads none, and its slopes are of tokens: so it may well be right.
    """
    small = running.double()
    running.layers_of(small.model)[-1].mlp.activation_fn = MIXING[mixing]()
    plain = Plain(small.model, running.images())
    similarity = running.similarity_of(small.load())
    running.assert_right_or_refused(running.verdicts([*FEW, "grad-eclip"], similarity, plain))


@pytest.mark.parametrize("mixing", [name for name in MIXING if name != "Softmax"])
def test_a_last_block_of_open_clip_that_reads_other_tokens_is_explained_so(mixing: str) -> None:
    """Or refused; a softmax would be taken for an attention by the oracle."""
    model = shared("open_clip_vit")
    with placed(model, ""):
        model.get_submodule(OPEN_MLP).gelu = MIXING[mixing]()
        methods = [*FEW, "grad-eclip", "legrad"]
        running.assert_right_or_refused(running.of_shared("open_clip_vit", methods))


# Forks under their library's own name


def forked(kind: type, name: str, source: str) -> Any:
    """A class of a library with another method, which nothing tells from the library's own file."""
    home: Any = sys.modules[kind.__module__]
    space = {**vars(home), **SPACE, "OWN": getattr(kind, name)}
    code = f"def {name}(self, *args, **options): return {source}"
    exec(compile(code, home.__file__, "exec"), space)
    space[name].__qualname__ = f"{kind.__qualname__}.{name}"
    made = {name: space[name], "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), made)


def sharper(attention: Any) -> Any:
    other = copy.copy(attention)
    other.scale = 2 * attention.scale
    return other


def between(encoder: Any, x: Tensor) -> Tensor:
    for index, block in enumerate(encoder.resblocks):
        x = block(1.5 * x if index == 2 else x)
    return x


OWN = "OWN(self, *args, **options)"
MEAN = "self.post_layernorm(out.last_hidden_state.mean(1))"
POOLED = f"[setattr(out := {OWN}, 'pooler_output', {MEAN}), out][1]"
SPACE = {"sharper": sharper, "between": between}
FORKS: dict[str, tuple[str, str, str, str]] = {
    "an MLP": ("hf_vit", HF_MLP, "forward", f"0.5 * {OWN}"),
    "an attention": ("hf_vit", f"{HF}.self_attn", "forward", OWN.replace("self", "sharper(self)")),
    "a block": ("hf_vit", HF, "forward", f"{OWN} + 0.5 * args[0]"),
    "a tower": ("hf_vit", "vision_model", "forward", POOLED),
    "a norm": ("hf_vit", "vision_model.post_layernorm", "forward", "0.3 * args[0]"),
    "a block of open_clip": ("open_clip_vit", OPEN, "forward", f"2 * {OWN} - args[0]"),
    "an encoder of open_clip": (
        "open_clip_vit",
        "visual.transformer",
        "forward",
        "between(self, args[0])",
    ),
    "a tower of open_clip": (
        "open_clip_vit",
        "visual",
        "_pool",
        "(lambda pooled, tokens: (pooled + tokens.mean(1), tokens))(*OWN(self, *args))",
    ),
}


@pytest.mark.parametrize("fork", FORKS)
def test_a_fork_under_its_librarys_name_is_explained_as_it_computes(fork: str) -> None:
    name, path, method, source = FORKS[fork]
    model = shared(name)
    with placed(model, ""):
        module = model.get_submodule(path)
        module.__class__ = forked(type(module), method, source)
        assert type(module).__module__.partition(".")[0] in ("transformers", "open_clip", "torch")
        # where CLS is not all that is pooled there is no share of its row alone
        pools = fork.startswith("a tower")
        methods = [*GRADIENTS, "rollout"] if pools else [*FEW, "grad-eclip", "legrad", "patches"]
        running.assert_right_or_refused(running.of_shared(name, methods))
        if pools:
            running.assert_refused(running.of_shared(name, ["direct", "legrad", "patches"]))


# The end token, and numbers that are read when a model is made


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


@pytest.mark.parametrize("part", ["configuration", "module", "legacy"])
def test_the_token_that_a_text_tower_reads_is_the_one_that_is_explained(part: str) -> None:
    """The library keeps the number of the end token when it makes the module.

    A token of the text stands for the end here, so that another position would be read; 2 says
    that the largest number is the end.
    """
    small = running.double()
    tower, letter = small.model.text_model, int(small.tokenizer("a")["input_ids"][1])
    wanted = text_maps(small.model, small)
    number = 2 if part == "legacy" else letter
    if part != "module":
        small.model.config.text_config.eos_token_id = tower.config.eos_token_id = number
    if part == "module":
        tower.eos_token_id = number
        fresh = running.double()
        fresh.model.text_model.eos_token_id = number
        fresh.model.text_model.config.eos_token_id = number
        wanted = text_maps(fresh.model, fresh)
    found = text_maps(small.model, small)
    torch.testing.assert_close(found.pop("scores"), wanted.pop("scores"))
    for method, maps in found.items():
        if maps is not None:
            torch.testing.assert_close(maps, wanted[method], msg=method)
    assert found["last-grad"] is not None


# Compiled by somebody's own backend


def doubling(module: Any, _: Any) -> Any:
    return lambda *args: tuple(2 * x if x.is_floating_point() else x for x in module(*args))


@pytest.mark.parametrize("path", [HF_MLP])  # of torch's own modules dynamo compiles nothing
def test_a_part_that_a_backend_compiled_is_explained_as_it_computes(path: str) -> None:
    """A backend need not keep the numbers; the same change as a hook is what is wanted."""
    model = shared("hf_vit")
    with placed(model, ""):
        model.get_submodule(path).register_forward_hook(lambda m, a, out: 2 * out)
        wanted = {method: hooked.wanted("hf_vit", method) for method in MOST}
    with placed(model, ""):
        model.get_submodule(path).compile(backend=doubling)
        similarity, pixels = cases.similarity("hf_vit", torch.float64), cases.images("hf_vit")
        answers = running.verdicts(MOST, similarity, wanted.get, pixels.double())
        running.assert_right_or_refused(answers)
    torch._dynamo.reset()


@pytest.mark.parametrize("given", ["similarity", "callable"])
def test_a_compiled_model_has_the_score_of_the_users_own_forward(given: str) -> None:
    """Either what the backend makes of it, or a refusal; not what the plain model would score."""
    small = running.double()

    def shifting(module: Any, _: Any) -> Any:
        return lambda *args: tuple(x + 0.5 if x.is_floating_point() else x for x in module(*args))

    compiled: Any = torch.compile(small.model.vision_model, backend=shifting)
    small.model.vision_model = compiled

    def forward(images: Tensor) -> Tensor:
        embedding = small.model.visual_projection(compiled(images).pooler_output)
        return F.normalize(embedding, dim=-1) @ running.rows().T

    if given == "callable":
        answers = running.verdicts(FEW, (forward, small.model))
    else:
        with torch.no_grad():
            scores = forward(running.images())
        try:
            clip = small.load()
        except CaptumClipError:
            return
        answers = running.verdicts(FEW, running.similarity_of(clip), scores=scores)
    running.assert_right_or_refused(answers)
    torch._dynamo.reset()
