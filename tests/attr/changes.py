"""What people do to CLIPs, each named after who does it: made at a small model, and undone."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from captum_clip import ClipSimilarity
from tests.attr import cases, plain
from tests.attr import test_others_methods as others
from tests.attr.plain import READS, Forward

VITS = READS[:3]
TRANSFORMERS = ("hf_vit", "siglip")  # whose attention is called by its name
SIDE, COUNT = 4, 16
METHODS = (*plain.OF_ATTENTIONS, *plain.OF_COSINES, "grad-cam")
OF_PATCHES = ("conservative",)
"""The gradient at the patches themselves goes through whatever moves tokens later."""
Move = Callable[[Tensor], Tensor]


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass
class Site:
    """A small model, with what undoes a change of anything but its modules."""

    name: str
    model: Any
    stack: ExitStack

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        return others.READ[self.name][1]

    @property
    def width(self) -> int:
        """Channels of a token."""
        return int(self.norms[0].weight.shape[0])

    @property
    def tower(self) -> Any:
        """The vision tower."""
        return getattr(self.model, "visual", None) or self.model.vision_model

    @property
    def blocks(self) -> Any:
        """The blocks, or stages of a ResNet."""
        if self.name == "open_clip_resnet":
            return [getattr(self.tower, f"layer{index}") for index in range(1, 5)]
        return others.blocks_of(self.model)

    @property
    def attentions(self) -> list[Any]:
        """Those of the blocks."""
        return [getattr(block, "attn", None) or block.self_attn for block in self.blocks]

    @property
    def norms(self) -> list[Any]:
        """The norms before the attentions."""
        return [getattr(block, "ln_1", None) or block.layer_norm1 for block in self.blocks]

    @property
    def maps(self) -> list[str]:
        """The paths of linear maps that people adapt, such as those of queries and values."""
        kinds = (nn.Conv2d,) if self.name == "open_clip_resnet" else (nn.Linear,)
        kept = "layer3" if self.name == "open_clip_resnet" else ".1."
        ends = ("q_proj", "v_proj", "fc1", "c_fc", "c_proj", "conv2")
        return [
            path
            for path, module in self.model.named_modules()
            if isinstance(module, kinds) and kept in path and path.endswith(ends)
            if not path.startswith(("text_model", "transformer"))
        ]

    def put(self, path: str, module: nn.Module) -> None:
        """Put another module there."""
        owner, _, name = path.rpartition(".")
        setattr(self.model.get_submodule(owner), name, module)


@contextmanager
def site_of(name: str) -> Iterator[Site]:
    """A shared model, of which every module has its class, attributes and hooks again after it."""
    model = plain.model_of(name)
    flags = {p: p.requires_grad for p in model.parameters()}
    before = [(m, m.__class__, dict(vars(m)), _contents(m)) for m in model.modules()]
    try:
        with ExitStack() as stack:
            yield Site(name, model, stack)
    finally:
        for module, kind, attributes, contents in before:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(attributes)
            for held, content in contents:  # handles of hooks know these very dicts
                held.clear()
                held.update(content)
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def _contents(module: nn.Module) -> list[tuple[dict[Any, Any], dict[Any, Any]]]:
    return [(held, dict(held)) for held in vars(module).values() if isinstance(held, dict)]


Make = Callable[[Site], object]
Scores = Callable[[Site, ClipSimilarity], Forward]


class Change(NamedTuple):
    """Something that somebody does.

    Attributes:
        make: it makes the change.
        towers: those that it can be made on.
        right: what the map has to be: "computed" by the oracle of the changed model, that of the
            "plain" model, or "none", so that it must be refused.
        of_patches: what of the methods that look at the patches alone.
        refused: the methods that may refuse; all others explain it.
        scores: makes a forward function of one's own.
        factor: what that multiplies the cosines with, beside a constant.
        moved: what was done to the images, and what undoes it in maps, where `scores` moves them.
        between: it is made between two calls of one object.
        tolerance: of maps and scores, relative.
    """

    make: Make = lambda site: None
    towers: Sequence[str] = READS
    right: str = "computed"
    of_patches: str | None = None
    refused: Sequence[str] = ()
    scores: Scores | None = None
    factor: float | None = None
    moved: Move | None = None
    between: bool = False
    tolerance: float = 1e-6


def changed(given: Any, change: Move) -> Any:
    """The first tensor of what a module takes or returns, changed."""
    if isinstance(given, Tensor):
        return change(given)
    if isinstance(given, tuple):
        return (changed(given[0], change), *given[1:])
    name = next(n for n, v in given.items() if isinstance(v, Tensor))
    new = {**given, name: changed(given[name], change)}
    return new if type(given) is dict else type(given)(**new)


def after(module: nn.Module, change: Move) -> None:
    """A forward hook that edits."""
    module.register_forward_hook(lambda _, args, out: changed(out, change))


def before(module: nn.Module, change: Move) -> None:
    """A hook that edits what enters."""

    def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return (changed(args, change), kwargs) if args else (args, changed(kwargs, change))

    module.register_forward_pre_hook(hook, with_kwargs=True)


# Weights beside weights


class Lora(nn.Module):
    """A linear map with two small ones beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a = nn.Linear(base.in_features, 2, bias=False).to(base.weight)
            self.b = nn.Linear(2, base.out_features, bias=False).to(base.weight)

    def forward(self, x: Tensor) -> Tensor:
        """W x + b + B A x."""
        out: Tensor = self.base(x) + self.b(self.a(x))
        return out


def with_lora(site: Site) -> None:
    """In one's own words, on the maps of a block."""
    for path in site.maps:
        site.put(path, Lora(site.model.get_submodule(path)))


def with_peft(site: Site, *, merged: bool = False, kind: str = "LoraConfig") -> None:
    """An adapter of peft, injected into the model."""
    import peft

    paths = site.maps[-1:] if kind == "IA3Config" else site.maps
    options: dict[str, Any] = {"r": 2, "init_lora_weights": False}
    if kind == "IA3Config":
        options = {"feedforward_modules": [], "init_ia3_weights": False}
    config = getattr(peft, kind)(target_modules=paths, **options)
    # a copy, since peft hangs its adapters onto the modules that are there
    weights = [site.model.get_submodule(path) for path in paths]
    for path, own in zip(paths, weights, strict=True):
        site.put(path, copy.deepcopy(own))
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        peft.inject_adapter_in_model(config, site.model)
    for path in paths:
        layer = site.model.get_submodule(path).double()
        if kind == "IA3Config":
            layer.ia3_l["default"].data.uniform_(0.5, 1.5)
        if merged:
            layer.merge()


class Beside(nn.Module):
    """A bottleneck in parallel to a module, or behind it."""

    def __init__(self, inner: nn.Module, width: int, *, behind: bool = False) -> None:
        super().__init__()
        self.inner, self.behind, self.gelu = inner, behind, nn.GELU()
        self.down = nn.Parameter(noise(width, 4, seed=1) / 5)
        self.up = nn.Parameter(noise(4, width, seed=2) / 5)

    def forward(self, x: Tensor) -> Tensor:
        """What both make of it."""
        out = self.inner(x)
        source = out if self.behind else x
        added: Tensor = out + self.gelu(source @ self.down) @ self.up
        return added


def with_bottleneck(site: Site, *, behind: bool) -> None:
    """AdaptFormer beside the MLPs, Houlsby behind them."""
    for block in site.blocks:
        block.mlp = Beside(block.mlp, site.width, behind=behind)


def with_clip_adapter(site: Site) -> None:
    """CLIP-Adapter: an MLP on the embedding, mixed with it."""
    ends = {"hf_vit": "visual_projection", "siglip": "vision_model.head"}
    path = ends.get(site.name, "visual")
    # a module of the model's own, since the oracle holds the gates of those
    site.model.adapter = Beside(nn.Identity(), 24)
    after(site.model.get_submodule(path), lambda e: site.model.adapter(e))


def with_norms_tuned(site: Site) -> None:
    """LayerNorms and biases alone, as BitFit has it, assigned as a state that was loaded."""
    for module in site.tower.modules():
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            for name, value in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(1.1 * value.detach() + 0.05))


def with_other_weights(site: Site) -> None:
    """WiSE-FT or an average of weights: every weight is another one, in new parameters."""
    state = site.model.state_dict()
    mixed = {
        name: 0.9 * value + 0.1 * value.flip(0) if value.ndim > 1 else value
        for name, value in state.items()
    }
    site.model.load_state_dict(mixed, assign=True)
    site.model.requires_grad_(True)


def with_weight_norm(site: Site) -> None:
    """weight_norm of torch."""
    for path in site.maps:
        module = copy.deepcopy(site.model.get_submodule(path))
        site.put(path, parametrizations.weight_norm(module))


def with_pruned(site: Site) -> None:
    """A third of the rows of some maps is zero."""
    for path in site.maps:
        module = copy.deepcopy(site.model.get_submodule(path))
        site.put(path, prune.ln_structured(module, "weight", 0.3, n=2, dim=0))


class Int8(nn.Module):
    """A linear map that keeps whole numbers and a scale for each row."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        weight = base.weight.detach()
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("whole", (weight / scale).round().to(torch.int8))
        self.bias = base.bias
        self.in_features, self.out_features = base.in_features, base.out_features

    def forward(self, x: Tensor) -> Tensor:
        """As bitsandbytes and torchao have it where nothing is fused."""
        weight: Any = self.whole.to(x.dtype) * self.scale  # type: ignore[operator]
        return F.linear(x, weight, self.bias)


def in_int8(site: Site) -> None:
    """All linear maps of the MLPs."""
    for path, module in list(site.tower.named_modules()):
        if type(module) is nn.Linear and path.endswith(("fc1", "fc2", "c_fc", "c_proj")):
            owner, _, name = path.rpartition(".")
            setattr(site.tower.get_submodule(owner), name, Int8(module))


class NormInFloat32(nn.LayerNorm):
    """As OpenAI's code has it, for towers of half precision."""

    def forward(self, x: Tensor) -> Tensor:
        """The norm in single precision, in the type that came."""
        weight, bias = self.weight.float(), self.bias.float()
        out = F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)
        return out.to(x.dtype)


def norms_in_float32(site: Site) -> None:
    """Every LayerNorm of the tower."""
    for module in site.tower.modules():
        if isinstance(module, nn.LayerNorm):
            module.__class__ = NormInFloat32


# Prompts, registers, merged tokens


def of_patches(site: Site, move: Move) -> Move:
    """A change of the patches (B, N, D) among tokens."""
    first = site.prefix
    return lambda x: torch.cat([x[:, :first], move(x[:, first:])], 1)


def prompted(site: Site, *, deep: bool = False, behind: bool = False) -> None:
    """VPT between CLS and the patches, MaPLe behind them: in the first block, or in each anew."""
    first = site.prefix

    def insert(index: int, x: Tensor) -> Tensor:
        own = noise(2, site.width, seed=index + 3).expand(len(x), -1, -1)
        if index:
            x = x[:, :-2] if behind else torch.cat([x[:, :first], x[:, first + 2 :]], 1)
        return torch.cat([x, own] if behind else [x[:, :first], own, x[:, first:]], 1)

    for index, block in enumerate(site.blocks if deep else site.blocks[:1]):
        before(block, partial(insert, index))


def with_register(site: Site) -> None:
    """A zero token behind the patches, as registers at test time have it."""
    before(site.blocks[0], lambda x: F.pad(x, (0, 0, 0, 1)))
    if site.name != "hf_vit":  # whose pool would read it
        after(site.blocks[-1], lambda x: x[:, :-1])


def between_branches(block: Any, change: Move) -> None:
    """A change after the attention and before the MLP, where ToMe has it."""
    if hasattr(block, "ln_1"):

        def forward(q_x: Tensor, *_: Any, **__: Any) -> Tensor:
            x = change(q_x + block.ls_1(block.attention(q_x=block.ln_1(q_x))))
            out: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
            return out
    else:

        def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:  # type: ignore[misc]
            normed = block.layer_norm1(hidden_states)
            attended, _ = block.self_attn(hidden_states=normed, attention_mask=None)
            x = change(hidden_states + attended)
            out: Tensor = x + block.mlp(block.layer_norm2(x))
            return out

    block.forward = forward


def alike(patches: Tensor) -> Tensor:
    """(B, N), which two patches of an image are most alike."""
    unit = F.normalize(patches.detach(), dim=-1)
    pairs = (unit @ unit.mT).masked_fill(torch.eye(patches.shape[1]).bool(), -2)
    most = pairs.flatten(1).argmax(1)
    index = torch.stack([most // patches.shape[1], most % patches.shape[1]], 1)
    return F.one_hot(index, patches.shape[1]).sum(1)


def merged(patches: Tensor) -> Tensor:
    """ToMe: the two that are most alike become their mean, at the end."""
    pair = alike(patches).to(patches)[..., None]
    order = pair[..., 0].argsort(dim=1, stable=True)[:, : patches.shape[1] - 2]
    kept = torch.take_along_dim(patches, order[..., None], 1)
    return torch.cat([kept, (patches * pair).sum(1, keepdim=True) / 2], 1)


def unmerged(patches: Tensor) -> Tensor:
    """ToMe for dense tasks: the two that are most alike are both their mean."""
    pair = alike(patches).to(patches)[..., None]
    return patches * (1 - pair) + pair * (patches * pair).sum(1, keepdim=True) / 2


def dropped(patches: Tensor) -> Tensor:
    """EViT or DynamicViT: the longest three quarters are kept, in the order of their lengths."""
    order = patches.detach().norm(dim=-1).argsort(dim=1, descending=True)[:, : 3 * COUNT // 4]
    return torch.take_along_dim(patches, order[..., None], 1)


def moving(site: Site, move: Move) -> None:
    """Tokens that change in the second block."""
    between_branches(site.blocks[1], of_patches(site, move))


class Convolved(nn.Module):
    """A convolution over the patches beside a module that works token by token."""

    def __init__(self, inner: nn.Module, prefix: int, width: int) -> None:
        super().__init__()
        self.inner, self.prefix = inner, prefix
        self.weight = nn.Parameter(noise(width, width, 3, 3, seed=5) / 30)

    def forward(self, x: Tensor) -> Tensor:
        """What both make of it."""
        grid = x[:, self.prefix :].mT.unflatten(2, (SIDE, SIDE))
        local = F.conv2d(grid, self.weight, padding=1).flatten(2).mT
        out: Tensor = self.inner(x) + F.pad(local, (0, 0, self.prefix, 0))
        return out


def convolved(site: Site) -> None:
    """Convpass: in one block."""
    site.blocks[1].mlp = Convolved(site.blocks[1].mlp, site.prefix, site.width)


# Hooks


def logging(site: Site) -> None:
    """A hook on every module that keeps what it sees."""
    kept: list[Any] = []
    for module in site.model.modules():
        module.register_forward_hook(lambda m, args, out: kept.append(out))
    site.stack.callback(kept.clear)


def logging_gradients(site: Site) -> None:
    """Full backward hooks that only look."""
    for module in [*site.blocks, *site.blocks[1].children()]:
        module.register_full_backward_hook(lambda *_: None)


def counting(site: Site) -> None:
    """A profiler's hook on all modules of the process."""
    site.stack.callback(register_module_forward_hook(lambda *_: None).remove)


def steered(site: Site) -> None:
    """A vector that is added to what a block returns."""
    block = site.blocks[1]
    if site.name == "open_clip_resnet":
        after(block, lambda x: x + 0.1)
    else:
        after(block, lambda x: x + noise(site.width, seed=6))


def ablated(site: Site) -> None:
    """An MLP that gives nothing, as people who study circuits have it."""
    after(site.blocks[1].mlp, lambda x: 0 * x)


def scaled_attention(site: Site) -> None:
    """An attention of which half is left."""
    after(site.attentions[1], lambda x: 0.5 * x)


def knocked_out(site: Site) -> None:
    """Geva et al.: no token may look at one of the patches, in the second layer."""
    mask = torch.zeros(site.prefix + COUNT, site.prefix + COUNT, dtype=torch.float64)
    mask[:, site.prefix + 3] = -torch.inf
    attend_by(
        site, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), layers=[1]
    )


def lens(site: Site) -> None:
    """Logit lens: what each block returns, projected and kept."""
    rows = noise(site.width, 24, seed=7)
    kept: list[Tensor] = []

    def look(module: nn.Module, args: Any, out: Any) -> None:
        tokens = out if isinstance(out, Tensor) else out[0]
        kept.append(tokens @ rows)

    for block in site.blocks:
        block.register_forward_hook(look)


# Kernels

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Heads' outputs of q, k and v, each (B, H, s, d)."""


def attend_by(site: Site, kernel: Kernel, layers: Sequence[int] = (0, 1, 2)) -> None:
    """An attention's forward with another kernel."""

    def forward(own: Any, *args: Any, **options: Any) -> Any:
        hidden = args[0] if args else options["hidden_states"]
        if isinstance(own, nn.MultiheadAttention):
            parts = F.linear(hidden, own.in_proj_weight, own.in_proj_bias).chunk(3, -1)
        else:
            parts = own.q_proj(hidden), own.k_proj(hidden), own.v_proj(hidden)
        heads = (x.unflatten(-1, (own.num_heads, -1)).transpose(1, 2) for x in parts)
        return own.out_proj(kernel(*heads).transpose(1, 2).flatten(2)), None

    for index in layers:
        own = site.attentions[index]
        own.forward = partial(forward, own)


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Products, softmax, dropout, product."""
    weights = F.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1)
    return F.dropout(weights, 0.1, training=False) @ v


class Flash(torch.autograd.Function):
    """Attention as flash-attn has it: nothing inside of it has a gradient."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Heads' outputs (B, H, s, d)."""
        ctx.save_for_backward(q, k, v)
        return F.scaled_dot_product_attention(q, k, v)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """By running it again."""
        q, k, v = (each.detach().requires_grad_() for each in ctx.saved_tensors)
        with torch.enable_grad():
            out = F.scaled_dot_product_attention(q, k, v)
        return torch.autograd.grad(out, (q, k, v), gradients[0])


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same as a function."""
    out: Tensor = Flash.apply(q, k, v)
    return out


def in_bfloat16(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A kernel that takes half precision alone."""
    out = F.scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    return out.to(q)


def padded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """To a multiple of eight, with the further keys masked."""
    more = -k.shape[2] % 8
    mask = torch.arange(k.shape[2] + more) < k.shape[2]
    wide = [F.pad(x, (0, 0, 0, more)) for x in (q, k, v)]
    out = F.scaled_dot_product_attention(wide[0], wide[1], wide[2], mask.expand(len(mask), -1))
    return out[:, :, : q.shape[2]]


def with_local(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """LePE: a convolution of the values, by channel, beside the attention."""
    first = k.shape[2] - COUNT
    heads = v[:, :, first:].transpose(2, 3).flatten(1, 2).unflatten(2, (SIDE, SIDE))
    weight = noise(heads.shape[1], 1, 3, 3, seed=3) / 4
    local = F.conv2d(heads, weight, padding=1, groups=heads.shape[1]).flatten(2)
    local = local.unflatten(1, (v.shape[1], -1)).transpose(2, 3)
    return F.scaled_dot_product_attention(q, k, v) + F.pad(local, (0, 0, first, 0))


def with_prefix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Prefix tuning: two keys and values of no token."""
    extra = noise(2, 1, k.shape[1], 2, k.shape[3], seed=12).expand(2, len(k), -1, -1, -1)
    k, v = (torch.cat([x, own], 2) for x, own in zip((k, v), extra, strict=True))
    return F.scaled_dot_product_attention(q, k, v)


def with_bias(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Relative positions that are added to the products."""
    bias = noise(k.shape[1], q.shape[2], k.shape[2], seed=13)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def top_k(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The keys that fit best."""
    logits = (q @ k.mT).detach()
    least = logits.topk(9, -1).values[..., -1:]
    return F.scaled_dot_product_attention(q, k, v, logits >= least)


def eager(site: Site) -> None:
    """`attn_implementation="eager"`, as people who want attention weights set it."""
    site.model.set_attn_implementation("eager")
    site.stack.callback(site.model.set_attn_implementation, "sdpa")


def by_its_name(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **_: Any) -> Any:
    """LePE as an attention function of transformers."""
    return with_local(q, k, v).transpose(1, 2).contiguous(), None


AttentionInterface.register("lepe_of_tests", by_its_name)


def implemented(site: Site) -> None:
    """A kernel that was registered before is chosen by its name."""
    site.model.set_attn_implementation("lepe_of_tests")
    site.stack.callback(site.model.set_attn_implementation, "sdpa")


def patched_function(site: Site) -> None:
    """SageAttention's README: another function in the place of torch's."""

    def sage(q: Tensor, k: Tensor, v: Tensor, *_: Any, **options: Any) -> Tensor:
        return written_out(q, k, v)

    site.stack.enter_context(patch.object(F, "scaled_dot_product_attention", sage))


# Training, wrappers, code


def checkpointed(site: Site) -> None:
    """Gradient checkpointing of each block."""
    for block in site.blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def fairscale(site: Site) -> None:
    """A wrapper of FSDP or fairscale that checkpoints, on one block of a list."""
    if site.name == "open_clip_resnet":
        site.tower.layer3 = checkpoint_wrapper(site.tower.layer3)
    else:
        site.blocks[1] = checkpoint_wrapper(site.blocks[1])


def without_graph(site: Site) -> None:
    """A frozen backbone: its first blocks run under no_grad."""
    for block in site.blocks[:2]:
        block.forward = torch.no_grad()(block.forward)


def compiled(site: Site) -> None:
    """`module.compile()`; with the backend that needs no compiler."""
    site.stack.callback(torch._dynamo.reset)
    for block in site.blocks[:1]:
        block.compile(backend="eager")


def parallel(site: Site) -> None:
    """The vision tower of a model in DataParallel."""
    site.model.visual = nn.DataParallel(site.tower)


def subclassed(site: Site) -> None:
    """A colleague's class, whose forward scales what a block returns."""
    block = site.blocks[-1]
    kind = type(block)

    def forward(self: Any, *args: Any, **options: Any) -> Any:
        return changed(kind.forward(self, *args, **options), lambda x: 1.2 * x)

    block.__class__ = type(f"My{kind.__name__}", (kind,), {"forward": forward})


def half_dtype(site: Site) -> None:
    """A block under autocast."""
    block = site.blocks[1]
    block.forward = torch.autocast("cpu", dtype=torch.bfloat16)(block.forward)


def in_chunks(site: Site) -> None:
    """Memory: a batch of more than two images passes a block in parts."""
    block = site.blocks[1]
    own = block.forward

    def forward(*args: Any, **options: Any) -> Any:
        first, given = (args[0], True) if args else (next(iter(options.values())), False)
        if len(first) <= 2:
            return own(*args, **options)
        parts = list[Any]()
        for part in first.split(2):
            if given:
                parts.append(own(part, *args[1:], **options))
            else:
                parts.append(own(**{**options, next(iter(options)): part}))
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        return (torch.cat([part[0] for part in parts]), *parts[0][1:])

    block.forward = forward


def batch_norm(site: Site) -> None:
    """Test-time adaptation: what a block returns less the mean of the batch's images."""
    after(site.blocks[1], lambda x: x - 0.5 * x.mean(0, keepdim=True) if len(x) > 1 else x)


# Scores


def scored(score: Move) -> Scores:
    """A function of the cosines (B, K)."""
    return lambda site, similarity: lambda pixels: score(similarity(pixels))


def cosines(embedding: Tensor) -> Tensor:
    """With the texts."""
    return F.normalize(embedding, dim=-1) @ cases.embeddings().T


def tip_adapter(site: Site, similarity: ClipSimilarity) -> Forward:
    """Cosines, and a memory of shots."""
    keys, labels = F.normalize(noise(6, 24, seed=8), dim=1), noise(6, cases.COUNT, seed=9)

    def forward(pixels: Tensor) -> Tensor:
        unit = F.normalize(cases.embed(site.model, pixels), dim=-1)
        near = (5 * (unit @ keys.T - 1)).exp()
        return unit @ cases.embeddings().T + near @ labels

    return forward


def prompted_texts(site: Site, similarity: ClipSimilarity) -> Forward:
    """CoOp: cosines with the texts of learned contexts, in one's own function."""
    return lambda pixels: cosines(cases.embed(site.model, pixels))


def probed(site: Site, similarity: ClipSimilarity) -> Forward:
    """A linear probe of classes on the embedding, with its bias."""
    weight, bias = noise(cases.COUNT, 24, seed=10), noise(cases.COUNT, seed=11)
    return lambda pixels: F.linear(cases.embed(site.model, pixels), weight, bias)


def caught(site: Site, index: int, read: Callable[[Tensor], Tensor]) -> Forward:
    """A score of what a block returns."""

    def forward(pixels: Tensor) -> Tensor:
        kept: list[Any] = []
        handle = site.blocks[index].register_forward_hook(lambda *call: kept.append(call[2]))
        try:
            cases.embed(site.model, pixels)
        finally:
            handle.remove()
        tokens = kept[0] if isinstance(kept[0], Tensor) else kept[0][0]
        return cosines(read(tokens[:, site.prefix :, :24]))

    return forward


def llava(site: Site, similarity: ClipSimilarity) -> Forward:
    """What a vision-language model reads: the patches of the last layer but one."""
    return caught(site, -2, lambda x: x.mean(1))


def dense(site: Site, similarity: ClipSimilarity) -> Forward:
    """DenseCLIP: the best patch of the last layer."""
    return caught(site, -1, lambda x: x.amax(1))


def flipped_twice(site: Site, similarity: ClipSimilarity) -> Forward:
    """Test-time augmentation: the mean of two views."""
    return lambda pixels: (similarity(pixels) + similarity(pixels.flip(-1))) / 2


def moved(move: Move) -> Scores:
    """Images that the forward function prepares."""
    return lambda site, similarity: lambda pixels: similarity(move(pixels))


# `direct` reads what a block's branches return, and `patches` what its last one does
SUMS = ("direct",)
LAST = ("direct", "patches")
CHANGES: dict[str, Change] = {
    # weights beside weights
    "LoRA in one's own words": Change(with_lora, VITS),
    "LoRA of peft": Change(with_peft),
    "LoRA of peft, merged": Change(partial(with_peft, merged=True)),
    "IA3 of peft": Change(partial(with_peft, kind="IA3Config")),
    "AdaptFormer": Change(partial(with_bottleneck, behind=False), VITS),
    "Houlsby's adapters": Change(partial(with_bottleneck, behind=True), VITS),
    "CLIP-Adapter": Change(
        with_clip_adapter, refused=("direct", "conservative", "removal", "legrad", "patches")
    ),
    "LayerNorms that are tuned": Change(with_norms_tuned),
    "WiSE-FT between calls": Change(with_other_weights, between=True),
    "weight_norm": Change(with_weight_norm),
    "pruned rows": Change(with_pruned),
    "8 bits, dequantized": Change(in_int8, VITS),
    "LayerNorm in fp32": Change(norms_in_float32, VITS, tolerance=1e-4),
    # prompts, registers, merged tokens
    "VPT": Change(prompted, VITS, "none", "computed"),
    "VPT, deep": Change(partial(prompted, deep=True), VITS, "none", "computed"),
    "MaPLe": Change(partial(prompted, deep=True, behind=True), VITS, refused=METHODS),
    "a register at test time": Change(with_register, VITS, refused=METHODS),
    "ToMe": Change(partial(moving, move=merged), VITS, "none", "computed"),
    "ToMe, unmerged": Change(partial(moving, move=unmerged), VITS, "none", "computed"),
    "EViT": Change(partial(moving, move=dropped), VITS, "none", "computed"),
    "Convpass": Change(convolved, VITS, "none", "computed"),
    # hooks
    "a colleague's hook that logs": Change(logging, right="plain"),
    "hooks that log gradients": Change(logging_gradients, right="plain"),
    "a profiler's hook": Change(counting, right="plain"),
    "a logit lens": Change(lens, VITS, "plain"),
    "a steering vector": Change(steered, refused=SUMS),
    "an MLP that is ablated": Change(ablated, VITS),
    "half of an attention": Change(scaled_attention, VITS, refused=SUMS),
    "attention knockout": Change(knocked_out, VITS),
    "a hook between calls": Change(steered, refused=SUMS, between=True),
    # kernels
    "attention that is written out": Change(partial(attend_by, kernel=written_out), VITS, "plain"),
    "eager attention": Change(eager, TRANSFORMERS, "plain", tolerance=1e-4),
    "flash-attn": Change(partial(attend_by, kernel=flash), VITS, "plain", refused=METHODS),
    "SageAttention": Change(patched_function, right="plain", refused=METHODS),
    "a kernel in bfloat16": Change(
        partial(attend_by, kernel=in_bfloat16),
        VITS,
        "plain",
        refused=("direct", "removal"),
        tolerance=0.05,
    ),
    "keys that are padded": Change(
        partial(attend_by, kernel=padded), VITS, "plain", refused=METHODS
    ),
    "relative positions": Change(partial(attend_by, kernel=with_bias), VITS, refused=("removal",)),
    "prefix tuning": Change(partial(attend_by, kernel=with_prefix), VITS, "none", "computed"),
    "top-k attention": Change(partial(attend_by, kernel=top_k), VITS, refused=("removal",)),
    "LePE": Change(partial(attend_by, kernel=with_local), VITS, "none", "computed"),
    "LePE between calls": Change(implemented, TRANSFORMERS, "none", "computed", between=True),
    # training, wrappers, code
    "gradient checkpointing": Change(checkpointed, right="plain", refused=OF_PATCHES),
    "a block in FSDP's wrapper": Change(fairscale, right="plain", refused=OF_PATCHES),
    "a backbone under no_grad": Change(without_graph, right="plain", refused=METHODS),
    "a frozen tower": Change(lambda site: site.model.requires_grad_(False), right="plain"),
    "torch.compile": Change(compiled, right="plain"),
    "DataParallel": Change(parallel, ("open_clip_vit_mean", "open_clip_resnet"), "plain"),
    "a block under autocast": Change(half_dtype, VITS, tolerance=0.05),
    "a class of one's own": Change(subclassed, refused=LAST),
    # batches
    "a batch in parts": Change(in_chunks, right="plain", refused=METHODS),
    "BatchNorm across images": Change(batch_norm, VITS, "none"),
    "a contrastive loss": Change(right="none", scores=scored(lambda y: y.log_softmax(0))),
    "less the batch's mean": Change(right="none", scores=scored(lambda y: y - y.mean(0))),
    # scores
    "CoOp": Change(right="plain", scores=prompted_texts),
    "probabilities of texts": Change(scores=scored(lambda y: (20 * y).softmax(-1))),
    "a temperature": Change(scores=scored(lambda y: 10 * y), factor=10),
    "SigLIP's logits": Change(scores=scored(lambda y: 10 * y - 5)),
    "Tip-Adapter": Change(scores=tip_adapter),
    "a linear probe": Change(scores=probed),
    "LLaVA's hidden states": Change(towers=VITS, right="none", scores=llava),
    "DenseCLIP": Change(towers=VITS[1:], scores=dense, refused=METHODS),
    "two views of an image": Change(right="none", scores=flipped_twice),
    "images normalized by the function": Change(
        scores=moved(lambda x: 0.8 * x - 0.1), moved=lambda x: 0.8 * x - 0.1, right="plain"
    ),
}
