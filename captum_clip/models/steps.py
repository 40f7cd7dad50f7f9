r"""The steps that follow a pooled token, and how a direction goes back through them.

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
from .rounding import agree, bound_of

ACTIVATIONS: Final = {
    *("gelu", "relu", "relu6", "silu", "tanh", "sigmoid", "erf", "elu", "selu", "celu", "mish"),
    *("leakyrelu", "prelu", "hardtanh", "hardswish", "hardsigmoid", "softplus"),
}
"""PyTorch's names of elementwise functions, each of which is x times a gate."""


@dataclass(frozen=True, eq=False)
class Direction:
    """K directions at each of B tokens, d_kb = scale_b rows_kb, and the biases on their way."""

    rows: Tensor  # (K, 1, D) where the images differ by a factor alone, else (K, B, D)
    scale: Tensor  # (B,)
    # A map with a bias on the way adds the direction on its output, and the bias (1 or B, D).
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
        # Starting from the first product saves a sum with zero.
        return sum(others, first)

    @cached_property
    def length(self) -> Tensor:
        """The length of all directions of an image together, (B,)."""
        length: Tensor = torch.linalg.vector_norm(self.rows, dim=(0, 2)) * self.scale
        return length

    def without_constant(self) -> "Direction":
        """The directions without their biases."""
        return Direction(self.rows, self.scale)

    def dense(self) -> Tensor:
        """All directions, (K, B, D)."""
        return self.rows * self.scale[:, None]

    def dot(self, tokens: Tensor) -> Tensor:
        """The products with one token per image (B, D), without the constant: (K, B)."""
        return self.dots(tokens[:, None])[..., 0]

    def dots(self, tokens: Tensor) -> Tensor:
        """The products with several tokens per image (B, s, D), without the constant: (K, B, s)."""
        return self.products(tokens) * self.scale[:, None]

    def products(self, tokens: Tensor) -> Tensor:
        """The products of the rows with tokens (B, s, D), before the scale: (K, B, s)."""
        if self.rows.shape[1] == 1:
            # All images share their rows, so one matrix product serves them.
            return (tokens @ self.rows[:, 0].T).permute(2, 0, 1)
        return torch.einsum("kbd,bsd->kbs", self.rows, tokens)

    def of_images(self, dense: Tensor) -> "Direction":
        """Other directions (K, B, D), one per image, with the same constant."""
        return Direction(dense, torch.ones_like(self.scale), self.biases)

    def through(self, rows: Tensor, bias: Tensor | None, scale: Any = None) -> "Direction":
        """The direction on the input of an affine map whose transposed weight gave `rows`."""
        biases = self.biases
        if bias is not None:
            bias = bias.to(rows.dtype).view(-1, bias.shape[-1])
            biases = (*biases, (self.without_constant(), bias))
        total_scale = self.scale
        if scale is not None:
            total_scale = total_scale * scale[..., 0]  # (B, 1) -> (B,)
        return Direction(rows, total_scale, biases)


def constants(directions: Sequence[Direction]) -> Tensor:
    """The constants of n directions, (n, K, B)."""
    if not _have_one_origin(directions):
        return torch.stack([direction.constant for direction in directions])
    # All biases meet the same direction, so one matrix product is enough.
    above, _ = directions[0].biases[0]
    biases = []
    for direction in directions:
        [(_, bias)] = direction.biases
        biases.append(bias)
    stacked = torch.stack(biases, 1)  # (1 or B, n, D)
    return above.dots(stacked).permute(2, 0, 1)


def _have_one_origin(directions: Sequence[Direction]) -> bool:
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
    """A map of each token by itself, which also takes directions from its output to its input."""

    def __call__(self, token: Tensor) -> Tensor:
        """Do the same as `forward`."""
        return self.forward(token)

    @abstractmethod
    def forward(self, token: Tensor) -> Tensor:
        """Map tokens (..., D)."""

    @abstractmethod
    def pull(self, direction: Direction, token: Tensor) -> Direction:
        """Take a direction on the output to the input, with the step made affine at a token (B, D).

        UnsupportedModelError for a module that is no linear map, known norm or activation.
        """

    @abstractmethod
    def push(self, vectors: Tensor, token: Tensor) -> Tensor:
        """Send vectors (B, n, D), parts of a token (B, 1, D), through the linear part."""

    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """The tensors of the step, which may be views of a module's parameters."""


Step: TypeAlias = nn.Module | TokenStep
"""A step as a tower lists it; :func:`step_of` makes a `TokenStep` of a module."""


@dataclass(frozen=True, eq=False)
class Linear(TokenStep):
    """The parameters of one linear map, as they are at this moment."""

    weight: Tensor  # (D_out, D_in)
    bias: Tensor | None  # (D_out,)

    @classmethod
    def of(cls, module: Any) -> "Linear":
        """Take the parameters of a `torch.nn.Linear`; a missing weight becomes an empty one."""
        weight = getattr(module, "weight", torch.empty(0))
        bias = getattr(module, "bias", None)
        return cls(weight, bias)

    def forward(self, token: Tensor) -> Tensor:
        cast = self.to(token.dtype)
        # A user's `TorchFunctionMode` must not act on our own arithmetic.
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
    """The maps of some weights of one module, each with its chunk of the module's stacked bias."""
    if bias is None:
        return [Linear(weight, None) for weight in weights]
    return list(map(Linear, weights, bias.chunk(len(weights))))


@dataclass(frozen=True, eq=False)
class Gated(TokenStep):
    """An affine map x -> scale * factors * (x - mean(x)) + bias, such as a norm at a token.

    With every field left out it is the identity.
    """

    factors: Tensor | None = None  # (D,), as LayerScale has them, or (..., D)
    bias: Tensor | None = None
    scale: Tensor | None = None  # (..., 1)
    mean_dims: tuple[int, ...] = ()  # the mean is over these; there is none without them

    def forward(self, token: Tensor) -> Tensor:
        output = self.push(token)
        if self.bias is not None:
            output = output + self.bias
        return output

    def push(self, vectors: Tensor, token: Tensor | None = None) -> Tensor:
        vectors = without_mean(vectors, self.mean_dims)
        if self.scale is not None:
            vectors = vectors * self.scale
        if self.factors is not None:
            vectors = vectors * self.factors.to(vectors.dtype)
        return vectors

    def back(self, gradient: Tensor) -> Tensor:
        """Apply the transpose of the linear part."""
        gradient = self._back_before_scale(gradient)
        if self.scale is not None:
            gradient = gradient * self.scale
        return gradient

    def _back_before_scale(self, gradient: Tensor) -> Tensor:
        # A direction keeps its scale apart from its rows, so `pull` hands the scale over.
        if self.factors is not None:
            gradient = gradient * self.factors.to(gradient.dtype)
        return without_mean(gradient, self.mean_dims)

    def pull(self, direction: Direction, token: Tensor) -> Direction:
        # If each image has factors of its own, one row cannot stand for all images.
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
    # A batched backward takes the derivatives of a sum at once, but those of `mean` one by one.
    return x.sub(x.sum(dims, keepdim=True), alpha=1 / count)


def _present(*tensors: Tensor | None) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _parameters_of(steps: Iterable[Step]) -> list[Tensor]:
    parameters: list[Tensor] = []
    for step in steps:
        parameters += step.parameters()
    return parameters


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
        return _parameters_of(self.steps)


@dataclass(frozen=True, eq=False)
class GatedLinear(TokenStep):
    """A linear map weighted by steps of the same token, as in SwiGLU: gate(x) * linear(x).

    The gate is taken as a constant, so directions and vectors pass the linear map alone.
    """

    gate: tuple[Step, ...]
    linear: nn.Module

    def forward(self, token: Tensor) -> Tensor:
        gate = run_steps(self.gate, token)
        return gate * step_of(self.linear).forward(token)

    def pull(self, direction: Direction, token: Tensor) -> Direction:
        gate = Gated(run_steps(self.gate, token))
        before_gate = gate.pull(direction, token)
        return step_of(self.linear).pull(before_gate, token)

    def push(self, vectors: Tensor, token: Tensor) -> Tensor:
        pushed = step_of(self.linear).push(vectors, token)
        return pushed * run_steps(self.gate, token)

    def parameters(self) -> list[Tensor]:
        return _parameters_of((*self.gate, self.linear))


class ModuleStep(TokenStep):
    """A step that calls its module as it is now, with its hooks."""

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
    """A linear map that has to be called, such as an adapter's; autograd takes directions back."""

    def pull(self, direction: Direction, token: Tensor) -> Direction:
        constant = self._constant(token)
        dense = direction.dense()
        # If the caller records a graph, the rows depend in it on the module's parameters.
        create_graph = torch.is_grad_enabled()
        rows: list[Tensor] = []
        with torch.enable_grad():
            leaf = token.detach().requires_grad_()
            output = self.outputs(leaf)
            for row in dense:
                rows += torch.autograd.grad(
                    output, leaf, row, retain_graph=True, create_graph=create_graph
                )
        return direction.of_images(dense).through(torch.stack(rows), constant)

    def push(self, vectors: Tensor, token: Tensor) -> Tensor:
        return self.outputs(vectors) - self._constant(token)

    def outputs(self, token: Tensor) -> Tensor:
        """The output for tokens (B, D) or (B, n, D); the module gets (B, D) at a time."""
        if token.ndim > 2:
            return torch.stack([self.outputs(row) for row in token.unbind(1)], 1)
        # A hook on the module may work in place.
        return self.forward(token.clone())

    def _constant(self, token: Tensor) -> Tensor:
        """The output of zeros; UnsupportedModelError where the module is not affine at a token."""
        with torch.enable_grad():
            has_gradient = self.outputs(token.detach().requires_grad_()).requires_grad
        # If f is affine, f(x + y) - f(y) = f(x) - f(0). A rolled token is a y of the same size.
        zero = self.outputs(torch.zeros_like(token))
        other = token.roll(1, -1)
        change = self.outputs(token + other) - self.outputs(other)
        expected = self.outputs(token) - zero
        if not has_gradient or not self.agrees(change, expected, zero):
            raise UnsupportedModelError(
                f"a {type(self.module).__name__} follows the pooled token, but a score can be "
                "taken apart only through linear maps, LayerNorm, RMSNorm and activations. Use a "
                "method with gradients, such as all-grad."
            )
        return zero

    def agrees(self, computed: Tensor, expected: Tensor, *terms: Tensor) -> bool:
        """Whether two tensors differ by no more than the rounding of the module.

        `terms` are the numbers that `expected` was computed from, whose size counts as well.
        """
        parameter = next(self.module.parameters(), expected)
        return bool(agree(computed, expected, *terms, bound=bound_of(parameter.dtype)))


class AffineAtToken(ModuleStep):
    """A norm or an activation, which is affine with its deviation or its gate as a constant."""

    @abstractmethod
    def at(self, token: Tensor) -> TokenStep:
        """The affine map that equals the module at a token, or the called module without one."""

    def pull(self, direction: Direction, token: Tensor) -> Direction:
        return self.at(token).pull(direction, token)

    def push(self, vectors: Tensor, token: Tensor) -> Tensor:
        return self.at(token).push(vectors, token)


class Activation(AffineAtToken):
    """An elementwise function, which multiplies each number by a gate."""

    def at(self, token: Tensor) -> TokenStep:
        without_hooks = partial(type(self.module).forward, self.module)
        result = self.module(token)
        # A hook may mix the numbers of a token, but a gate acts on each number by itself.
        if not has_no_foreign_hooks(self.module) and not result.equal(without_hooks(token)):
            return Called(self.module)
        gate = gate_of(without_hooks, token, result)
        # A gate times 0 is 0, so f(0) is a constant. It is 0 for most activations, but not for a
        # sigmoid.
        constant = torch.where(token == 0, result, torch.zeros_like(token))
        return Gated(gate, constant)


class LayerNorm(AffineAtToken):
    """A LayerNorm, which is not called: OpenCLIP's and OpenAI's cast to float32 and back."""

    def forward(self, token: Tensor) -> Tensor:
        _, output = _norm(self.module, token)
        return output

    def at(self, token: Tensor) -> TokenStep:
        norm, _ = _norm(self.module, token)
        return norm


class RMSNorm(AffineAtToken):
    """An RMSNorm of PyTorch or of another library, which may be one in name only."""

    def at(self, token: Tensor) -> TokenStep:
        called = Called(self.module)
        norm, output = _norm(self.module, token)
        return norm if called.agrees(output, called.outputs(token)) else called


def _norm(module: Any, token: Tensor) -> tuple[Gated, Tensor]:
    """A norm module as :func:`norm_at` has it, and its output."""
    bias = getattr(module, "bias", None)
    epsilon = getattr(module, "eps", None)
    # Norms of transformers have another name for it.
    epsilon = getattr(module, "variance_epsilon", epsilon)
    shape = getattr(module, "normalized_shape", token.shape[-1:])
    centers = isinstance(module, nn.LayerNorm)
    return norm_at(token, shape, module.weight, bias, epsilon, centers=centers)


def norm_at(
    x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: Any = None, *, centers: bool
) -> tuple[Gated, Tensor]:
    """A norm with its standard deviation at x as a constant, and its output for x.

    An RMSNorm does not center, and divides by the root mean square instead of the deviation.
    """
    if weight is not None:
        weight = weight.to(x.dtype)
    if bias is not None:
        bias = bias.to(x.dtype)
    dims = tuple(range(-len(shape), 0))
    if eps is None:
        # These are PyTorch's defaults.
        eps = 1e-5 if centers else torch.finfo(x.dtype).eps
    if centers and not (x.requires_grad and torch.is_grad_enabled()):
        # One kernel gives output and deviation, but no gradient passes this deviation.
        with torch._C.DisableTorchFunction():
            output, _, scale = torch.native_layer_norm(x, shape, weight, bias, eps)
        return Gated(weight, bias, scale, dims), output
    mean_dims = dims if centers else ()
    mean_square = without_mean(x, mean_dims).square().mean(dims, keepdim=True)
    norm = Gated(weight, bias, (mean_square + eps).rsqrt(), mean_dims)
    return norm, norm.forward(x)


def gate_of(function: Callable[[Tensor], Tensor], token: Tensor, result: Tensor) -> Tensor:
    """The gate f(x) / x of an elementwise function f with this result, and at x = 0 a slope.

    It is the slope from below, as PyTorch's own for ReLU. Without it a unit at zero would pass
    nothing on, though the parts that reach it only add up to zero.
    """
    epsilon = torch.finfo(token.dtype).eps
    zero = function(token.new_full((1,), 0.0))
    below = function(token.new_full((1,), -epsilon))
    slope = (zero - below) / epsilon
    # A division by zero would have NaN as its gradient, even where `where` takes the slope.
    is_zero = token == 0
    return torch.where(is_zero, slope, result / token.masked_fill(is_zero, 1))


# These return one token as it is, since no dropout is active where a score is explained.
_IDENTITIES: Final = (nn.Identity, nn.Dropout, nn.Flatten)


def step_of(step: Any) -> TokenStep:
    """The step that a module is at this moment, known by its class and its hooks."""
    if isinstance(step, TokenStep):
        return step
    if is_plain_linear(step):
        return Linear.of(step)
    if isinstance(step, nn.LayerNorm):
        return LayerNorm(step)
    # An identity is not called, so a hook on it makes a difference to the output that was recorded.
    if isinstance(step, _IDENTITIES):
        return Gated()
    # Each library has a LayerScale and an RMSNorm of its own, so names tell more than classes.
    name = type(step).__name__
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
    # A LoRA layer may be a subclass with its own forward, and a hook may change the output.
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
            branch = call_steps(step.steps, token)
            token = token + branch
        else:
            token = step(token)
    return token


def pull_back(steps: Sequence[Step], token: Tensor, direction: Direction) -> Direction:
    """Take a direction on the output of some steps to their input, which is a token (B, D).

    UnsupportedModelError for a step that is no linear map, known norm or activation.
    """
    if not steps:
        return direction
    first = step_of(steps[0])
    later_steps = steps[1:]
    if later_steps:
        direction = pull_back(later_steps, first.forward(token), direction)
    return first.pull(direction, token)


def push_forward(steps: Sequence[Step], token: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Send vectors (B, n, D), parts of a token (B, D), through some steps.

    It is the transpose of :func:`pull_back`: it returns the steps' output for the token, and what
    each vector adds to this output beside the constant.
    """
    for step in map(step_of, steps):
        vectors = step.push(vectors, token[:, None])
        token = step.forward(token)
    return token, vectors


def needs_token(steps: Sequence[Step]) -> bool:
    """Whether the direction that the steps take back depends on the token, as at a norm."""
    return not all(isinstance(step_of(step), (Linear, Gated)) for step in steps)


def step_parameters(step: Step) -> list[Tensor]:
    """The parameters of a step. A view, such as a transposed projection, gives its parameter."""
    parameters = []
    for tensor in step.parameters():
        parameters.append(tensor if tensor._base is None else tensor._base)
    return parameters


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """Split the last dimension of tokens by head, (..., H d) -> (..., H, d)."""
    return tokens.reshape(*tokens.shape[:-1], heads, -1)


_TIMM_MLP: Final = ("fc1", "act", "drop1", "norm", "fc2", "drop2")
_MLPS: Final[tuple[tuple[str, ...], ...]] = (
    _TIMM_MLP,
    ("fc1", "activation_fn", "fc2"),
    ("dense", "intermediate_act_fn"),
)
"""The module names of the libraries' MLPs, in the order in which they run."""


def flattened(modules: Iterable[Step]) -> tuple[Step, ...]:
    """The steps of some modules in a row; `Sequential` and the libraries' MLPs are taken apart.

    An MLP is known by the names of its modules alone, so callers compare the output of the steps
    with the output of the module.
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
    children: dict[str, Any] = {
        name: child for name, child in module._modules.items() if child is not None
    }
    if type(module) is nn.Sequential:
        return flattened(children.values())
    class_name = type(module).__name__
    _, activation, *later_names = _TIMM_MLP
    # timm's SwiGLU has two maps in place of the first one.
    if class_name == "SwiGLU" and children.keys() == {"fc1_g", "fc1_x", activation, *later_names}:
        gate = (children["fc1_g"], children[activation])
        gated = GatedLinear(gate, children["fc1_x"])
        return gated, *flattened(children[name] for name in later_names)
    # timm's GluMlp has the names of its MLP, but chunks what fc1 returns.
    if "GluMlp" not in class_name:
        for names in _MLPS:
            if children.keys() == set(names):
                return flattened(children[name] for name in names)
    return (module,)
