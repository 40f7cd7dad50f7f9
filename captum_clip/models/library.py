"""Whether a module runs the code of its library, so that what it computes is known."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

from ..errors import UnsupportedModelError

Hook = TypeVar("Hook", bound=Callable[..., Any])

_MARK = "_captum_clip_recording"
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
# not the whole of torch: a compiled or traced model is of one of its classes as well
_PACKAGES = {"torch.nn"}


def add_packages(names: Iterable[str]) -> None:
    """Add packages whose modules count as library code; families name theirs."""
    _PACKAGES.update(names)


def mark_own_hook(hook: Hook) -> Hook:
    """Mark a hook of a recording, which does not change what other code computes."""
    setattr(hook, _MARK, True)
    return hook


def has_no_foreign_hooks(module: nn.Module) -> bool:
    """Whether neither a hook nor a method patched on the object changes what it computes."""
    patched = (
        callable(value) and hasattr(type(module), name)
        for name, value in vars(module).items()
        if name != "_compiled_call_impl"  # of torch.compile, which computes the same
    )
    return not any(patched) and not foreign_hooks(module)


def foreign_hooks(module: nn.Module) -> list[Any]:
    """The hooks of a module that no recording set."""
    hooks = (hook for name in _HOOKS for hook in tuple(getattr(module, name).values()))
    return [hook for hook in hooks if not hasattr(hook, _MARK)]


def is_librarys(function: Any) -> bool:
    """Whether a function was written in PyTorch, in a library of models or in Python's own."""
    # `__module__` would be what `functools.wraps` copied of another function
    written = str(getattr(function, "__globals__", {}).get("__name__", "")).partition(".")[0]
    packages = {package.partition(".")[0] for package in _PACKAGES}
    return written in packages | {"huggingface_hub"} or written in sys.stdlib_module_names


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
    """Whether a module is of a class that a library defines, without foreign hooks."""
    defined = f"{type(module).__module__}."
    known = any(defined.startswith(f"{package}.") for package in _PACKAGES)
    return known and has_no_foreign_hooks(module)


def runs_library_code(module: nn.Module) -> bool:
    """Whether a module's forward was written in one of the libraries that models come from."""
    # of a subclass or a patched class too the function tells where it was written
    written = str(getattr(type(module).forward, "__module__", "")).partition(".")[0]
    known = any(package.partition(".")[0] == written for package in _PACKAGES)
    return known and "forward" not in vars(module)


def is_linear(module: Any) -> bool:
    """Whether a module computes W x + b and nothing else."""
    return (
        isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and has_no_foreign_hooks(module)
        and module.weight.is_floating_point()
    )
