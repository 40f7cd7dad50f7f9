"""Whether a module runs the code of its library, so that what it computes is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, TypeVar

from torch import nn

from ..errors import UnsupportedModelError

Hook = TypeVar("Hook", bound=Callable[..., Any])

_MARK = "_captum_clip_recording"
_LIBRARIES = ("torch", "transformers", "timm", "open_clip")
_PACKAGES = ("torch.nn.", "transformers.models.", "timm.", "open_clip.")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def mark_own_hook(hook: Hook) -> Hook:
    """Mark a hook of a recording, which changes nothing for anybody else."""
    setattr(hook, _MARK, True)
    return hook


def has_no_foreign_hooks(module: nn.Module) -> bool:
    """Whether neither a hook nor another method on the object itself changes what it computes."""
    hooks = (hook for name in _HOOKS for hook in tuple(getattr(module, name).values()))
    patched = (
        callable(value) and hasattr(type(module), name)
        for name, value in vars(module).items()
        if name != "_compiled_call_impl"  # of torch.compile, which computes the same
    )
    return not any(patched) and all(hasattr(hook, _MARK) for hook in hooks)


@contextmanager
def expect_library_parts(owner: object) -> Iterator[None]:
    """Raise UnsupportedModelError for a part of a model that is not what its library puts there."""
    try:
        yield
    except AttributeError as error:
        raise UnsupportedModelError(
            f"a part of the {type(owner).__name__} is not its library's own ({error}); put the "
            "library's module in the place of what wraps or replaces it, and watch it with a "
            "forward hook."
        ) from error


def is_unmodified(module: nn.Module, kinds: tuple[type, ...]) -> bool:
    """Whether a module is exactly of one of these classes, without foreign hooks."""
    return type(module) in kinds and has_no_foreign_hooks(module)


def is_library_class(module: nn.Module) -> bool:
    """Whether a module is of a class of one of the libraries itself, without foreign hooks."""
    return type(module).__module__.startswith(_PACKAGES) and has_no_foreign_hooks(module)


def runs_library_code(module: nn.Module) -> bool:
    """Whether a module's forward is code of one of the libraries that models come from."""
    # of a subclass or a patched class too the function says where it was written
    written = str(getattr(type(module).forward, "__module__", ""))
    return "forward" not in vars(module) and written.split(".")[0] in _LIBRARIES


def is_linear(module: Any) -> bool:
    """Whether a module computes W x + b and nothing else."""
    return (
        isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and has_no_foreign_hooks(module)
        and module.weight.is_floating_point()
    )


def nonlinear_parts(owner: Any, names: Iterable[str]) -> Iterator[str]:
    """Which of the parts of these names compute something else, in words."""
    for name in names:
        part = attrgetter(name)(owner)
        if not is_linear(part):
            yield f"a {type(part).__name__} as {name.rpartition('.')[2]}"
