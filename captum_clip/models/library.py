"""What a module runs: its library's own code, which a forward may leave out, and what wraps it."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from operator import attrgetter
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._device import DeviceContext

from ..errors import UnsupportedModelError

Hook = TypeVar("Hook", bound=Callable[..., Any])

_MARK = "_captum_clip_recording"
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_PACKAGES = {"torch.nn"}
_FUNCTIONS = {name: value for name, value in vars(F).items() if callable(value)}
_OF_A_CALL = {"forward", "__call__", "_call_impl", "_wrapped_call_impl", "__getattr__"}
_SLOTS = (GetSetDescriptorType, MemberDescriptorType)


def add_packages(names: Iterable[str]) -> None:
    """Add packages whose code a forward may leave out; families name theirs."""
    _PACKAGES.update(names)


def mark_own_hook(hook: Hook) -> Hook:
    """Mark a hook of a recording, which does not change what other code computes."""
    setattr(hook, _MARK, True)
    return hook


def has_no_foreign_hooks(module: nn.Module) -> bool:
    """Whether a module has neither a hook nor an attribute in the place of a method."""
    kind = type(module)
    patched = (
        callable(value) and hasattr(kind, name)
        for name, value in vars(module).items()
        if name != "_compiled_call_impl"  # of torch.compile, which computes the same
    )
    return not _has_hooks(module) and not any(patched)


def _has_hooks(owner: object, prefix: str = "") -> bool:
    hooks = (hook for name in _HOOKS for hook in tuple(getattr(owner, prefix + name).values()))
    return any(not hasattr(hook, _MARK) for hook in hooks)


def may_be_left_out(modules: Iterable[nn.Module]) -> bool:
    """Whether modules would compute what a library's files say, were they run.

    What is not run cannot be compared. So each is of a class of a library of models, with the
    functions of its file and without hooks, and nothing stands between it and PyTorch's functions.
    """
    if _has_hooks(torch_module, "_global") or torch._C._len_torch_dispatch_stack():
        return False
    modes = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    if any(type(mode) is not DeviceContext for mode in modes):
        return False
    if any(vars(F)[name] is not function for name, function in _FUNCTIONS.items()):
        return False
    modules = {*modules}
    kinds = {*map(type, modules)}
    classes = {base for kind in kinds for base in kind.__mro__[:-1]}
    return (
        all(map(_is_in_packages, kinds))
        and all(map(_is_as_written, classes))
        and all(map(has_no_foreign_hooks, modules))
    )


def _is_in_packages(kind: type) -> bool:
    return f"{kind.__module__}.".startswith(tuple(f"{package}." for package in _PACKAGES))


def _is_as_written(kind: type) -> bool:
    """Whether a class has the functions of its file, and these use those of their libraries.

    Of PyTorch's base class and of classes of no library only a call is looked at.
    """
    file, root = _file(kind.__module__), _root(kind.__module__)
    libraries = tuple(map(_root, {"torch", *_PACKAGES}))
    names: Iterable[str] = vars(kind)
    if kind is nn.Module or not _is_in_packages(kind):
        names = _OF_A_CALL.intersection(names)
    for value in map(vars(kind).__getitem__, names):
        function = _function_of(value)
        if isinstance(function, FunctionType):
            *wrappers, written = _unwrap(function)
            used = map(written.__globals__.get, written.__code__.co_names)
            known = written.__code__.co_filename == file and _lie_under(root, wrappers)
            if not known or not all(_lie_under(libraries, _unwrap(each)) for each in used):
                return False
        elif hasattr(type(value), "__get__") and not isinstance(function, _SLOTS):
            return False  # it acts as a method, such as a `partialmethod`
    return True


def _function_of(value: Any) -> Any:
    """The function in what a class holds: a method, static or not, or a property."""
    if isinstance(value, property):
        return value.fget
    return value.func if isinstance(value, cached_property) else getattr(value, "__func__", value)


def _unwrap(function: Any) -> list[FunctionType]:
    """A function and those that its decorators wrap, the outermost first; none of anything else."""
    functions = []
    while isinstance(function, FunctionType):
        functions.append(function)
        function = getattr(function, "__wrapped__", None)
    return functions


def _lie_under(roots: str | tuple[str, ...], functions: Iterable[FunctionType]) -> bool:
    return all(function.__code__.co_filename.startswith(roots) for function in functions)


def _file(module: str) -> str:
    return getattr(sys.modules.get(module), "__file__", None) or "?"


def _root(module: str) -> str:
    """The folder of a package, or the file of a module that is none."""
    path = _file(module.partition(".")[0])
    return path.removesuffix("__init__.py")


_INNER = {
    "OptimizedModule": "_orig_mod",  # of torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "PeftModel": "base_model.model",  # but of prompts, which `base_model` is without a tuner for
}


def unwrapped(module: Any) -> Any:
    """The module in what torch.compile, data parallelism or peft put around it, or itself."""
    for kind in type(module).__mro__:
        path = _INNER.get(kind.__name__)
        if path and kind.__module__.partition(".")[0] in ("torch", "peft"):
            with expect_library_parts(module):
                return unwrapped(attrgetter(path)(module))
    return module


# attributes that hold the rate of something random -> its name; "" for that of the class
_RATES = {
    "p": "dropout",
    "prob": "patch dropout",
    "drop_prob": "",  # DropPath is no Dropout
    "attention_dropout": "attention dropout",  # often no module
    "dropout": "attention dropout",
}


def refuse_quantised(module: nn.Module) -> None:
    """Raise UnsupportedModelError where a weight of a tower is no plain floating-point number."""
    for path, part in module.named_modules():
        weights = part.parameters(recurse=False)
        plain = all(type(w) is nn.Parameter and w.is_floating_point() for w in weights)
        if not plain or type(part).__module__.startswith("torch.ao."):
            raise UnsupportedModelError(
                f"the {type(part).__name__} {path} of a tower is quantised, so gradients do not "
                "pass it, and its result may depend on the batch; load the model in float32, "
                "float16 or bfloat16."
            )


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


def nondeterminism(module: nn.Module) -> str | None:
    """The part that makes two forwards differ or changes a buffer in training mode, if any."""
    for part in filter(attrgetter("training"), module.modules()):
        if isinstance(part, _BatchNorm):
            return "BatchNorm"
        for name, what in _RATES.items():
            rate = getattr(part, name, None)
            if name == "p" and not isinstance(part, _DropoutNd):  # such as the power of a pool
                continue
            if isinstance(rate, (int, float)) and not isinstance(rate, bool) and rate > 0:
                return f"{what or type(part).__name__} {rate:g}"
    return None


def checkpoints(module: nn.Module) -> bool:
    """Whether blocks are run again in the backward, where no hook would be left to see them."""
    return any(
        getattr(part, "grad_checkpointing", False)
        or (getattr(part, "gradient_checkpointing", False) and part.training)
        for part in module.modules()
    )
