"""The arguments of `explain`, each declared once with its conflicts.

The page takes its labels from these fields, and the command line has more conflicts in a class of
its own. Nothing here loads torch, so that a wrong line is refused before a model is loaded.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import NoneType
from typing import Any, ClassVar, Final, Literal, NamedTuple, get_args, get_type_hints

from ..checks import as_list, check_choice, check_flag, check_integer, expect, show
from ..errors import InputError, TargetError, argument
from ..files import IMAGE_ENDINGS

Side = Literal["image", "text", "both", "pairs"]
Sign = Literal["positive", "negative", "both"]
SIGNS: Final = ("positive", "negative")
"""The signs of maps, in the order in which results have them."""
ENDINGS: Final = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".npz", ".npy", ".html")
"""Endings of the files that an explanation is saved as: figures, everything, a page."""
LOADING: Final = ("processor", "tokenizer", "device", "image_size")
"""The arguments that say how a model is loaded."""
TARGET: Final = "Target"
"""An argument of this name is set where the texts are a :class:`captum_clip.Target`."""


class Conflict(NamedTuple):
    """Why an argument excludes others.

    Attributes:
        reason: the verb and what follows it in the message.
        others: the names of the others, each with the values that it must not have; none of them
            stands for any value.
        when: the argument's own values that exclude the others; none of them stands for any value.
    """

    reason: str
    others: Mapping[str, tuple[Any, ...]]
    when: tuple[Any, ...] = ()


def rule(default: Any = None, *conflicts: Conflict, **about: Any) -> Any:
    """Make a field of a request with the rules that :func:`check_request` reads.

    Args:
        default: the value if the argument is left out.
        *conflicts: the arguments that it excludes.
        **about: `choices`, its values; `needs`, arguments without any of which it is refused;
            `one_model`, whether it is for one model at a time; `label`, its name on the page.
    """
    return field(default=default, metadata={"conflicts": conflicts, **about})


@dataclass(frozen=True, eq=False)
class Request:
    """The arguments of :func:`captum_clip.explain`, which documents each of them."""

    rerun: ClassVar[str] = ""
    """The end of the advice to run each of several models by itself."""

    image: Any = None
    texts: Any = None
    against: str | None = rule(
        None,
        Conflict(
            "contrasts two texts, where in the image",
            {TARGET: (), "reference": (), "words": (), "side": ()},
        ),
    )
    reference: Any = rule(None, Conflict("has no words", {"words": (), "side": ("text", "both")}))
    model: Any = rule("ViT-B/32", label="Model")
    method: Any = rule(label="Method")
    sign: Sign | None = rule(choices=get_args(Sign), label="Show what")
    words: Any = False
    side: Side = rule(
        "image",
        Conflict(
            "explains whole texts word by word",
            {TARGET: (), "words": ()},
            when=("text", "both", "pairs"),
        ),
        choices=get_args(Side),
        one_model=True,
    )
    whole: bool = False
    hints: bool | None = rule(
        None,
        Conflict(
            "compares positive maps of texts with those of unrelated texts",
            {
                TARGET: (),
                "reference": (),
                "against": (),
                "side": ("text", "pairs"),
                "sign": ("negative",),
            },
        ),
    )
    batch_size: int | None = None
    processor: Any = None
    tokenizer: Any = None
    device: Any = None
    image_size: int | None = rule(label="Image size")
    max_pixels: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def signs(self) -> tuple[str, ...]:
        """The signs of the requested maps."""
        sign = default_sign(self.sign, self.against)
        return SIGNS if sign == "both" else (sign,)


def default_sign(sign: Sign | None, against: str | None) -> Sign:
    """Return the sign, by default both for a contrast, else the positive one."""
    if sign is not None:
        return sign
    return "positive" if against is None else "both"


def check_explain(request: Request, *, is_target: bool = False) -> None:
    """Refuse a request that no model could answer, whatever the method."""
    texts, method, words, against = request.texts, request.method, request.words, request.against
    # The types come first, since an array has no truth value.
    is_method = isinstance(method, (str, type, NoneType))
    advice = "for several, explain once for each, or draw `captum-clip figure compare`"
    expect(is_method, "a method, by name or as a class", method, advice)
    expect(isinstance(words, (bool, Sequence)), "words of True, False or a list", words)
    is_text = isinstance(against, (str, NoneType))
    expect(is_text, f"one text as {argument('against')}", against, error=TargetError)
    # A reference may be an array too, so it is compared with None.
    has_texts = texts is not None
    has_reference = request.reference is not None
    if has_texts == has_reference:
        both = "both" if has_reference else "neither"
        raise InputError(f"expected either texts or {argument('reference')}, got {both}.")
    check_request(request, is_target=is_target)
    if isinstance(texts, (str, Sequence)) and not is_target:
        for text in as_list(texts):
            if isinstance(text, str) and _names_image(text):
                raise TargetError(
                    f"the text {show(text)} names an image; pass images first, or as "
                    f"{argument('reference')}."
                )
    if words:
        _check_single_text("words", "need", texts, is_target)
    elif against is not None:
        _check_single_text("against", "needs", texts, is_target)
    if request.side == "pairs":
        # The text itself is of no use here, but texts that are no pair's are refused.
        text_of_pairs(texts)


def _check_single_text(name: str, needs: str, texts: Any, is_target: bool) -> None:
    if is_target or len(as_list(texts)) != 1:
        raise TargetError(f"{argument(name)} {needs} exactly one text, got {texts!r}.")


def text_of_pairs(texts: Any) -> str | None:
    """Return the single text of a pair; None if a reference takes its place."""
    if texts is None:
        return None
    listed = as_list(texts) if isinstance(texts, Iterable) else [texts]
    if len(listed) != 1 or not isinstance(listed[0], str):
        pairs = argument("side", "pairs")
        raise TargetError(
            f"{pairs} takes one text apart, got {show(texts)}; explain each by itself."
        )
    return listed[0]


def _names_image(text: str) -> bool:
    """Tell whether a text is the name or address of an image, and no sentence that holds one."""
    is_word = len(text.split()) == 1
    if is_word and "://" in text:
        return True
    has_ending = text.lower().endswith(IMAGE_ENDINGS)
    return has_ending and (is_word or os.path.isfile(os.path.expanduser(text)))


def check_request(request: Any, *, is_target: bool = False) -> None:
    """Refuse a value that is no choice, and arguments that do not go together.

    Args:
        request: a dataclass, some of whose fields have a :func:`rule`.
        is_target: whether its texts are a Target.

    Raises:
        InputError: the first argument that is wrong.
    """
    types = get_type_hints(type(request))
    rules: dict[str, Mapping[str, Any]] = {}
    values: dict[str, Any] = {}
    if is_target:
        rules[TARGET] = {"one_model": True}
        values[TARGET] = True
    for entry in fields(request):
        name, value = entry.name, getattr(request, entry.name)
        rules[name] = entry.metadata
        # None is a value to check only where it is not the default: `whole=None` is refused.
        if value is not None or entry.default is not None:
            _check_value(name, value, types[name], entry.metadata.get("choices"))
        if _is_set(value, entry.default):
            values[name] = value
    models = values.get("model")
    has_several_models = isinstance(models, (list, tuple)) and len(models) > 1
    for name in values:
        if has_several_models and rules[name].get("one_model"):
            subject = "a Target" if name == TARGET else _spell(name, values, rules)
            raise InputError(
                f"{subject} works with one {argument('model')}; run each by itself{request.rerun}."
            )
        needs = rules[name].get("needs", ())
        if needs and not values.keys() & needs:
            needed = " or ".join(map(argument, needs))
            raise InputError(f"{_spell(name, values, rules)} goes with {needed}.")
        for conflict in rules[name].get("conflicts", ()):
            _check_conflict(name, conflict, values, rules)


def _check_conflict(
    name: str, conflict: Conflict, values: Mapping[str, Any], rules: Mapping[str, Any]
) -> None:
    """Refuse the arguments that another one excludes."""
    if conflict.when and values[name] not in conflict.when:
        return
    excluded = []
    for other, excluded_values in conflict.others.items():
        if other in values and (not excluded_values or values[other] in excluded_values):
            excluded.append(other)
    if not excluded:
        return
    if TARGET in excluded:
        advice = "pass texts instead of a Target"
    else:
        spelled = [_spell(other, values, rules) for other in excluded]
        advice = f"leave {' and '.join(spelled)} out"
    raise InputError(f"{_spell(name, values, rules)} {conflict.reason}; {advice}.")


def _spell(name: str, values: Mapping[str, Any], rules: Mapping[str, Any]) -> str:
    """Write an argument as a message does, with its value where that is a choice or True."""
    value = values[name]
    if rules[name].get("choices") or value is True:
        return argument(name, value)
    return argument(name)


def _check_value(name: str, value: Any, annotation: Any, choices: Any) -> None:
    """Refuse a value outside of the choices, or of another type than a bool or a count."""
    if choices:
        check_choice(value, choices, name=f"a {name}")
    elif annotation in (bool, bool | None):
        check_flag(name, value)
    elif annotation == int | None:
        check_integer(name, value)


def _is_set(value: Any, default: Any) -> bool:
    """Whether an argument asks for something, and so may conflict with others."""
    # False asks for nothing, even where the default is None: `hints=False` goes with everything.
    if isinstance(value, (bool, str, int, NoneType)):
        return value is not None and value is not False and value != default
    if isinstance(value, (list, tuple)):
        return len(value) > 0
    # An array has no truth value, and cannot be compared with a default.
    return True
