"""Whether a module runs the code of its library, so that what it computes is known."""

import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from types import FunctionType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..errors import UnsupportedModelError

Hook = TypeVar("Hook", bound=Callable[..., Any])

_MARK = "_captum_clip_recording"
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
# not the whole of torch: a compiled or traced model is of one of its classes as well
_PACKAGES = {"torch.nn"}
_MODULES: set[str] = set()  # copies of a library's file, whose code is the same
_methods: WeakKeyDictionary[type, tuple[tuple[Any, ...], list[FunctionType]]] = WeakKeyDictionary()
"""The attributes that a class had when it was last looked at, and its methods of no library."""


def add_packages(names: Iterable[str]) -> None:
    """Add packages whose modules count as library code; families name theirs."""
    _PACKAGES.update(names)


def add_module(name: str) -> None:
    """Add a module, such as a copy of a library's file, as library code, and nothing around it."""
    _MODULES.add(name)


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
    module = str(getattr(function, "__globals__", {}).get("__name__", ""))
    written, packages = module.partition(".")[0], {p.partition(".")[0] for p in _PACKAGES}
    known = written in packages | {"huggingface_hub"} or written in sys.stdlib_module_names
    return known or module in _MODULES


def has_global_hooks() -> bool:
    """Whether somebody's hook runs in every module, and may change what any of them computes."""
    hooks = (hook for name in _HOOKS for hook in getattr(torch_module, f"_global{name}").values())
    return any(not hasattr(hook, _MARK) and not is_librarys(hook) for hook in hooks)


def foreign_methods(kind: type) -> list[FunctionType]:
    """The methods of a class, and of those that it is made from, that no library wrote."""
    found = []
    for base in kind.__mro__[:-1]:
        now = tuple(vars(base).values())
        before, methods = _methods.get(base, ((), []))
        if len(now) != len(before) or not all(map(operator.is_, now, before)):
            functions = (getattr(value, "__func__", value) for value in now)  # of static methods
            methods = [f for f in functions if isinstance(f, FunctionType) and not is_librarys(f)]
            _methods[base] = now, methods
        found += methods
    return found


def _attends_as_written(module: nn.Module) -> bool:
    """Whether the function that a module of transformers attends with is the library's."""
    name = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if name is None:
        return True
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    function = ALL_ATTENTION_FUNCTIONS.get(name)  # of "eager" there is none
    return function is None or is_librarys(function)


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


def is_library_class(module: nn.Module) -> bool:
    """Whether a module is of a class that a library defines, as it is there, without foreign hooks.

    So what it computes is known: neither a method of the object or the class nor the function of
    its attention was exchanged.
    """
    defined = f"{type(module).__module__}."
    known = any(defined.startswith(f"{package}.") for package in {*_PACKAGES, *_MODULES})
    return known and has_no_foreign_hooks(module) and runs_library_code(module)


def runs_library_code(module: nn.Module) -> bool:
    """Whether a module's methods and its attention were written in the libraries of models."""
    own = _is_merged(module) or not foreign_methods(type(module))
    return own and "forward" not in vars(module) and _attends_as_written(module)


def _is_merged(module: Any) -> bool:
    """Whether a module is an adapter of peft that runs its base layer alone, merged."""
    merged = type(module).__module__.startswith("peft.") and getattr(module, "merged", False)
    return bool(merged and not module.disable_adapters)


def is_linear(module: Any, *, hooked: bool = False) -> bool:
    """Whether a module computes W x + b and nothing else; it may be `hooked`."""
    if not has_no_foreign_hooks(module) and not (hooked and "forward" not in vars(module)):
        return False
    if _is_merged(module):
        return is_linear(module.base_layer, hooked=hooked)
    return (
        isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and not foreign_methods(type(module))
        and module.weight.is_floating_point()
    )


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
