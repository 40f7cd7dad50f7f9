"""What sees a forward in one thread: hooks on modules, and the functions of torch watched."""

import sys
import threading
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext

from ..errors import CaptureError, UnsupportedModelError
from ..models.attentions import Attention, with_tensor
from ..models.library import mark_own_hook, modules_of
from .reads import AttentionRead

Arguments = tuple[Any, ...]
_Hook = Callable[..., Any]


class _Uncompiled:
    """Makes torch.compile run what it compiled as it was written, since its code passes hooks by.

    PyTorch has one stance for all threads, so it is set with the first and put back with the last.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._stance: Any = None

    def __enter__(self) -> None:
        with self._lock:
            # Nothing was compiled if the compiler was never imported. PyTorch before 2.6 has no
            # stance.
            may_be_compiled = "torch._dynamo" in sys.modules
            has_stance = hasattr(torch.compiler, "set_stance")
            if may_be_compiled and has_stance and self._stance is None:
                try:
                    self._stance = torch.compiler.set_stance("force_eager")
                except RuntimeError as error:
                    # PyTorch's only reason is that compiled code runs.
                    raise CaptureError(
                        "a map was asked for inside a function that torch.compile compiled, where "
                        "no hook can be relied on; expected a call from code that is not compiled. "
                        "Call the method outside of that function, or decorate what calls it with "
                        "torch.compiler.disable."
                    ) from error
            # An enter that failed has no exit, so this one counts only now.
            self._running += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._running -= 1
            if self._stance is not None and not self._running:
                self._stance.__exit__(None, None, None)
                self._stance = None


uncompiled = _Uncompiled()


def is_compiled(forward: Any, model: nn.Module) -> bool:
    """Whether torch.compile compiled a forward function, a model or a part of them.

    Compiled code inside of a function that is no module is not seen.
    """
    if hasattr(forward, "_torchdynamo_orig_callable"):
        return True
    modules = modules_of(model)
    if isinstance(forward, nn.Module):
        modules += modules_of(forward)
    return any(
        module._compiled_call_impl is not None or hasattr(module, "_orig_mod") for module in modules
    )


def modules_are_tracked() -> bool:
    """Whether somebody hooks all modules at once, as torch's FlopCounterMode does.

    Its tracker asks each tensor that requires a gradient for its place in the graph, and a view
    that was made without a graph has none.
    """
    tracked = nn.modules.module
    return bool(tracked._global_forward_pre_hooks or tracked._global_forward_hooks)


class Hooks:
    """Forward hooks that act in the thread that set them and are all taken away again.

    A hook that must run, so that no part is left out of a map, has the `name` of its module.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._is_in_hook = False
        # What is taken away in the end: handles of torch, and a `Watch`.
        self.handles: list[Any] = []
        # The hooks that must run and have not, with the names of their modules for an error.
        self.unseen: dict[object, str] = {}

    def before(
        self, module: nn.Module, hook: _Hook, name: str = "", *, first: bool = False
    ) -> None:
        """Call `hook(args, kwargs)` before the module runs.

        If it returns a tensor, the module gets that in place of its first tensor. It runs after the
        hooks that are there already, or with `first` before them.
        """

        def enter(args: Arguments, kwargs: dict[str, Any]) -> Any:
            replaced = hook(args, kwargs)
            if replaced is None:
                return None
            if args:
                # The first argument may be a list that begins with the tensor.
                return (with_tensor(args[0], replaced), *args[1:]), kwargs
            keyword = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
            return args, {**kwargs, keyword: replaced}

        # Keywords are needed: transformers hands hidden_states to an attention by keyword.
        guarded = self._guarded(enter, name)
        handle = module.register_forward_pre_hook(guarded, with_kwargs=True, prepend=first)
        self.handles.append(handle)

    def after(self, module: nn.Module, hook: _Hook, name: str = "", *, first: bool = False) -> None:
        """Call `hook(args, result)` after the module ran.

        What it returns takes the place of the result, unless that is None.
        """
        guarded = self._guarded(hook, name)
        try:
            self.handles.append(module.register_forward_hook(guarded, prepend=first))
        except RuntimeError as error:
            # A module that torch.jit made takes no such hook.
            raise UnsupportedModelError(
                f"a {type(module).__name__} cannot be watched ({error}); put the original module "
                "in its place, or use a method that does not look there, such as last-grad."
            ) from error

    def remove(self) -> None:
        """Take all hooks away."""
        for handle in self.handles:
            handle.remove()

    def _guarded(self, hook: _Hook, name: str) -> _Hook:
        """A hook that acts in the forward alone: in its thread, and not inside another hook."""
        if name:
            self.unseen[hook] = name

        def guarded(_: nn.Module, *call: Any) -> Any:
            # The user may serve other requests with the same model in other threads. Their forward
            # may meet the hook while it is being set or removed, and then without kwargs.
            if threading.get_ident() != self._thread:
                return None
            # A hook may run a module once more, which is no part of the forward.
            if self._is_in_hook:
                return None
            self.unseen.pop(hook, None)
            self._is_in_hook = True
            try:
                return hook(*call)
            finally:
                self._is_in_hook = False

        return mark_own_hook(guarded)


# Attention watched where it runs

# Torch's own functions as they are at the import, before anybody may put others in their place.
_FUNCTIONS: Final = {value: name for name, value in vars(F).items() if callable(value)}
_FUSED: Final = F.scaled_dot_product_attention
_MULTIHEAD: Final = F.multi_head_attention_forward
_SOFTMAXES: Final = {F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax}
# Functions that take type or shape from a second tensor, and none of its numbers.
_LIKE: Final = {Tensor.to, Tensor.type_as, Tensor.expand_as, Tensor.view_as}
# Products of two tensors, and the place of the first of them among the arguments.
_MATRIX_PRODUCTS: Final = {
    **dict.fromkeys((torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__), 0),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm), 1),
}


def _original(func: Any) -> Any:
    """Torch's own function, if `func` is one that somebody put in its place.

    Torch hands a function over by its name in `torch.nn.functional`, so the other one arrives here.
    It has called the original already, and would do its own work twice.
    """
    names = [name for name, value in vars(F).items() if value is func]
    for original, original_name in _FUNCTIONS.items():
        if original_name in names:
            return original
    return func


def _hands_itself_over(function: Any) -> bool:
    """Whether a function is torch's own Python code, which asks first whether a mode is on."""
    if not isinstance(function, types.FunctionType):
        return False
    return "has_torch_function" in function.__code__.co_names


def _without_handing_over(function: Any) -> Callable[..., Any]:
    """A copy of a function of torch that runs its own code under a mode.

    The function finds `has_torch_function` among its globals, so the copy gets globals in which no
    tensor has one. All other names are as they are now, so what stands in their place is used.
    """
    names = dict(function.__globals__, has_torch_function=lambda *_: False)
    copy = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


class Product(NamedTuple):
    """A tensor on the way from a product of queries and keys to weights, and what it is made of."""

    tensor: Tensor  # kept alive, since Python uses the id of a freed one again
    is_weights: bool  # whether it has passed the softmax; before that it is logits
    query: Tensor | None = None
    key: Tensor | None = None


See = Callable[[AttentionRead], "Tensor | None"]
"""What to do with an attention that ran; a tensor takes the place of its heads' outputs."""


@dataclass(eq=False)
class _Running:
    """An attention module that runs, and what was seen in it."""

    attention: Attention
    name: str
    see: See
    products: dict[int, Product] = field(default_factory=dict)
    reads: int = 0
    # Raised when the module is left, since torch takes a TypeError inside of an operator for its
    # own.
    refusal: UnsupportedModelError | None = None

    def made_of(self, args: Any) -> list[Product]:
        """What the tensors among some arguments were made of."""
        keys = (id(tensor) for tensor in _tensors(args))
        return [self.products[key] for key in keys if key in self.products]

    def follow(self, func: Any, args: Any, out: Any) -> None:
        """Follow weights or logits through casts, masks, views, dropout, mixes of heads."""
        sources = self.made_of(args[:1] if func in _LIKE else args)
        if not sources:
            return
        source = sources[0]
        query, key = source.query, source.key
        if len(sources) > 1:
            # A sum of two products, as with relative positions, has no queries and keys of its own.
            query = key = None
        for result in _tensors([out]):
            if not result.is_floating_point() or result.ndim <= 2:
                continue
            # The logits may be keys times queries, which are transposed before their softmax.
            last_strides = source.tensor.stride()[-2:]
            is_transposed = result.stride()[-2:] == last_strides[::-1] and result._is_view()
            if is_transposed:
                product = Product(result, source.is_weights, key, query)
            else:
                product = Product(result, source.is_weights, query, key)
            self.products[id(result)] = product


class Watch(TorchFunctionMode):
    """Sees the functions of torch in this thread, and reads the attention among them.

    That is `scaled_dot_product_attention`, or a softmax and the product of its result with the
    values. It is read where it runs inside an attention module, between `enter` and `leave`.
    """

    sees_all: ClassVar[bool] = False
    """Whether it sees all functions of a forward, or those in attentions alone."""

    def __init__(self, noun: str) -> None:
        super().__init__()
        self._noun = noun
        self._is_on = False
        self._running: _Running | None = None

    def enter(self, attention: Attention, name: str, see: See) -> None:
        """Read the attention of a module that begins to run."""
        self._running = _Running(attention, name, see)
        # A mode costs a call for every function, so it is on inside of attentions alone.
        self.start()

    def start(self) -> None:
        """Begin to see functions; harmless where it does already."""
        if not self._is_on:
            self.__enter__()  # type: ignore[no-untyped-call]
            self._is_on = True

    # It is called as the handles of hooks have it, since `Hooks.handles` holds a watch as well.
    def remove(self) -> None:
        """See functions no more; harmless where it does not."""
        if self._is_on:
            self._is_on = False
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def leave(self) -> None:
        """Read no further in the module; UnsupportedModelError unless one attention was read."""
        if not self.sees_all:
            self.remove()
        running = self._running
        self._running = None
        if running is None:
            return
        if running.refusal is not None:
            raise running.refusal
        if not running.reads:
            raise self._refused(
                running.name,
                "shows no attention: neither scaled_dot_product_attention, nor a softmax and its "
                "product with values",
            )

    def _refused(self, name: str, what: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{name} of the {self._noun} {what}, so it cannot be read; use a method of Captum "
            "that does not look inside, such as Occlusion."
        )

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        running = self._running
        if isinstance(func, types.FunctionType) and func not in _FUNCTIONS:
            func = _original(func)
        if running is None:
            return self.run(func, args, kwargs)
        if func is _MULTIHEAD:
            return self._multihead(running, args, kwargs)
        if func is _FUSED:
            return self._fused(running, args, kwargs)
        if func in _MATRIX_PRODUCTS or func in _SOFTMAXES:
            return self._explicit(running, func, args, kwargs)
        out = self.run(func, args, kwargs) if self.sees_all else func(*args, **kwargs)
        # There is nothing to follow in an attention that is one fused function.
        if running.products:
            running.follow(func, args, out)
        return out

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a function that is no attention's; a subclass may put another result in its place."""
        return func(*args, **kwargs)

    def _multihead(self, running: _Running, args: Any, kwargs: Any) -> Any:
        """Run torch's own code, which hands itself over to a mode as a whole, under this one."""
        modes = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        # Torch takes a mode off the stack while it acts. `torch.device(...)` is a mode, too, which
        # only makes new tensors elsewhere.
        is_alone = all(type(mode) is DeviceContext for mode in modes)
        if not (is_alone and _hands_itself_over(_MULTIHEAD)):
            running.refusal = self._refused(running.name, "runs under another torch function mode")
            return _MULTIHEAD(*args, **kwargs)
        with self:
            return _without_handing_over(_MULTIHEAD)(*args, **kwargs)

    def _fused(self, running: _Running, args: Any, kwargs: Any) -> Any:
        """Run torch's fused attention, and read its arguments."""
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        out = _FUSED(*args, **kwargs)
        return self._seen(
            running,
            out,
            query=call["query"],
            key=call["key"],
            value=call["value"],
            mask=call.get("attn_mask"),
            causal=call.get("is_causal", False),
            scale=call.get("scale"),
        )

    def _explicit(self, running: _Running, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a softmax or a product, and note what its result is made of."""
        out = func(*args, **kwargs)
        if func in _SOFTMAXES:
            self._note_softmax(running, args, kwargs, out)
            return out
        place = _MATRIX_PRODUCTS[func]
        first, second = (*args, *kwargs.values())[place : place + 2]
        is_product = first.ndim == second.ndim > 2
        sources = running.made_of(args)
        weights = next((source for source in sources if source.is_weights), None)
        if is_product and weights is not None and first is weights.tensor:
            parts = {"query": weights.query, "key": weights.key, "weights": first}
            return self._seen(running, out, value=second, **parts)
        if weights is not None:
            # A matrix mixes the heads' weights, so no query and key belong to the result.
            running.products[id(out)] = Product(out, is_weights=True)
        elif is_product:
            # The keys enter their product with the queries transposed.
            running.products[id(out)] = Product(out, False, query=first, key=second.mT)
        return out

    def _note_softmax(self, running: _Running, args: Any, kwargs: Any, out: Tensor) -> None:
        """Note a softmax over keys as weights, of the queries and keys of its logits."""
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if out.ndim <= 2 or dim not in (-1, out.ndim - 1):
            return
        logits = args[0] if args else kwargs["input"]
        source = running.products.get(id(logits))
        if source is None:
            running.products[id(out)] = Product(out, is_weights=True)
        else:
            running.products[id(out)] = Product(out, True, source.query, source.key)

    def _seen(self, running: _Running, out: Tensor, **parts: Any) -> Tensor:
        """Hand the attention that ran to `see`, and return the heads' outputs that it puts there.

        They keep the layout in which the attention gave them.
        """
        running.reads += 1
        heads = running.attention.heads
        returned = out
        # Images and heads may share an axis, (B H, s, d).
        is_flat = out.ndim == 3
        if is_flat and len(out) % heads == 0:
            out = out.view(-1, heads, *out.shape[1:])
            for name, part in parts.items():
                if isinstance(part, Tensor) and part.ndim == 3 and len(part) % heads == 0:
                    parts[name] = part.reshape(-1, heads, *part.shape[1:])
        read = _as_read(running, out, **parts)
        if read is None or running.reads > 1:
            # The first reason is the one that is told.
            if running.refusal is None:
                problem = "runs more than one attention, as windows do"
                if read is None:
                    problem = f"runs an attention whose output is {tuple(returned.shape)}"
                running.refusal = self._refused(running.name, problem)
            return returned
        try:
            replaced = running.see(read)
        except UnsupportedModelError as error:
            running.refusal = error
            return returned
        # What follows is made of the tensor that is kept, so that a gradient reaches it.
        if replaced is not None:
            out = replaced
        return out.flatten(0, 1) if is_flat else out


def _as_read(running: _Running, out: Tensor, **parts: Any) -> AttentionRead | None:
    """A read in whose tensors every head has its own keys and values; None for other shapes."""
    head_count = out.shape[1] if out.ndim == 4 else 0
    for name in ("key", "value"):
        tensor = parts.get(name)
        if tensor is None:
            continue
        if tensor.ndim != 4 or head_count == 0 or head_count % tensor.shape[1] != 0:
            return None
        if tensor.shape[0] not in (1, out.shape[0]):
            return None
        tensor = tensor.expand(out.shape[0], -1, -1, -1)
        # With grouped queries the heads of a group share keys and values.
        group_size = head_count // tensor.shape[1]
        if group_size > 1:
            tensor = tensor.repeat_interleave(group_size, 1)
        parts[name] = tensor
    for name in ("query", "weights"):
        tensor = parts.get(name)
        if tensor is not None and tensor.ndim == 4:
            parts[name] = tensor.expand(*out.shape[:2], -1, -1)
    if parts.get("weights") is None and parts.get("query") is None:
        return None
    return AttentionRead(out=out, attention=running.attention, name=running.name, **parts)


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    """The tensors among values, and in their tuples and lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
