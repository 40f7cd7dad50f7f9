"""The only place that registers hooks: they act in one thread, and all go away again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import CaptureError
from ..models.unmodified import mark_own_hook

Args = tuple[Any, ...]


class Hooks:
    """Forward hooks that act in the thread that set them and are all taken away again.

    A hook's `part` says what its module is where it must run, so that nothing is left out.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._handles: list[Any] = []
        self._unseen: dict[object, str] = {}

    def before(
        self, module: nn.Module, hook: Callable[[Args, dict[str, Any]], Any], part: str = ""
    ) -> None:
        """Call `hook(args, kwargs)` before the module runs; what it returns replaces args[0]."""
        if part:
            self._unseen[hook] = part

        def guarded(_: nn.Module, args: Args, kwargs: dict[str, Any] | None = None) -> Any:
            # Another thread's forward may catch the hook while it comes or goes, without kwargs.
            if threading.get_ident() != self._thread:
                return None
            self._unseen.pop(hook, None)
            replaced = hook(args, kwargs or {})
            return None if replaced is None else ((replaced, *args[1:]), kwargs or {})

        handle = module.register_forward_pre_hook(mark_own_hook(guarded), with_kwargs=True)
        self._handles.append(handle)

    def after(self, module: nn.Module, hook: Callable[[Any], Any], part: str = "") -> None:
        """Call `hook(result)` after the module ran; what it returns, if not None, replaces it."""
        self.replace(module, lambda _, result: hook(result), part)

    def replace(self, module: nn.Module, hook: Callable[[Args, Any], Any], part: str = "") -> None:
        """Call `hook(args, result)` after the module ran, for what it is to return."""
        if part:
            self._unseen[hook] = part

        def guarded(_: nn.Module, args: Args, result: Any) -> Any:
            if threading.get_ident() != self._thread:
                return None
            self._unseen.pop(hook, None)
            return hook(args, result)

        self._handles.append(module.register_forward_hook(mark_own_hook(guarded)))

    def remove(self) -> None:
        """Take all hooks away."""
        for handle in self._handles:
            handle.remove()

    def check_all_seen(self) -> None:
        """Raise CaptureError where a hook did not act, so that its part would be left out."""
        for part in self._unseen.values():
            raise CaptureError(
                f"{part} of the vision tower ran without its hooks; it was compiled, or exchanged "
                "during the forward. Explain the model without torch.compile."
            ) from None
