"""The arguments of `explain`: each once, with what it does not go with.

The command line makes its options from these fields, and the page its labels. Nothing here loads
torch, since ``--help`` needs the fields too, and so do the checks before a model is loaded.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from types import NoneType
from typing import Any, ClassVar, Final, Literal, NamedTuple, get_args, get_type_hints

from ..checks import as_list, check_choice, check_flag, check_integer, expect, show
from ..errors import InputError, TargetError, argument

Side = Literal["image", "text", "both", "pairs"]
Sign = Literal["positive", "negative", "both"]
SIGNS: Final = ("positive", "negative")
ENDINGS: Final = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".npz", ".npy", ".html")
"""Endings of the files that an explanation is saved as: figures, everything, a page."""
LOADING: Final = ("processor", "tokenizer", "device", "image_size")
TARGET: Final = "Target"
"""Stands among the arguments where the texts are a :class:`captum_clip.Target`."""


class Conflict(NamedTuple):
    """Why an argument excludes others: their names, each with the values that it excludes, or any.

    `when` says of which of its own values that holds, by default of every one that is set.
    """

    reason: str
    others: Mapping[str, tuple[Any, ...]]
    when: Callable[[Any], bool] = lambda value: True


def option(default: Any = None, *conflicts: Conflict, **about: Any) -> Any:
    """A field of what is asked for, whose help stands in cli/options.json.

    Args:
        default: where it is left out; an ellipsis where it must not be.
        *conflicts: what it excludes.
        **about: `choices`, the values that it has; `needs`, arguments of which it takes one;
            `one_model`, whether it is of one model at a time; `label`, what the page calls it; and
            how it is typed: `typed`, the type where it differs, None for what cannot be typed;
            `names`; `positional`; and options of ``typer.Option``.
    """
    default = MISSING if default is ... else default
    return field(default=default, metadata={"conflicts": conflicts, **about})


@dataclass(frozen=True, eq=False)
class Request:
    """The arguments of :func:`captum_clip.explain`, whose documentation tells more of each."""

    rerun: ClassVar[str] = ""
    """What else differs between the calls for each of several models."""

    image: Any = option(typed=None)
    texts: Any = option(typed=None)
    against: str | None = option(
        None,
        Conflict(
            "contrasts two texts, where in the image",
            {TARGET: (), "reference": (), "words": (), "side": ()},
        ),
    )
    reference: Any = option(
        None,
        Conflict("has no words", {"words": (), "side": ("text", "both")}),
        names=("--image",),
        typed=list[str] | None,
    )
    model: Any = option("ViT-B/32", label="Model")
    method: Any = option(label="Method")
    sign: Sign | None = option(choices=get_args(Sign), label="Show what")
    words: Any = option(False, typed=bool)
    side: Side = option(
        "image",
        Conflict(
            "explains whole texts word by word",
            {TARGET: (), "words": ()},
            ("text", "both", "pairs").__contains__,
        ),
        choices=get_args(Side),
        one_model=True,
    )
    whole: bool = option(False)
    hints: bool | None = option(
        None,
        Conflict(
            "compares positive maps of texts with those of unrelated texts",
            dict.fromkeys((TARGET, "reference", "against"), ())
            | {"side": ("text", "pairs"), "sign": ("negative",)},
        ),
    )
    batch_size: int | None = option(typed=None)
    processor: Any = None
    tokenizer: Any = None
    device: Any = None
    image_size: int | None = option(label="Image size")
    max_pixels: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict, metadata={"typed": None})

    @property
    def signs(self) -> tuple[str, ...]:
        """The signs of the maps that are asked for."""
        sign = default_sign(self.sign, self.against)
        return SIGNS if sign == "both" else (sign,)


def default_sign(sign: Sign | None, against: str | None) -> Sign:
    """The sign that is asked for: by default both for a contrast, else the positive one."""
    return ("positive" if against is None else "both") if sign is None else sign


def check_explain(request: Request, *, is_target: bool = False) -> None:
    """Refuse what no model could answer, whatever the method; nothing here loads torch."""
    texts, method, words, against = request.texts, request.method, request.words, request.against
    # before any truth, since an array is neither true nor false
    named = isinstance(method, (str, type, NoneType))
    expect(named, "a method, by name or as a class", method)
    expect(isinstance(words, (bool, Sequence)), "words of True, False or a list", words)
    is_text = isinstance(against, (str, NoneType))
    expect(is_text, f"one text as {argument('against')}", against, error=TargetError)
    # `is None` throughout, since a reference may be an array
    has_reference = request.reference is not None
    if (texts is None) is not has_reference:
        both = "both" if has_reference else "neither"
        raise InputError(f"expected either texts or {argument('reference')}, got {both}.")
    check_request(request, is_target=is_target)
    single = "words need" if words else "against needs" if against is not None else None
    if single and (is_target or len(as_list(texts)) != 1):
        name, need = single.split()
        raise TargetError(f"{argument(name)} {need} exactly one text, got {texts!r}.")
    if request.side == "pairs":
        text_of_pairs(texts)


def text_of_pairs(texts: Any) -> str | None:
    """The one text of a pair; None where a reference takes its place."""
    if texts is None:
        return None
    listed = as_list(texts) if isinstance(texts, Iterable) else [texts]
    if len(listed) != 1 or not isinstance(listed[0], str):
        pairs = argument("side", "pairs")
        raise TargetError(
            f"{pairs} takes one text apart, got {show(texts)}; explain each by itself."
        )
    return listed[0]


def check_request(request: Any, *, is_target: bool = False) -> None:
    """Refuse a value that is no choice, and arguments that do not go together.

    Args:
        request: a dataclass with fields of :func:`option`.
        is_target: whether its texts are a Target.

    Raises:
        InputError: the first that is wrong.
    """
    values: dict[str, Any] = {TARGET: True} if is_target else {}
    about: dict[str, Any] = {entry.name: entry.metadata for entry in fields(request)}
    about[TARGET] = {"one_model": True}
    kinds = get_type_hints(type(request))
    for entry in fields(request):
        value = getattr(request, entry.name)
        if value is not None or entry.default is not None:
            _check_value(entry.name, value, kinds[entry.name], entry.metadata.get("choices"))
        if _is_set(value, entry.default):
            values[entry.name] = value
    several = isinstance(values.get("model"), (list, tuple)) and len(values["model"]) > 1
    tells = {name for name, v in values.items() if about[name].get("choices") or v is True}
    spelled = {name: argument(name, v if name in tells else None) for name, v in values.items()}
    for name, value in values.items():
        if several and about[name].get("one_model"):
            named, model = "a Target" if name == TARGET else spelled[name], argument("model")
            raise InputError(f"{named} works with one {model}; run each by itself{request.rerun}.")
        needs = about[name].get("needs", ())
        if needs and not values.keys() & needs:
            raise InputError(f"{spelled[name]} goes with {' or '.join(map(argument, needs))}.")
        for reason, others, when in about[name].get("conflicts", ()):
            excluded = [n for n, v in others.items() if n in values and (not v or values[n] in v)]
            if excluded and when(value):
                listed = " and ".join(spelled[other] for other in excluded if other != TARGET)
                way = f"leave {listed} out"
                way = "pass texts instead of a Target" if TARGET in excluded else way
                raise InputError(f"{spelled[name]} {reason}; {way}.")


def _check_value(name: str, value: Any, kind: Any, choices: Any) -> None:
    """Refuse what is no choice, no truth value, or no count, where a field has these."""
    if choices:
        check_choice(value, choices, name=f"a {name}")
    elif kind in (bool, bool | None):
        check_flag(name, value)
    elif kind == int | None:
        check_integer(name, value)


def _is_set(value: Any, default: Any) -> bool:
    """Whether an argument is more than its default; an array is neither true nor false."""
    if isinstance(value, (bool, str, int, NoneType)):
        return value is not None and value is not False and value != default
    return not isinstance(value, (list, tuple)) or len(value) > 0
