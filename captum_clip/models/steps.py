r"""The steps that follow a pooled token, and the way of a direction back through them.

A linear map is affine; so is a norm with its standard deviation detached, and an activation with
its gate :math:`f(x) / x` detached. So a direction :math:`d` on their output is a direction on their
input plus a constant: :math:`d \cdot f(x) = d' \cdot x + c`. That takes a score apart exactly.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as map_linearly

from ..errors import UnsupportedModelError
from .library import has_no_foreign_hooks

ROUNDING: Final = {
    torch.float64: 1e-6,  # a softmax or a norm may be computed in single precision
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 3e-2,
}
"""The relative difference that computing something once more may make, by type of numbers."""

ACTIVATIONS: Final = {
    *("gelu", "relu", "relu6", "silu", "tanh", "sigmoid", "erf", "elu", "selu", "celu", "mish"),
    *("leakyrelu", "prelu", "hardtanh", "hardswish", "hardsigmoid", "softplus"),
}
"""Functions of each number by itself, which are x times a gate, by their names in PyTorch."""


@dataclass(frozen=True, eq=False)
class Direction:
    """K directions at each of B tokens, d_kb = scale_b rows_kb, and the biases on their way."""

    rows: Tensor  # (K, 1, D) where the images differ by a factor alone, else (K, B, D)
    scale: Tensor  # (B,)
    # The direction on the output of each map that has a bias, and this bias (1 or B, D).
    biases: "tuple[tuple[Direction, Tensor], ...]" = ()

    @classmethod
    def of(cls, rows: Tensor, scale: Tensor) -> "Direction":
        """Directions without a constant."""
        return cls(rows, scale)

    @cached_property
    def constant(self) -> Tensor:
        """The part of the products that does not depend on the token, (K, B)."""
        if not self.biases:
            return self.rows.new_zeros(len(self.rows), len(self.scale))
        first, *others = [direction.dot(bias) for direction, bias in self.biases]
        return sum(others, first)

    @cached_property
    def length(self) -> Tensor:
        """The length of all directions of an image together, (B,)."""
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
        """The products of the rows, before the scale."""
        if self.rows.shape[1] == 1:
            return (tokens @ self.rows[:, 0].T).permute(2, 0, 1)
        return torch.einsum("kbd,bsd->kbs", self.rows, tokens)

    def of_images(self, dense: Tensor) -> "Direction":
        """Directions (K, B, D), given for each image, with the same constant."""
        return Direction(dense, torch.ones_like(self.scale), self.biases)

    def through(self, rows: Tensor, bias: Tensor | None, scale: Any = None) -> "Direction":
        """The direction on the input of an affine map whose transposed weight gave `rows`."""
        biases = self.biases
        if bias is not None:
            bias = bias.to(rows.dtype).view(-1, bias.shape[-1])
            biases = (*biases, (self.without_constant(), bias))
        total_scale = self.scale
        if scale is not None:
            total_scale = total_scale * scale[..., 0]
        return Direction(rows, total_scale, biases)


def constants(directions: Sequence[Direction]) -> Tensor:
    """The constants of n directions, (n, K, B)."""
    if not _share_one_way(directions):
        return torch.stack([direction.constant for direction in directions])
    # Each is the product of one and the same direction with its own bias, so one product does.
    above, _ = directions[0].biases[0]
    biases = torch.stack([direction.biases[0][1] for direction in directions], 1)
    return above.dots(biases).permute(2, 0, 1)


def _share_one_way(directions: Sequence[Direction]) -> bool:
    """Whether all directions came through one biased map each, from one direction above it."""
    if any(len(direction.biases) != 1 for direction in directions):
        return False
    first, first_bias = directions[0].biases[0]
    for direction in directions:
        above, bias = direction.biases[0]
        if above.rows is not first.rows or above.scale is not first.scale:
            return False
        if bias.shape != first_bias.shape:
            return False
    return True


class TokenStep(ABC):
    """Something that a token goes through by itself, and a direction backwards."""

    def __call__(self, token: Tensor) -> Tensor:
        """The same as `forward`."""
        return self.forward(token)

    @abstractmethod
    def forward(self, token: Tensor) -> Tensor:
        """Map tokens (..., D)."""

    @abstractmethod
    def pull(self, direction: Direction, token: Tensor) -> Direction:
        """A direction on the output at a token (B, D) -> the one on the input.

        UnsupportedModelError for a module that is no linear map, known norm or activation.
        """

    @abstractmethod
    def push(self, vectors: Tensor, token: Tensor) -> Tensor:
        """Send vectors (B, n, D), parts of a token (B, 1, D), through the linear part."""

    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """The tensors of the step, which may be views of a module's parameters."""


Step: TypeAlias = nn.Module | TokenStep
"""A step as a tower has it: a module is one by its class, see :func:`step_of`."""


@dataclass(frozen=True, eq=False)
class Linear(TokenStep):
    """The parameters of one linear map, as they are at this moment."""

    weight: Tensor  # (D_out, D_in)
    bias: Tensor | None  # (D_out,)

    @classmethod
    def of(cls, module: Any) -> "Linear":
        """Take those of a `torch.nn.Linear`; an empty weight where a module has none."""
        return cls(getattr(module, "weight", torch.empty(0)), getattr(module, "bias", None))

    def forward(self, token: Tensor) -> Tensor:
        cast = self.to(token.dtype)
        # What somebody put around PyTorch's functions must not act on our own arithmetic.
        with torch._C.DisableTorchFunction():
            return map_linearly(token, cast.weight, cast.bias)

    def pull(self, direction: Direction, token: Tensor) -> Direction:
        cast = self.to(token.dtype)
        return direction.through(direction.rows @ cast.weight, cast.bias)

    def push(self, vectors: Tensor, token: Tensor) -> Tensor:
        return Linear(self.weight, None).forward(vectors)

    def parameters(self) -> list[Tensor]:
        return _present(self.weight, self.bias)

    def to(self, dtype: torch.dtype) -> "Linear":
        """The map in another dtype."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return Linear(self.weight.to(dtype), bias)


def linear_maps(weights: Sequence[Tensor], bias: Tensor | None) -> list[Linear]:
    """Some weights of one module with their chunks of its stacked bias, which may be None."""
    if bias is None:
        return [Linear(weight, None) for weight in weights]
    return list(map(Linear, weights, bias.chunk(len(weights))))


@dataclass(frozen=True, eq=False)
class Gated(TokenStep):
    """An affine map x -> scale * factors * (x less its mean) + bias, such as a norm at a token.

    Without any of these it is the identity.
    """

    factors: Tensor | None = None  # (D,), as LayerScale has them, or (..., D)
    bias: Tensor | None = None
    scale: Tensor | None = None  # (..., 1)
    mean_dims: tuple[int, ...] = ()  # none where no mean is taken off

    def forward(self, token: Tensor) -> Tensor:
        linear = self.push(token)
        return linear if self.bias is None else linear + self.bias

    def push(self, vectors: Tensor, token: Tensor | None = None) -> Tensor:
        vectors = without_mean(vectors, self.mean_dims)
        if self.scale is not None:
            vectors = vectors * self.scale
        if self.factors is not None:
            vectors = vectors * self.factors.to(vectors.dtype)
        return vectors

    def back(self, gradient: Tensor) -> Tensor:
        """The transpose of the linear part."""
        gradient = self._back_before_scale(gradient)
        return gradient if self.scale is None else gradient * self.scale

    def _back_before_scale(self, gradient: Tensor) -> Tensor:
        if self.factors is not None:
            gradient = gradient * self.factors.to(gradient.dtype)
        return without_mean(gradient, self.mean_dims)

    def pull(self, direction: Direction, token: Tensor) -> Direction:
        # With factors for each image, directions differ by more than a factor between images.
        if self.factors is not None and self.factors.ndim > 1:
            direction = direction.of_images(direction.dense())
        rows = self._back_before_scale(direction.rows)
        return direction.through(rows, self.bias, self.scale)

    def parameters(self) -> list[Tensor]:
        return _present(self.factors, self.bias, self.scale)


def without_mean(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Take off the mean over some dimensions, if there are any."""
    if not dims:
        return x
    count = prod(x.shape[dim] for dim in dims)
    # A batched backward takes the derivatives of `mean` one by one, those of a sum at once.
    return x.sub(x.sum(dims, keepdim=True), alpha=1 / count)


def _present(*tensors: Tensor | None) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


@dataclass(frozen=True, eq=False)
class Residual(TokenStep):
    """A residual branch: x + steps(x)."""

    steps: tuple[Step, ...]

    def forward(self, token: Tensor) -> Tensor:
        return token + run_steps(self.steps, token)

    def pull(self, direction: Direction, token: Tensor) -> Direction:
        branch = pull_back(self.steps, token, direction)
        return branch.of_images(direction.dense() + branch.dense())

    def push(self, vectors: Tensor, token: Tensor) -> Tensor:
        _, pushed = push_forward(self.steps, token[:, 0], vectors)
        return vectors + pushed

    def parameters(self) -> list[Tensor]:
        return [parameter for step in self.steps for parameter in step.parameters()]


@dataclass(frozen=True, eq=False)
class GatedLinear(TokenStep):
    """A linear map weighted by steps of the same token, as in SwiGLU: gate(x) * linear(x).

    The gate is the constant, so what passes it is the linear map.
    """

    gate: tuple[Step, ...]
    linear: nn.Module

    def forward(self, token: Tensor) -> Tensor:
        return run_steps(self.gate, token) * step_of(self.linear).forward(token)

    def pull(self, direction: Direction, token: Tensor) -> Direction:
        gate = Gated(run_steps(self.gate, token))
        return step_of(self.linear).pull(gate.pull(direction, token), token)

    def push(self, vectors: Tensor, token: Tensor) -> Tensor:
        return step_of(self.linear).push(vectors, token) * run_steps(self.gate, token)

    def parameters(self) -> list[Tensor]:
        return [p for step in (*self.gate, self.linear) for p in step.parameters()]


class ModuleStep(TokenStep):
    """A module that is called as it is now."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def forward(self, token: Tensor) -> Tensor:
        # A LoRA adapter may have another dtype than the model around it.
        dtype = next(self.module.parameters(), token).dtype
        output: Tensor = self.module(token.to(dtype))
        return output.to(token.dtype)

    def parameters(self) -> list[Tensor]:
        return list(self.module.parameters())


class Called(ModuleStep):
    """A linear map that is called, such as an adapter's, whose way back is its own gradient."""

    def pull(self, direction: Direction, token: Tensor) -> Direction:
        constant, dense = self._constant(token), direction.dense()
        # In a graph that is kept, the rows are functions of the module's parameters.
        options = {"retain_graph": True, "create_graph": torch.is_grad_enabled()}
        with torch.enable_grad():
            leaf = token.detach().requires_grad_()
            output = self.rows(leaf)
            rows = [torch.autograd.grad(output, leaf, row, **options)[0] for row in dense]
        return direction.of_images(dense).through(torch.stack(rows), constant)

    def push(self, vectors: Tensor, token: Tensor) -> Tensor:
        return self.rows(vectors) - self._constant(token)

    def rows(self, token: Tensor) -> Tensor:
        """The output for tokens (B, D), or (B, n, D), of which B go through at a time."""
        if token.ndim > 2:
            return torch.stack([self.rows(row) for row in token.unbind(1)], 1)
        # A hook on the module may work in place.
        return self.forward(token.clone())

    def _constant(self, token: Tensor) -> Tensor:
        """The output of zeros; UnsupportedModelError where the module is not affine at a token."""
        with torch.enable_grad():
            has_gradient = self.rows(token.detach().requires_grad_()).requires_grad
        zero, other = self.rows(torch.zeros_like(token)), token.roll(1, -1)
        change = self.rows(token + other) - self.rows(other)
        expected = self.rows(token) - zero
        if not has_gradient or not self.agrees(change, expected, zero):
            raise UnsupportedModelError(
                f"a {type(self.module).__name__} follows the pooled token, but a score can be "
                "taken apart only through linear maps, LayerNorm, RMSNorm and activations. Use a "
                "method with gradients, such as all-grad."
            )
        return zero

    def agrees(self, computed: Tensor, expected: Tensor, *terms: Tensor) -> bool:
        """Whether two tensors differ by the rounding of the module, as `expected` has `terms`."""
        size = sum((term.norm() for term in terms), expected.norm())
        bound = ROUNDING[next(self.module.parameters(), expected).dtype]
        return bool((computed - expected).norm() <= bound * size)


class HeldStep(ModuleStep):
    """A norm or an activation, which is affine with its deviation or its gate as a constant."""

    @abstractmethod
    def at(self, token: Tensor) -> TokenStep:
        """The affine map that stands for it at a token; the called module where none does."""

    def pull(self, direction: Direction, token: Tensor) -> Direction:
        return self.at(token).pull(direction, token)

    def push(self, vectors: Tensor, token: Tensor) -> Tensor:
        return self.at(token).push(vectors, token)


class Activation(HeldStep):
    """A function of each number, which is the number times a gate."""

    def at(self, token: Tensor) -> TokenStep:
        without_hooks = partial(type(self.module).forward, self.module)
        result = self.module(token)
        # A hook may mix the numbers of a token, and a gate is a function of each number.
        if not has_no_foreign_hooks(self.module) and not result.equal(without_hooks(token)):
            return Called(self.module)
        at_zero = torch.where(token == 0, result, torch.zeros_like(token))  # f(0), mostly zero
        return Gated(gate_of(without_hooks, token, result), at_zero)


class LayerNorm(HeldStep):
    """A LayerNorm, which is not called: OpenCLIP's and OpenAI's cast to float32 and back."""

    def forward(self, token: Tensor) -> Tensor:
        return _norm(self.module, token)[1]

    def at(self, token: Tensor) -> TokenStep:
        return _norm(self.module, token)[0]


class RMSNorm(HeldStep):
    """An RMSNorm of PyTorch or of a library of its own, which may be a norm in name only."""

    def at(self, token: Tensor) -> TokenStep:
        called = Called(self.module)
        norm, output = _norm(self.module, token)
        return norm if called.agrees(output, called.rows(token)) else called


def _norm(module: Any, token: Tensor) -> tuple[Gated, Tensor]:
    bias = getattr(module, "bias", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))  # transformers'
    shape = getattr(module, "normalized_shape", token.shape[-1:])
    centers = isinstance(module, nn.LayerNorm)
    return norm_at(token, shape, module.weight, bias, epsilon, centers=centers)


def norm_at(
    x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: Any = None, *, centers: bool
) -> tuple[Gated, Tensor]:
    """A norm with its standard deviation at x as a constant, and its output for x.

    An RMSNorm does not center, and has the root mean square in place of the deviation.
    """
    weight = None if weight is None else weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    dims = tuple(range(-len(shape), 0))
    if eps is None:  # PyTorch's defaults
        eps = 1e-5 if centers else torch.finfo(x.dtype).eps
    if centers and not (x.requires_grad and torch.is_grad_enabled()):
        # One kernel gives output and deviation. No gradient passes this deviation.
        with torch._C.DisableTorchFunction():
            output, _, scale = torch.native_layer_norm(x, shape, weight, bias, eps)
        return Gated(weight, bias, scale, dims), output
    mean_dims = dims if centers else ()
    mean_square = without_mean(x, mean_dims).square().mean(dims, keepdim=True)
    norm = Gated(weight, bias, (mean_square + eps).rsqrt(), mean_dims)
    return norm, norm.forward(x)


def gate_of(function: Callable[[Tensor], Tensor], token: Tensor, result: Tensor) -> Tensor:
    """The gate f(x) / x of a function of each number, and where x is 0 its slope from below.

    PyTorch has the same slope for ReLU. Without it a unit at zero would pass nothing on, though
    the parts that reach it only add up to zero.
    """
    step = torch.finfo(token.dtype).eps
    zero, below = (function(token.new_full((1,), end)) for end in (0.0, -step))
    # A division by zero would have NaN as its gradient, even where the other side is taken.
    at_zero = token == 0
    return torch.where(at_zero, (zero - below) / step, result / token.masked_fill(at_zero, 1))


# These return one token as it is, since no dropout is active where a score is explained.
_IDENTITIES: Final = (nn.Identity, nn.Dropout, nn.Flatten)


def step_of(step: Any) -> TokenStep:
    """A module as the step that it is now, by its class."""
    if isinstance(step, TokenStep):
        return step
    if is_plain_linear(step):
        return Linear.of(step)
    if isinstance(step, nn.LayerNorm):
        return LayerNorm(step)
    # They are not called, so that a hook on one of them shows in the output that was recorded.
    if isinstance(step, _IDENTITIES):
        return Gated()
    name = type(step).__name__
    # Each library has a LayerScale and an RMSNorm of its own.
    if name.endswith("LayerScale"):
        return Gated(step.lambda1 if hasattr(step, "lambda1") else step.gamma)
    if isinstance(step, nn.RMSNorm) or name.lower().endswith("rmsnorm"):
        return RMSNorm(step)
    bases = {base.__name__.lower() for base in type(step).__mro__}
    if bases & ACTIVATIONS or "GELU" in name or name.endswith("Activation"):
        return Activation(step)
    return Called(step)


def is_plain_linear(module: Any) -> bool:
    """Whether a module computes what the parameters of a `torch.nn.Linear` say."""
    # A LoRA layer is an `nn.Linear`, too, and a hook may change what it returns.
    is_linear = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    return is_linear and has_no_foreign_hooks(module)


def run_steps(steps: Sequence[Step], token: Tensor) -> Tensor:
    """The output of some steps for tokens (..., D)."""
    for step in steps:
        token = step_of(step).forward(token)
    return token


def call_steps(steps: Sequence[Step], token: Tensor) -> Tensor:
    """As :func:`run_steps`, with every module called as it is, so that its hooks act."""
    for step in steps:
        if isinstance(step, Residual):
            token = token + call_steps(step.steps, token)
            continue
        token = step(token)
    return token


def pull_back(steps: Sequence[Step], token: Tensor, direction: Direction) -> Direction:
    """A direction on the output of some steps -> the one on their input, at that token (B, D).

    UnsupportedModelError for a step that is no linear map, known norm or activation.
    """
    if not steps:
        return direction
    first, later_steps = step_of(steps[0]), steps[1:]
    if later_steps:
        direction = pull_back(later_steps, first.forward(token), direction)
    return first.pull(direction, token)


def push_forward(steps: Sequence[Step], token: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Send vectors (B, n, D), which add up to a token (B, D), through some steps.

    The transpose of :func:`pull_back`: the output, and what each adds to it, less its constant.
    """
    for step in map(step_of, steps):
        vectors = step.push(vectors, token[:, None])
        token = step.forward(token)
    return token, vectors


def needs_token(steps: Sequence[Step]) -> bool:
    """Whether a direction's way through the steps depends on the token that takes it."""
    return not all(isinstance(step_of(step), (Linear, Gated)) for step in steps)


def step_parameters(step: Step) -> list[Tensor]:
    """The parameters of a step; of a view, such as a transposed projection, its parameter."""
    return [p if p._base is None else p._base for p in step.parameters()]


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(..., H d) -> (..., H, d)."""
    return tokens.reshape(*tokens.shape[:-1], heads, -1)


_TIMM_MLP: Final = ("fc1", "act", "drop1", "norm", "fc2", "drop2")
_MLPS: Final[tuple[tuple[str, ...], ...]] = (
    _TIMM_MLP,
    ("fc1", "activation_fn", "fc2"),
    ("dense", "intermediate_act_fn"),
)
"""The names of the modules of the libraries' MLPs, in the order in which they run."""


def flattened(modules: Iterable[Step]) -> tuple[Step, ...]:
    """The steps of some modules in a row; `Sequential` and the libraries' MLPs are taken apart.

    An MLP is known by the names of its modules alone, so a caller compares what the steps return
    with what the module returned.
    """
    steps: list[Step] = []
    for module in modules:
        if isinstance(module, Residual):
            steps.append(Residual(flattened(module.steps)))
        elif isinstance(module, nn.Module):
            steps += _steps_in(module)
        else:
            steps.append(module)
    return tuple(steps)


def _steps_in(module: nn.Module) -> tuple[Step, ...]:
    """The steps inside a `Sequential` or an MLP; any other module is one step."""
    parts: dict[str, Any] = {
        name: part for name, part in module._modules.items() if part is not None
    }
    if type(module) is nn.Sequential:
        return flattened(parts.values())
    kind = type(module).__name__
    if kind == "SwiGLU" and parts.keys() == {"fc1_g", "fc1_x", *_TIMM_MLP[1:]}:
        gated = GatedLinear((parts["fc1_g"], parts["act"]), parts["fc1_x"])
        return gated, *flattened(parts[name] for name in _TIMM_MLP[2:])
    # timm's GluMlp has the names of its MLP, but chunks what fc1 returns.
    if "GluMlp" not in kind:
        for names in _MLPS:
            if parts.keys() == {*names}:
                return flattened(parts[name] for name in names)
    return (module,)
