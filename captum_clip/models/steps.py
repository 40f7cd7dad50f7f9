r"""The steps that follow a pooled token, and the way of a direction back through them.

A linear map is affine; so is a norm with its standard deviation detached, and an activation with
its gate :math:`f(x) / x` detached. So a direction :math:`d` on their output is a direction on their
input plus a constant: :math:`d \cdot f(x) = d' \cdot x + c`. That takes a score apart exactly.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as map_linearly

from ..errors import UnsupportedModelError
from .library import has_no_foreign_hooks
from .rounding import agree, bound_of

ACTIVATIONS: Final = {
    *("gelu", "relu", "relu6", "silu", "tanh", "sigmoid", "erf", "elu", "selu", "celu", "mish"),
    *("leakyrelu", "prelu", "hardtanh", "hardswish", "hardsigmoid", "softplus"),
}
"""Functions of each number by itself, which are x times a gate, by their names in PyTorch."""


class Linear(NamedTuple):
    """The parameters of one linear map, as they are at this moment."""

    weight: Tensor  # (D_out, D_in)
    bias: Tensor | None  # (D_out,)

    @classmethod
    def of(cls, module: Any) -> "Linear":
        """Take those of a `torch.nn.Linear`; an empty weight where a module has none."""
        return cls(getattr(module, "weight", torch.empty(0)), getattr(module, "bias", None))

    def __call__(self, token: Tensor) -> Tensor:
        """Map tokens (..., D_in)."""
        # what somebody put around PyTorch's functions must not act on our own arithmetic
        with torch._C.DisableTorchFunction():
            return map_linearly(token, *self.to(token.dtype))

    def _pull(self, token: Tensor, direction: "Direction") -> "Direction":
        weight, bias = self.to(token.dtype)
        return direction.through(direction.rows @ weight, bias)

    def _push(self, token: Tensor, vectors: Tensor) -> Tensor:
        return Linear(self.weight, None)(vectors)

    def to(self, dtype: torch.dtype) -> "Linear":
        """The map in another dtype."""
        return Linear(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))


def linear_maps(weights: Sequence[Tensor], bias: Tensor | None) -> list[Linear]:
    """Some weights of one module with their chunks of its stacked bias, which may be None."""
    biases = (None,) * len(weights) if bias is None else bias.chunk(len(weights))
    return list(map(Linear, weights, biases))


class Gated(NamedTuple):
    """An affine map x -> scale * factors * (x less its mean) + bias, such as a norm at a token."""

    factors: Tensor | None = None  # (D,), as LayerScale has them, or (..., D)
    bias: Tensor | None = None
    scale: Tensor | None = None  # (..., 1)
    dims: tuple[int, ...] = ()  # of the mean, where it is taken off

    def __call__(self, token: Tensor) -> Tensor:
        """Map tokens (..., D)."""
        token = self.push(token)
        return token if self.bias is None else token + self.bias

    def push(self, vectors: Tensor) -> Tensor:
        """The linear part."""
        vectors = self._centered(vectors)
        vectors = vectors if self.scale is None else vectors * self.scale
        return vectors if self.factors is None else vectors * self.factors.to(vectors.dtype)

    def back(self, gradient: Tensor) -> Tensor:
        """The transpose of the linear part."""
        if self.factors is not None:
            gradient = gradient * self.factors.to(gradient.dtype)
        gradient = self._centered(gradient)
        return gradient if self.scale is None else gradient * self.scale

    def _push(self, token: Tensor, vectors: Tensor) -> Tensor:
        return self.push(vectors)

    def _pull(self, token: Tensor, direction: "Direction") -> "Direction":
        if self.factors is not None and self.factors.ndim > 1:  # then images differ by more
            direction = direction.of_images(direction.dense())
        rows = self._replace(scale=None).back(direction.rows)
        return direction.through(rows, self.bias, self.scale)

    def _centered(self, x: Tensor) -> Tensor:
        count = prod(x.shape[dim] for dim in self.dims)
        # not `mean`, which a batched backward takes one by one
        return x.sub(x.sum(self.dims, keepdim=True), alpha=1 / count) if self.dims else x


class Residual(NamedTuple):
    """A residual branch: x + steps(x)."""

    steps: "tuple[Step, ...]"

    def __call__(self, token: Tensor) -> Tensor:
        """Add the branch to tokens (..., D)."""
        return token + run_steps(self.steps, token)

    def _pull(self, token: Tensor, direction: "Direction") -> "Direction":
        branch = pull_back(self.steps, token, direction)
        return branch.of_images(direction.dense() + branch.dense())

    def _push(self, token: Tensor, vectors: Tensor) -> Tensor:
        return vectors + push_forward(self.steps, token[:, 0], vectors)[1]


class GatedLinear(NamedTuple):
    """A linear map weighted by steps of the same token, as in SwiGLU: gate(x) * linear(x).

    The gate is the constant, so what passes it is the linear map.
    """

    gate: "tuple[Step, ...]"
    linear: nn.Module

    def __call__(self, token: Tensor) -> Tensor:
        """Gate tokens (..., D)."""
        return run_steps(self.gate, token) * run_steps((self.linear,), token)

    def _pull(self, token: Tensor, direction: "Direction") -> "Direction":
        held = Gated(run_steps(self.gate, token))
        return pull_back((self.linear,), token, held._pull(token, direction))

    def _push(self, token: Tensor, vectors: Tensor) -> Tensor:
        return push_forward((self.linear,), token[:, 0], vectors)[1] * run_steps(self.gate, token)


Step: TypeAlias = "nn.Module | Linear | Gated | Residual | GatedLinear"
"""Something that a token goes through by itself."""


@dataclass(frozen=True, eq=False)
class Direction:
    """K directions at each of B tokens, d_kb = scale_b rows_kb, and the biases on their way."""

    rows: Tensor  # (K, 1, D) where the images differ by a factor alone, else (K, B, D)
    scale: Tensor  # (B,)
    # of each map that has one on their way (1 or B, D), and the direction on its output
    biases: "tuple[tuple[Direction, Tensor], ...]" = ()

    @classmethod
    def of(cls, rows: Tensor, scale: Tensor) -> "Direction":
        """Directions without a constant."""
        return cls(rows, scale)

    @cached_property
    def constant(self) -> Tensor:
        """What does not depend on the token, (K, B)."""
        parts = [direction.dot(bias) for direction, bias in self.biases]
        first, *others = parts or [self.rows.new_zeros(len(self.rows), len(self.scale))]
        return sum(others, first)

    @cached_property
    def length(self) -> Tensor:
        """That of all directions of an image together, (B,)."""
        length: Tensor = torch.linalg.vector_norm(self.rows, dim=(0, 2)) * self.scale
        return length

    def without_constant(self) -> "Direction":
        """These directions alone."""
        return Direction(self.rows, self.scale)

    def dense(self) -> Tensor:
        """All directions, (K, B, D)."""
        return self.rows * self.scale[:, None]

    def dot(self, tokens: Tensor) -> Tensor:
        """The products with one token (B, D) each, (K, B)."""
        return self.dots(tokens[:, None])[..., 0]

    def dots(self, tokens: Tensor) -> Tensor:
        """The products with several tokens (B, s, D) each, (K, B, s)."""
        return self.products(tokens) * self.scale[:, None]

    def products(self, tokens: Tensor) -> Tensor:
        """Those of the rows, before the scale."""
        if self.rows.shape[1] == 1:
            return (tokens @ self.rows[:, 0].T).permute(2, 0, 1)
        return torch.einsum("kbd,bsd->kbs", self.rows, tokens)

    def of_images(self, dense: Tensor) -> "Direction":
        """Others (K, B, D) with the same constant."""
        return Direction(dense, torch.ones_like(self.scale), self.biases)

    def through(self, rows: Tensor, bias: Tensor | None, scale: Any = None) -> "Direction":
        """The direction on the input of an affine map whose transposed weight gave `rows`."""
        biases = self.biases
        if bias is not None:
            bias = bias.to(rows.dtype).view(-1, bias.shape[-1])
            biases = (*biases, (self.without_constant(), bias))
        return Direction(rows, self.scale if scale is None else self.scale * scale[..., 0], biases)


def constants(directions: Sequence[Direction]) -> Tensor:
    """The constants of n directions, (n, K, B); in one product where they came one like way."""
    first = directions[0].biases[:1]
    for each in directions:
        alike = len(each.biases) == len(first) == 1 and each.biases[0][1].shape == first[0][1].shape
        if not alike or any(
            getattr(each.biases[0][0], name) is not getattr(first[0][0], name)
            for name in ("rows", "scale")
        ):
            return torch.stack([direction.constant for direction in directions])
    biases = torch.stack([direction.biases[0][1] for direction in directions], 1)
    return first[0][0].dots(biases).permute(2, 0, 1)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(..., H d) -> (..., H, d)."""
    return tokens.reshape(*tokens.shape[:-1], heads, -1)


def pull_back(steps: Sequence[Step], token: Tensor, direction: Direction) -> Direction:
    """A direction on the output of some steps -> the one on their input, at that token (B, D).

    UnsupportedModelError for a step that is no linear map, known norm or activation.
    """
    inputs = [token]
    for step in steps[:-1]:
        inputs.append(_forward(step, inputs[-1]))
    for step, entered in zip(reversed(steps), reversed(inputs), strict=False):
        direction = _held(step, entered)._pull(entered, direction)
    return direction


def push_forward(steps: Sequence[Step], token: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Send vectors (B, n, D), which add up to a token (B, D), through some steps.

    The transpose of :func:`pull_back`: the output, and what each adds to it, less its constant.
    """
    for step in steps:
        vectors = _held(step, token[:, None])._push(token[:, None], vectors)
        token = _forward(step, token)
    return token, vectors


_MLPS: Final[tuple[tuple[str, ...], ...]] = (  # names of the modules of the libraries' MLPs
    ("fc1", "act", "drop1", "norm", "fc2", "drop2"),
    ("fc1", "activation_fn", "fc2"),
    ("dense", "intermediate_act_fn"),
)


def flattened(modules: Iterable[Step]) -> tuple[Step, ...]:
    """The steps of some modules in a row; `Sequential` and the libraries' MLPs are taken apart.

    By the names of their modules, so what the steps make of a token is to be compared.
    """
    steps: list[Step] = []
    for module in modules:
        inner = {n: m for n, m in getattr(module, "_modules", {}).items() if m is not None}
        row = next((row for row in _MLPS if {*row} == {*inner}), ())
        if type(module).__name__ == "SwiGLU" and {"fc1_g", "fc1_x", *_MLPS[0][1:]} == {*inner}:
            steps.append(GatedLinear((inner["fc1_g"], inner["act"]), inner["fc1_x"]))
            row = _MLPS[0][2:]
        if isinstance(module, Residual):
            steps.append(Residual(flattened(module.steps)))
        # timm's GluMlp has the same names, and chunks what fc1 returns
        elif type(module) is nn.Sequential or (row and "GluMlp" not in type(module).__name__):
            steps += flattened(inner[name] for name in row or inner)
        else:
            steps.append(module)
    return tuple(steps)


def step_parameters(step: Step) -> list[Tensor]:
    """The parameters of a step; of a view, such as a transposed projection, its parameter."""
    if isinstance(step, nn.Module):
        return list(step.parameters())
    if isinstance(step, (Residual, GatedLinear)):
        steps = step.steps if isinstance(step, Residual) else (*step.gate, step.linear)
        return [parameter for inner in steps for parameter in step_parameters(inner)]
    return [p if p._base is None else p._base for p in step if isinstance(p, Tensor)]


def needs_token(steps: Sequence[Step]) -> bool:
    """Whether a direction's way through the steps depends on the token that takes it."""
    plain = (plain_step(step) for step in steps)
    return not all(isinstance(step, (Linear, Gated, nn.Identity)) for step in plain)


def run_steps(steps: Sequence[Step], token: Tensor) -> Tensor:
    """The output of some steps for tokens (..., D)."""
    for step in steps:
        token = _forward(step, token)
    return token


def call_steps(steps: Sequence[Step], token: Tensor) -> Tensor:
    """As :func:`run_steps`, with every module called as it is, so that its hooks act."""
    for step in steps:
        branch = step.steps if isinstance(step, Residual) else None
        token = step(token) if branch is None else token + call_steps(branch, token)
    return token


def plain_step(step: Any) -> Step:
    """A plain linear map or LayerScale as its parameters, which may be of another dtype.

    Any other module stays as it is, and is to be called.
    """
    # a LoRA layer is an `nn.Linear`, too, and a hook may change what it returns
    if isinstance(step, nn.Linear) and type(step).forward is nn.Linear.forward:
        return Linear.of(step) if has_no_foreign_hooks(step) else step
    if type(step).__name__.endswith("LayerScale"):  # each library has its own class
        return Gated(step.lambda1 if hasattr(step, "lambda1") else step.gamma)
    return step  # type: ignore[no-any-return]


def _forward(step: Step, token: Tensor) -> Tensor:
    step = plain_step(step)
    # OpenCLIP's and OpenAI's own LayerNorm cast to float32 and back, so they are not called
    if isinstance(step, nn.LayerNorm):
        return _norm(step, token)[1]
    # not called either, so that a hook on one of them shows in what was returned
    if isinstance(step, _IDENTITIES):
        return token
    if not isinstance(step, nn.Module):
        return step(token)
    # a LoRA adapter may have another dtype than the model around it
    output: Tensor = step(token.to(next(step.parameters(), token).dtype))
    return output.to(token.dtype)


class _Called(NamedTuple):
    """A linear map that is called, such as an adapter's, whose way back is its own gradient."""

    module: nn.Module

    def _push(self, token: Tensor, vectors: Tensor) -> Tensor:
        return _called(self.module, vectors) - _constant(self.module, token)

    def _pull(self, token: Tensor, direction: Direction) -> Direction:
        zero, dense = _constant(self.module, token), direction.dense()
        # in a graph that is kept, rows are functions of the module's parameters
        options = {"retain_graph": True, "create_graph": torch.is_grad_enabled()}
        with torch.enable_grad():
            leaf = token.detach().requires_grad_()
            output = _called(self.module, leaf)
            rows = [torch.autograd.grad(output, leaf, row, **options)[0] for row in dense]
        return direction.of_images(dense).through(torch.stack(rows), zero)


_IDENTITIES = (nn.Identity, nn.Dropout, nn.Flatten)  # for one token; dropout is not active


def _held(step: Step, token: Tensor) -> Any:
    """A step as the linear map that it is at a token, by what it makes of that, too."""
    step = plain_step(step)
    if not isinstance(step, nn.Module):
        return step
    if isinstance(step, _IDENTITIES):
        return Gated()
    name = type(step).__name__
    kinds = {kind.__name__.lower() for kind in type(step).__mro__}
    if kinds & ACTIVATIONS or "GELU" in name or name.endswith("Activation"):
        after = step(token)
        # a hook may mix the numbers of a token, and a gate is a function of each
        if has_no_foreign_hooks(step) or after.equal(type(step).forward(step, token)):
            rest = torch.where(token == 0, after, torch.zeros_like(token))  # f(0), mostly zero
            own = partial(type(step).forward, step)  # without hooks
            return Gated(gate_of(own, token, after), rest)
    # each library has an RMSNorm of its own, which may be a norm in name only
    if isinstance(step, (nn.LayerNorm, nn.RMSNorm)) or name.lower().endswith("rmsnorm"):
        norm, output = _norm(step, token)
        if isinstance(step, nn.LayerNorm) or _agree(step, output, _called(step, token)):
            return norm
    return _Called(step)


def _norm(step: Any, token: Tensor) -> tuple[Gated, Tensor]:
    epsilon = getattr(step, "variance_epsilon", getattr(step, "eps", None))  # of transformers
    affine, centers = (step.weight, getattr(step, "bias", None)), isinstance(step, nn.LayerNorm)
    shape = getattr(step, "normalized_shape", token.shape[-1:])
    return norm_at(token, shape, *affine, epsilon, centers=centers)


def norm_at(
    x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: Any = None, *, centers: bool
) -> tuple[Gated, Tensor]:
    """A norm with its standard deviation at x as a constant, and what it makes of x.

    That of an RMSNorm, which does not center, is the root mean square.
    """
    weight, bias = (None if each is None else each.to(x.dtype) for each in (weight, bias))
    dims = tuple(range(-len(shape), 0))
    eps = (1e-5 if centers else torch.finfo(x.dtype).eps) if eps is None else eps  # PyTorch's
    norm, output = Gated(weight, bias, None, dims if centers else ()), None
    if centers and not (x.requires_grad and torch.is_grad_enabled()):
        with torch._C.DisableTorchFunction():  # one kernel, whose deviation has no gradient
            output, _, scale = torch.native_layer_norm(x, shape, weight, bias, eps)
    else:
        scale = (norm._centered(x).square().mean(dims, keepdim=True) + eps).rsqrt()
    norm = norm._replace(scale=scale)
    return norm, norm(x) if output is None else output


def gate_of(function: Callable[[Tensor], Tensor], token: Tensor, result: Tensor) -> Tensor:
    """The gate f(x) / x of a function of each number, and where x is 0 its slope from below.

    As torch has it of ReLU. With none, a unit at zero would pass nothing on, though what reaches it
    only adds up to zero.
    """
    step = torch.finfo(token.dtype).eps
    zero, below = (function(token.new_full((1,), end)) for end in (0.0, -step))
    # no division by zero, whose gradient would be NaN where the other side is taken
    at_zero = token == 0
    return torch.where(at_zero, (zero - below) / step, result / token.masked_fill(at_zero, 1))


def _called(step: nn.Module, token: Tensor) -> Tensor:
    """The output of a module in the token's type, for (B, D) at a time as in a forward."""
    if token.ndim > 2:
        return torch.stack([_called(step, each) for each in token.unbind(1)], 1)
    dtype = next(step.parameters(), token).dtype
    output: Tensor = step(token.to(dtype).clone())  # a hook may work in place
    return output.to(token.dtype)


def _constant(step: nn.Module, token: Tensor) -> Tensor:
    """Call a module with zeros; UnsupportedModelError where it is not affine at a token."""
    with torch.enable_grad():
        passes = _called(step, token.detach().requires_grad_()).requires_grad
    zero, other = _called(step, torch.zeros_like(token)), token.roll(1, -1)
    change = _called(step, token + other) - _called(step, other)
    expected = _called(step, token) - zero
    if not passes or not _agree(step, change, expected, zero):
        raise UnsupportedModelError(
            f"a {type(step).__name__} follows the pooled token, but a score can be taken apart "
            "only through linear maps, LayerNorm, RMSNorm and activations. Use a method with "
            "gradients, such as all-grad."
        )
    return zero


def _agree(step: nn.Module, computed: Tensor, expected: Tensor, *others: Tensor) -> bool:
    """Whether two tensors differ by the rounding of a module."""
    bound = bound_of(next(step.parameters(), expected).dtype)
    return bool(agree(computed, expected, *others, bound=bound))
