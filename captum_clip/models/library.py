"""What a module runs: its library's own code, which a forward may leave out, and what wraps it."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from operator import attrgetter, is_
from pathlib import Path
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

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
_classes: WeakKeyDictionary[type, tuple[tuple[Any, ...] | None, bool]] = WeakKeyDictionary()
"""What a class was made of when it was last looked at, and whether it was as written."""


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
    return all(map(_is_as_written, {*map(type, modules)})) and all(
        map(has_no_foreign_hooks, modules)
    )


def _is_as_written(kind: type) -> bool:
    """Whether a class is a library's, and its functions those of the library's files."""
    return _is_in_packages(kind) and all(map(_has_own_functions, kind.__mro__[:-1]))


def _is_in_packages(kind: type) -> bool:
    defined = f"{kind.__module__}."
    return any(defined.startswith(f"{package}.") for package in _PACKAGES)


def _has_own_functions(kind: type) -> bool:
    """Whether a class has the functions of its file, and these use those of their libraries."""
    before, written = _classes.get(kind, (None, False))
    own = vars(kind)
    is_base = kind is nn.Module or not _is_in_packages(kind)
    names = _OF_A_CALL & own.keys() if is_base else own
    values = tuple(own[name] for name in names)
    functions = [f for f in map(_function_of, values) if isinstance(f, FunctionType)]
    used = (
        f.__globals__.get(name) for f in map(_innermost, functions) for name in f.__code__.co_names
    )
    now = (*values, *(value for value in used if isinstance(value, FunctionType)))
    if before is None or len(now) != len(before) or not all(map(is_, now, before)):
        file, root = _file(kind.__module__), _root(kind.__module__)
        written = (
            not any(map(_is_unknown, values))
            and all(_innermost(f, root).__code__.co_filename == file for f in functions)
            and all(map(_is_librarys, now[len(values) :]))
        )
        _classes[kind] = now, written
    return written


def _function_of(value: Any) -> Any:
    """The function in what a class holds: a method, static or not, or a property."""
    if isinstance(value, property):
        return value.fget
    return value.func if isinstance(value, cached_property) else getattr(value, "__func__", value)


def _is_unknown(value: Any) -> bool:
    """Whether something acts as a method and is no function, such as a `partialmethod`."""
    known = isinstance(
        _function_of(value), (FunctionType, GetSetDescriptorType, MemberDescriptorType)
    )
    return hasattr(type(value), "__get__") and not known


def _innermost(function: Any, root: str = "") -> Any:
    """The function that decorators wrap, those whose code lies under `root`."""
    while hasattr(function, "__wrapped__") and function.__code__.co_filename.startswith(root):
        function = function.__wrapped__
    return function


def _is_librarys(function: Any) -> bool:
    """Whether a function and all that it wraps stand in the files of PyTorch or of a library."""
    roots = tuple(map(_root, {"torch", *_PACKAGES}))
    while isinstance(function, FunctionType):
        if not function.__code__.co_filename.startswith(roots):
            return False
        function = getattr(function, "__wrapped__", None)
    return True


def _file(module: str) -> str:
    return getattr(sys.modules.get(module), "__file__", None) or "?"


def _root(module: str) -> str:
    """The folder of a package, or the file of a module that is none."""
    path = Path(_file(module.partition(".")[0]))
    return str(path.parent if path.name == "__init__.py" else path)


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
        number = getattr(part, "attention_dropout", getattr(part, "dropout", None))
        rates = {
            "dropout": float(part.p) if isinstance(part, _DropoutNd) else None,
            "patch dropout": getattr(part, "prob", None),
            type(part).__name__: getattr(part, "drop_prob", None),  # DropPath is no Dropout
            "attention dropout": number,  # often not a module
        }
        for what, rate in rates.items():
            if isinstance(rate, float) and rate > 0:
                return f"{what} {rate:g}"
    return None


def checkpoints(module: nn.Module) -> bool:
    """Whether blocks are run again in the backward, where no hook would be left to see them."""
    return any(
        getattr(part, "grad_checkpointing", False)
        or (getattr(part, "gradient_checkpointing", False) and part.training)
        for part in module.modules()
    )
