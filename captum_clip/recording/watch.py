"""Attention read at its kernel, whichever code runs it."""

import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext
from typing_extensions import override

from ..errors import UnsupportedModelError
from ..models.attentions import Attention
from .reads import AttentionRead

_METHODS: Final = (types.MethodDescriptorType, types.MethodWrapperType, types.WrapperDescriptorType)
_FUNCTIONS: Final = {value: name for name, value in vars(F).items() if callable(value)}
_FUSED: Final = F.scaled_dot_product_attention
_MULTIHEAD: Final = F.multi_head_attention_forward
_SOFTMAXES: Final = {F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax}
_WIDE: Final = {torch.float32, torch.float64}
_LIKE: Final = {Tensor.to, Tensor.type_as, Tensor.expand_as, Tensor.view_as}  # a second tensor
# products of two tensors, and where the first of them stands among the arguments
_PRODUCTS: Final = {
    **dict.fromkeys((torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__), 0),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm), 1),
    torch.einsum: 0,
}


def _written(func: Any) -> Any:
    """The function of torch that hands itself over by a name for which another stands now.

    That other one has called it, and would do its own work twice.
    """
    name = next((name for name, value in vars(F).items() if value is func), None)
    return next((own for own, other in _FUNCTIONS.items() if other == name), func)


class Product(NamedTuple):
    """What a tensor of an attention's was made of: a product of queries and keys, or weights."""

    tensor: Tensor  # held, since the id of one that is gone is used again
    is_weights: bool
    query: Tensor | None = None
    key: Tensor | None = None


See = Callable[[AttentionRead], "Tensor | None"]
"""What to do with an attention that ran; a tensor takes the place of its heads' outputs."""


@dataclass(eq=False)
class _Place:
    """An attention module that runs, and what was seen in it."""

    attention: Attention
    name: str
    see: See
    products: dict[int, Product] = field(default_factory=dict)
    reads: int = 0
    refusal: UnsupportedModelError | None = None  # raised when it is left, since torch takes a
    # TypeError inside of an operator for its own
    unlike: str = (
        "shows no attention: neither scaled_dot_product_attention, nor a softmax and its product "
        "with values, nor an operator that computes the same"
    )

    def made_of(self, args: Any) -> list[Product]:
        """What the tensors among some arguments were made of."""
        ids = map(id, _tensors(args))
        return [self.products[each] for each in ids if each in self.products]

    def follow(self, func: Any, args: Any, out: Any) -> bool:
        """Follow weights or logits through casts, masks, views, dropout, mixes of heads."""
        sources = self.made_of(args[:1] if func in _LIKE else args)
        if sources:
            alone = (
                sources[0]
                if len(sources) == 1
                else Product(sources[0].tensor, sources[0].is_weights)
            )
            for each in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(each, Tensor) and each.is_floating_point() and each.ndim > 2:
                    # logits of keys times queries are transposed before their softmax
                    turned = each.stride()[-2:] == alone.tensor.stride()[:-3:-1] and each._is_view()
                    sides = (alone.key, alone.query) if turned else alone[2:]
                    self.products[id(each)] = Product(each, alone.is_weights, *sides)
        return bool(sources)


class Watch(TorchFunctionMode):
    """Sees the functions of torch in this thread, and reads the attention among them.

    That is `scaled_dot_product_attention`, or a softmax and the product of its result with the
    values, or any operator of three such tensors that obeys the law of attention. It is read where
    it runs inside an attention module, between `enter` and `leave`.
    """

    def __init__(self, noun: str) -> None:
        super().__init__()
        self._noun, self._entered = noun, False
        self._place: _Place | None = None

    sees_all: ClassVar[bool] = False
    """Whether it looks at all functions of a forward, or at those of attentions alone."""

    def enter(self, attention: Attention, name: str, see: See) -> None:
        """Read the attention of a module that begins to run."""
        self._place = _Place(attention, name, see)
        # a mode costs a call for every function, so it is on inside of attentions alone
        if not self.sees_all and not self._entered:
            self.__enter__()  # type: ignore[no-untyped-call]
            self._entered = True

    def remove(self) -> None:
        """Stop to look at functions; harmless where it does not."""
        if self._entered:
            self._entered = False
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def leave(self) -> None:
        """Raise UnsupportedModelError unless one attention was read."""
        self.remove()
        place, self._place = self._place, None
        if place is None:
            return
        if place.refusal is not None:
            raise place.refusal
        if not place.reads:
            raise self._refused(place.name, place.unlike)

    def _refused(self, name: str, what: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{name} of the {self._noun} {what}, so it cannot be read; use a method of Captum "
            "that does not look inside, such as Occlusion."
        )

    @override
    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, place = kwargs or {}, self._place
        if isinstance(func, types.FunctionType) and func not in _FUNCTIONS:
            func = _written(func)
        if place is None:
            return self.run(func, args, kwargs)
        if func is _MULTIHEAD:
            return self._multihead(place, args, kwargs)
        if func is _FUSED:
            return self._fused(place, args, kwargs)
        if func in _PRODUCTS or func in _SOFTMAXES:
            return self._explicit(place, func, args, kwargs)
        out = self.run(func, args, kwargs) if self.sees_all else func(*args, **kwargs)
        # nothing is followed in an attention that is one fused function
        if place.products and place.follow(func, args, out):
            return out
        if isinstance(func, _METHODS) or len(args) + len(kwargs) < 3:
            return out
        return self._operator(place, func, args, kwargs, out)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a function that is none of an attention's own."""
        return func(*args, **kwargs)

    def _multihead(self, place: _Place, args: Any, kwargs: Any) -> Any:
        """Run torch's own code, which hands itself over to a mode as a whole, under this one."""
        modes = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        check = "has_torch_function"
        plain = isinstance(_MULTIHEAD, types.FunctionType) and check in _MULTIHEAD.__code__.co_names
        if not plain or any(type(mode) is not DeviceContext for mode in modes):
            place.refusal = self._refused(place.name, "runs under another torch function mode")
            return _MULTIHEAD(*args, **kwargs)
        # with the names as they are now, so that what stands in the place of one is used
        names = {**_MULTIHEAD.__globals__, check: lambda *_: False}
        # torch reads this name from the globals of the function, so its clone gets others
        defaults, closure = _MULTIHEAD.__defaults__, _MULTIHEAD.__closure__
        code = types.FunctionType(_MULTIHEAD.__code__, names, check, defaults, closure)
        code.__kwdefaults__ = _MULTIHEAD.__kwdefaults__
        with self:
            return code(*args, **kwargs)

    def _fused(self, place: _Place, args: Any, kwargs: Any) -> Any:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        out = _FUSED(*args, **kwargs)
        parts = {name: call[name] for name in names[:3]}
        mask, causal = call.get("attn_mask"), call.get("is_causal", False)
        return self._seen(place, out, **parts, mask=mask, causal=causal, scale=call.get("scale"))

    def _explicit(self, place: _Place, func: Any, args: Any, kwargs: Any) -> Any:
        """A softmax over keys, or a product: of queries and keys, or of weights and values."""
        out = func(*args, **kwargs)
        if func in _SOFTMAXES:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if out.ndim > 2 and dim in (-1, out.ndim - 1):
                logits = place.products.get(id(args[0] if args else kwargs["input"]))
                made = Product(out, True) if logits is None else logits._replace(is_weights=True)
                place.products[id(out)] = made._replace(tensor=out)
            return out
        if func is torch.einsum:
            layout = _layout(*args)
        else:
            first, second = (*args, *kwargs.values())[_PRODUCTS[func] :][:2]
            layout = _Layout(first, second) if first.ndim == second.ndim > 2 else None
        weights = next((each for each in place.made_of(args) if each.is_weights), None)
        if layout is None or weights is None or not layout.weighs(weights.tensor):
            if weights is not None:  # heads that are mixed
                place.products[id(out)] = Product(out, True)
            elif layout is not None:
                place.products[id(out)] = Product(out, False, *layout.sides())
            return out
        parts = {"query": weights.query, "key": weights.key, "weights": layout.left}
        kept = self._seen(place, layout.canonical(out), value=layout.right, **parts)
        return layout.restored(kept)

    def _operator(self, place: _Place, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
        """An operator of queries, keys and values whose output is what attention would give.

        Its schema says which argument is what; the law of attention is the proof.
        """
        call = _named(func, args, kwargs)
        tensors = [call.get(name) for name in ("query", "key", "value")]
        first: Any = out if isinstance(out, Tensor) else next(iter(out), None) if out else None
        if any(not isinstance(each, Tensor) or each.ndim != 4 for each in (*tensors, first)):
            return out
        options = {name: call.get(name) for name in ("mask", "scale")}
        options["causal"] = bool(call.get("causal"))
        # flash-attn has tokens before heads
        for dims in ((0, 1, 2, 3), (0, 2, 1, 3)):
            query, key, value, made = (each.permute(dims) for each in (*tensors, first))
            parts = {"query": query, "key": key, "value": value, **options}
            if made.shape[1] != place.attention.heads or not _may_attend(query, key, value, made):
                continue
            read = _read(place, made, **parts)
            if read is not None and read.obeys(1e-4 if made.dtype in _WIDE else 3e-2):
                new = self._seen(place, made, **parts).permute(dims)
                return new if first is out else type(out)((new, *out[1:]))
        place.unlike = f"runs {func}, whose output is not softmax(q k^T) v of what it takes"
        return out

    def _seen(self, place: _Place, out: Tensor, **parts: Any) -> Tensor:
        """Hand over what ran; what stands in the place of the heads' outputs, in their layout."""
        place.reads += 1
        heads, flat, whole = place.attention.heads, out.ndim == 3, out
        if flat and not len(out) % heads:  # images and heads on one axis
            out = out.view(-1, heads, *out.shape[1:])
            for name, tensor in parts.items():
                if isinstance(tensor, Tensor) and tensor.ndim == 3 and not len(tensor) % heads:
                    parts[name] = tensor.reshape(-1, heads, *tensor.shape[1:])
        read = _read(place, out, **parts)
        if read is None or place.reads > 1:
            shape = f"an attention whose output is {tuple(whole.shape)}"
            what = shape if read is None else "more than one attention, as windows do"
            place.refusal = place.refusal or self._refused(place.name, f"runs {what}")
            return whole
        try:
            replaced = place.see(read)
        except UnsupportedModelError as error:
            place.refusal = error
            return whole
        # what follows is made of what is kept, so that a gradient reaches it
        out = out if replaced is None else replaced
        return out.flatten(0, 1) if flat else out


def _read(place: _Place, out: Tensor, **parts: Any) -> AttentionRead | None:
    """A read in whose tensors every head has its own keys and values; None for other shapes."""
    count = out.shape[1] if out.ndim == 4 else 0
    for name in ("key", "value"):
        tensor = parts.get(name)
        if tensor is None:
            continue
        fits = tensor.ndim == 4 and count and not count % tensor.shape[1]
        if not fits or tensor.shape[0] not in (1, out.shape[0]):
            return None
        tensor = tensor.expand(out.shape[0], -1, -1, -1)
        # grouped queries: the heads of a group share keys and values
        groups = count // tensor.shape[1]
        parts[name] = tensor if groups == 1 else tensor.repeat_interleave(groups, 1)
    for name in ("query", "weights"):
        tensor = parts.get(name)
        if tensor is not None and tensor.ndim == 4:
            parts[name] = tensor.expand(*out.shape[:2], -1, -1)
    if parts.get("weights") is None and parts.get("query") is None:
        return None
    return AttentionRead(out=out, attention=place.attention, name=place.name, **parts)


def _may_attend(query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> bool:
    """Whether queries, keys, values and outputs have shapes and types that fit."""
    alike = value.is_floating_point() and query.dtype == key.dtype == value.dtype == out.dtype
    fits = query.shape[-1] == key.shape[-1] and key.shape[:3] == value.shape[:3]
    return alike and fits and out.shape[:3] == query.shape[:3]


_ALIASES: Final = {
    **{"q": "query", "k": "key", "v": "value", "softmax_scale": "scale", "is_causal": "causal"},
    **{"attn_mask": "mask", "attn_bias": "mask"},
}


@cache
def _argument_names(func: Any) -> tuple[str, ...]:
    """The names of an operator's arguments, of an operator of torch's own in its library."""
    name = getattr(func, "__name__", "")
    if isinstance(func, types.BuiltinFunctionType) and "attention" in name:
        func = getattr(torch.ops.aten, name, None)
    schema = getattr(getattr(func, "default", func), "_schema", None)
    names = () if schema is None else (argument.name for argument in schema.arguments)
    return tuple(_ALIASES.get(name, name) for name in names)


def _named(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of an operator by name; empty where it does not say them."""
    named = zip(_argument_names(func), args, strict=False)
    return {**dict(named), **{_ALIASES.get(name, name): value for name, value in kwargs.items()}}


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


class _Layout:
    """A product of two tensors, whose axes are mostly in the order of a matrix product."""

    def __init__(self, first: Tensor, second: Tensor, axes: tuple[str, str, str] = ("",) * 3):
        self.first, (a, b, o) = first, axes
        self._orders: Any = None
        self.left, self.right = first, second
        if a:
            summed = next(letter for letter in a if letter in b and letter not in o)
            row = next(letter for letter in a if letter not in b)
            column = next(letter for letter in b if letter not in a)
            lead = [letter for letter in o if letter in a and letter in b]
            self.left = first.permute([a.index(x) for x in (*lead, row, summed)])
            self.right = second.permute([b.index(x) for x in (*lead, summed, column)])
            wanted = [*lead, row, column]
            self._orders = [o.index(x) for x in wanted], [wanted.index(x) for x in o]

    def sides(self) -> tuple[Tensor, Tensor]:
        """What gives the rows of the result, and what its columns: queries and keys."""
        turned = self._orders is not None and self._orders[0][-2] > self._orders[0][-1]
        return (self.right.mT, self.left) if turned else (self.left, self.right.mT)

    def weighs(self, weights: Tensor) -> bool:
        """Whether it multiplies weights (..., rows, s) with values (..., s, d)."""
        return self.first is weights and self.left.ndim == self.right.ndim

    def canonical(self, out: Tensor) -> Tensor:
        """The result with its rows and columns last."""
        return out if self._orders is None else out.permute(self._orders[0])

    def restored(self, out: Tensor) -> Tensor:
        """Such a result in the order of the product's own."""
        return out if self._orders is None else out.permute(self._orders[1])


def _layout(equation: Any, *operands: Any) -> _Layout | None:
    """The product in an einsum that sums over one axis of two tensors; None for another."""
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) != 2 or "->" not in equation:
        return None
    inputs, _, o = equation.replace(" ", "").partition("->")
    a, _, b = inputs.partition(",")
    summed = [x for x in a if x in b and x not in o]
    apart = [[x for x in first if x not in second] for first, second in ((a, b), (b, a))]
    is_product = len(summed) == len(apart[0]) == len(apart[1]) == 1 and len({*a, *b}) == len(o) + 1
    if not is_product or "." in equation or len({*o}) != len(o) or len(a) < 3:
        return None
    return _Layout(operands[0], operands[1], (a, b, o))
