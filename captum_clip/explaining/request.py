"""What `explain` can be asked: each argument once, with its help and what it does not go with.

The command line makes its options from these fields, and the page its labels. Nothing here loads
torch, since ``--help`` needs the fields too.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import NoneType
from typing import Any, ClassVar, Final, Literal, NamedTuple, get_args

from ..checks import check_choice
from ..errors import InputError, argument

Side = Literal["image", "text", "both", "pairs"]
Sign = Literal["positive", "negative", "both"]
SIGNS: Final = ("positive", "negative")
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


def asked(help: str, default: Any = None, *conflicts: Conflict, **about: Any) -> Any:
    """A field of what is asked for.

    Args:
        help: what it does, in the words of ``--help``.
        default: where it is left out; an ellipsis where it must not be.
        *conflicts: what it excludes.
        **about: `choices`, the values that it has; `needs`, arguments of which it takes one;
            `one_model`, whether it is of one model at a time; `label`, what the page calls it; and
            how it is typed: `typed`, the type where it differs, None for what cannot be typed;
            `names`; `positional`; and options of ``typer.Option``.
    """
    default = MISSING if default is ... else default
    return field(default=default, metadata={"help": help, "conflicts": conflicts, **about})


@dataclass(frozen=True, eq=False)
class Request:
    """The arguments of :func:`captum_clip.explain`, whose documentation tells more of each."""

    apart: ClassVar[str] = ""
    """What else differs between the calls for each of several models."""

    image: Any = asked("images to explain", typed=None)
    texts: Any = asked("what to look for", typed=None)
    against: str | None = asked(
        "a text to contrast one TEXT with; the maps show what speaks for TEXT rather than for it",
        None,
        Conflict(
            "contrasts two texts, where in the image",
            {TARGET: (), "reference": (), "words": (), "side": ()},
        ),
    )
    reference: Any = asked(
        "an image to compare with, instead of TEXTs; only one with --side pairs",
        None,
        Conflict("has no words", {"words": (), "side": ("text", "both")}),
        names=("--image",),
        typed=list[str] | None,
    )
    model: Any = asked(
        "a name that 'captum-clip models' lists, a folder, or a model on the Hugging Face hub "
        "(default: ViT-B/32, or the one that --emotions was fitted on)",
        "ViT-B/32",
        label="Model",
    )
    method: Any = asked(
        "a method listed below, with options as in last-grad:heads=averaged, or mamooler: "
        "last-grad for ViTs, grad-cam for ResNets (default: direct; conservative for pooling "
        "heads such as SigLIP's)",
        label="Method",
    )
    sign: Sign | None = asked(
        "show what supports the text, what contradicts it, or both (default: positive; with "
        "--against, both)",
        choices=get_args(Sign),
        label="Show what",
    )
    words: Any = asked("split one TEXT into words, and draw a map for each", False, typed=bool)
    side: Side = asked(
        "explain where in the image, which words of the TEXTs, or both; words need a method "
        "without a grid (default: conservative); pairs: which word of one TEXT, or which region "
        "of --image, matches which region",
        "image",
        Conflict(
            "explains whole texts word by word",
            {TARGET: (), "words": ()},
            ("text", "both", "pairs").__contains__,
        ),
        choices=get_args(Side),
        one_model=True,
    )
    whole: bool = asked(
        "pad the image to a square, so that the model sees all of it, if its processor would "
        "otherwise crop it to the middle",
        False,
    )
    hints: bool | None = asked(
        "say which maps to doubt: those of a TEXT that fits no better than unrelated texts, and "
        "those that any text would get (default: for TEXTs, unless --sign negative or --side text)",
        None,
        Conflict(
            "compares positive maps of texts with those of unrelated texts",
            dict.fromkeys((TARGET, "reference", "against"), ())
            | {"side": ("text", "pairs"), "sign": ("negative",)},
        ),
    )
    batch_size: int | None = asked("images per forward pass", typed=None)
    processor: Any = asked("a model whose image processor to use, for a checkpoint without one")
    tokenizer: Any = asked("a model whose tokenizer to use, for a checkpoint without one")
    device: Any = asked("the device, such as cpu or cuda (default: CUDA if available)")
    image_size: int | None = asked(
        "the side of the model's images in pixels, larger for finer maps (default: its own)",
        label="Image size",
    )
    max_pixels: int | None = asked(
        "pixels that an image file may have, since a small file may unpack to gigabytes "
        "(default: 89 million)"
    )
    options: Mapping[str, Any] = field(default_factory=dict, metadata={"typed": None})

    @property
    def signs(self) -> tuple[str, ...]:
        """The signs of the maps that are asked for."""
        sign = default_sign(self.sign, self.against)
        return SIGNS if sign == "both" else (sign,)


def default_sign(sign: Sign | None, against: str | None) -> Sign:
    """The sign that is asked for: by default both for a contrast, else the positive one."""
    return ("positive" if against is None else "both") if sign is None else sign


def check_request(request: Any, *, is_target: bool = False) -> None:
    """Refuse a value that is no choice, and arguments that do not go together.

    Args:
        request: a dataclass with fields of :func:`asked`.
        is_target: whether its texts are a Target.

    Raises:
        InputError: the first that is wrong.
    """
    values: dict[str, Any] = {TARGET: True} if is_target else {}
    about: dict[str, Any] = {entry.name: entry.metadata for entry in fields(request)}
    about[TARGET] = {"one_model": True}
    for entry in fields(request):
        value, choices = getattr(request, entry.name), entry.metadata.get("choices")
        if choices and not value is entry.default is None:
            check_choice(value, choices, name=f"a {entry.name}")
        if _is_set(value, entry.default):
            values[entry.name] = value

    def spell(name: str) -> str:
        shows_value = about[name].get("choices") or values[name] is True
        return argument(name, values[name] if shows_value else None)

    several = isinstance(values.get("model"), (list, tuple)) and len(values["model"]) > 1
    for name, value in values.items():
        if several and about[name].get("one_model"):
            named = "a Target" if name == TARGET else spell(name)
            model = argument("model")
            raise InputError(f"{named} works with one {model}; run each by itself{request.apart}.")
        needs = about[name].get("needs", ())
        if needs and not values.keys() & needs:
            raise InputError(f"{spell(name)} goes with {' or '.join(map(argument, needs))}.")
        for reason, others, when in about[name].get("conflicts", ()):
            excluded = [
                other
                for other, forbidden in others.items()
                if other in values and (not forbidden or values[other] in forbidden)
            ]
            if excluded and when(value):
                named = " and ".join(spell(other) for other in excluded if other != TARGET)
                way = (
                    "pass texts instead of a Target" if TARGET in excluded else f"leave {named} out"
                )
                raise InputError(f"{spell(name)} {reason}; {way}.")


def _is_set(value: Any, default: Any) -> bool:
    """Whether an argument is more than its default; an array is neither true nor false."""
    if isinstance(value, (bool, str, int, NoneType)):
        return value is not None and value is not False and value != default
    return not isinstance(value, (list, tuple)) or len(value) > 0
