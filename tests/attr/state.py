"""Everything about a model, a tensor and a thread that an explanation must leave as it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


_LARGE = 100_000  # elements; of larger tensors the version tells


def of_tensor(tensor: Tensor) -> dict[str, Any]:
    """A tensor's flags, gradient and values."""
    grad = tensor.grad if tensor.is_leaf else None
    large = tensor.numel() > _LARGE
    return {
        "is itself": id(tensor),
        "requires_grad": tensor.requires_grad,
        "version": None if tensor.is_inference() else tensor._version,
        "grad is itself": id(grad) if grad is not None else None,
        "grad version": grad._version if grad is not None else None,
        "grad": None if grad is None or large else grad.detach().clone(),
        "values": None if large else tensor.detach().clone(),
        "backward hooks": len(getattr(tensor, "_backward_hooks", None) or ()),
    }


def of_model(model: nn.Module) -> dict[str, Any]:
    """Hooks, flags, parameters, buffers and attributes of every submodule."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for kind in _HOOKS:
            found[f"{path}.{kind}"] = list(map(id, getattr(module, kind).values()))
        found[f"{path}.training"] = module.training
        found[f"{path} attributes"] = sorted(vars(module))
        found[f"{path}.forward"] = vars(module).get("forward")
        found[f"{path} class"] = type(module)
        config = getattr(module, "config", None)
        found[f"{path} attention"] = getattr(config, "_attn_implementation", None)
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        found |= {f"{path} {key}": value for key, value in of_tensor(tensor).items()}
    return found


def of_thread() -> dict[str, Any]:
    """Modes of this thread, and what torch keeps for all modules."""
    hooks = [name for name in vars(torch_module) if name.startswith("_global_")]
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "function modes": torch.overrides._get_current_function_mode_stack(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "random state": torch.get_rng_state(),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        **{name: _length(getattr(torch_module, name)) for name in hooks},
    }


def _length(value: Any) -> Any:
    return len(value) if hasattr(value, "__len__") else value


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Nothing was added, taken away or changed."""
    assert before.keys() == after.keys()
    for key, value in before.items():
        now = after[key]
        if isinstance(value, Tensor) and isinstance(now, Tensor):
            assert value.dtype == now.dtype, key
            assert torch.equal(value, now), f"{key} changed"
        else:
            assert value == now, f"{key} changed from {value!r} to {now!r}"


def upset(model: nn.Module) -> nn.Module:
    """Give a model's submodules different flags and gradients, as a user's model may have."""
    generator = torch.Generator().manual_seed(7)
    for index, module in enumerate(model.modules()):
        module.training = index % 3 == 0 and not isinstance(module, nn.BatchNorm2d)
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 4 != 1)
        if index % 2 and parameter.numel() < _LARGE:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = noise.to(parameter.dtype)
    return model
