"""The only place that registers hooks: they act in one thread, and all go away again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import nn

from ..models.unmodified import mark_own_hook


class Hooks:
    """Forward hooks that act in the thread that set them and are all taken away again."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._handles: list[Any] = []

    def before(
        self, module: nn.Module, hook: Callable[[tuple[Any, ...], dict[str, Any]], Any]
    ) -> None:
        """Call `hook(args, kwargs)` before the module runs; what it returns replaces args[0]."""

        def guarded(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
        ) -> Any:
            # Another thread's forward may catch the hook while it comes or goes, without kwargs.
            if threading.get_ident() != self._thread:
                return None
            replaced = hook(args, kwargs or {})
            return None if replaced is None else ((replaced, *args[1:]), kwargs or {})

        handle = module.register_forward_pre_hook(mark_own_hook(guarded), with_kwargs=True)
        self._handles.append(handle)

    def after(self, module: nn.Module, hook: Callable[[Any], Any]) -> None:
        """Call `hook(result)` after the module ran; what it returns, if not None, replaces it."""
        self.replace(module, lambda _, result: hook(result))

    def replace(self, module: nn.Module, hook: Callable[[tuple[Any, ...], Any], Any]) -> None:
        """Call `hook(args, result)` after the module ran, for what it is to return."""

        def guarded(_: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
            return hook(args, result) if threading.get_ident() == self._thread else None

        self._handles.append(module.register_forward_hook(mark_own_hook(guarded)))

    def remove(self) -> None:
        """Take all hooks away."""
        for handle in self._handles:
            handle.remove()
