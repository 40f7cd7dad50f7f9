"""Hooks that act in one thread and are all taken away again; what they need of PyTorch."""

import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..models.attentions import with_tensor
from ..models.library import mark_own_hook, modules_of

Arguments = tuple[Any, ...]
Hook = Callable[..., Any]


class _Uncompiled:
    """Makes torch.compile run what it compiled as it was written, since its code passes hooks by.

    PyTorch has one stance for all threads, so it is set with the first and put back with the last.
    """

    def __init__(self) -> None:
        self._lock, self._running = threading.Lock(), 0
        self._stance: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self._running += 1
            # without its compiler nothing was compiled, and before PyTorch 2.6 there was no stance
            is_new = "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance")
            if is_new and self._stance is None:
                self._stance = torch.compiler.set_stance("force_eager")

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._running -= 1
            if self._stance is not None and not self._running:
                self._stance.__exit__(None, None, None)
                self._stance = None


uncompiled = _Uncompiled()


def is_compiled(forward: Any, model: nn.Module) -> bool:
    """Whether torch.compile made something of a forward function or a model, which runs as written.

    Code that only the forward function of a user's holds is not seen.
    """
    modules = modules_of(model) + (modules_of(forward) if isinstance(forward, nn.Module) else [])
    return hasattr(forward, "_torchdynamo_orig_callable") or any(
        layer._compiled_call_impl is not None or hasattr(layer, "_orig_mod") for layer in modules
    )


class Hooks:
    """Forward hooks that act in the thread that set them and are all taken away again.

    A hook's `part` names its module where it must run, so that nothing is left out.
    """

    def __init__(self) -> None:
        self._thread, self._acts = threading.get_ident(), False
        self.handles: list[Any] = []
        self.unseen: dict[object, str] = {}

    def before(self, module: nn.Module, hook: Hook, name: str = "", *, first: bool = False) -> None:
        """Call `hook(args, kwargs)` before the module runs; a tensor replaces its first one.

        It runs after the hooks that are there, or `first`.
        """

        def enter(args: Arguments, kwargs: dict[str, Any]) -> Any:
            replaced = hook(args, kwargs)
            if replaced is None:
                return None
            if args:  # the first may be a list that begins with the tensor
                return (with_tensor(args[0], replaced), *args[1:]), kwargs
            first = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
            return args, {**kwargs, first: replaced}

        # transformers hands hidden_states to an attention by keyword
        guarded = self._guarded(enter, name)
        handle = module.register_forward_pre_hook(guarded, with_kwargs=True, prepend=first)
        self.handles.append(handle)

    def after(
        self,
        module: nn.Module,
        hook: Hook,
        name: str = "",
        *,
        first: bool = False,
        nested: bool = False,
    ) -> None:
        """Call `hook(args, result)` after the module ran, for what it is to return.

        With `nested` also where another hook runs the module, which is not the forward.
        """
        guarded = self._guarded(hook, name, nested)
        try:
            self.handles.append(module.register_forward_hook(guarded, prepend=first))
        except RuntimeError as error:  # of what torch.jit made
            raise UnsupportedModelError(
                f"a {type(module).__name__} cannot be watched ({error}); put the original module "
                "in its place, or use a method that does not look there, such as last-grad."
            ) from error

    def remove(self) -> None:
        """Take all hooks away."""
        for handle in self.handles:
            handle.remove()

    def _guarded(self, hook: Hook, name: str, nested: bool = False) -> Hook:
        if name:
            self.unseen[hook] = name

        def guarded(_: nn.Module, *call: Any) -> Any:
            # Another thread's forward may catch the hook while it comes or goes, without kwargs.
            # the user may serve other requests with the same model meanwhile
            if threading.get_ident() != self._thread or (self._acts and not nested):
                return None
            self.unseen.pop(hook, None)
            outer, self._acts = self._acts, True
            try:
                return hook(*call)
            finally:
                self._acts = outer

        return mark_own_hook(guarded)
