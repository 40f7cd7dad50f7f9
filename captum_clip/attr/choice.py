"""Methods by name: a class of this package with its options, as text and back."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any, Final

from ..errors import InputError
from .all_grad_attention import AllGradAttention
from .attention_grad_cam import AttentionGradCam
from .attention_rollout import AttentionRollout
from .grad_cam import ClipGradCam
from .last_grad_attention import LastGradAttention
from .layer_attention import LayerAttention

METHODS: Final[dict[str, type[Any]]] = {
    "grad-cam": ClipGradCam,
    "attention-grad-cam": AttentionGradCam,
    "rollout": AttentionRollout,
    "all-grad": AllGradAttention,
    "last-grad": LastGradAttention,
}
"""The methods by the names that :func:`captum_clip.explain` and the command line take."""

DEFAULTS: Final = {"vit": "last-grad", "resnet": "grad-cam"}
"""The method for a kind of tower where none is named."""

_TAKEN: Final = {"return_scores", "relu_attributions"}  # set by whoever calls, so no options


@dataclass(frozen=True)
class Choice:
    """A method with its options.

    Attributes:
        method: the class.
        options: keyword arguments of its ``attribute_targets``.
        name: the command-line name that says both, as "last-grad:heads=averaged".
    """

    method: type[Any]
    options: dict[str, Any]
    name: str

    @classmethod
    def of(cls, method: str | type[Any], options: dict[str, Any]) -> Choice:
        """A class or a command-line name, with options from either side.

        Raises:
            InputError: no such method, or no such option of it.
        """
        options = dict(options)
        if isinstance(method, str):
            name, _, tail = method.partition(":")
            name = {kind.__name__: short for short, kind in METHODS.items()}.get(name, name)
            if name not in METHODS:
                raise InputError(
                    f"method: expected one of {', '.join(METHODS)}, with options as in "
                    f"last-grad:heads=averaged, or a class of captum_clip.attr; got {method!r}."
                )
            kind = METHODS[name]
            options = {**_parsed(method, tail), **options}
        else:
            kind, name = method, _name_of(method)
        known = _option_names(kind)
        for option in options:
            if option not in known:
                raise InputError(
                    f"{name} has no option {option!r}; it has {', '.join(known) or 'none'}."
                )
        said = ",".join(f"{option}={value}" for option, value in options.items())
        return cls(kind, options, f"{name}:{said}" if said else name)

    def check_negative(self) -> None:
        """A map that the target does not change cannot speak against it.

        Raises:
            InputError: the map does not depend on the target.
        """
        of = self.options.get("of", "attention")
        layer = self.method is LayerAttention and of != "gradient"
        if layer or self.method is AttentionRollout:
            raise InputError(
                f"{self.name} does not depend on the target, so it has no negative map; take "
                "sign='positive', or another method."
            )


def _name_of(method: Any) -> str:
    for name, kind in METHODS.items():
        if method is kind:
            return name
    if method is LayerAttention:
        return "LayerAttention"
    raise InputError(
        f"method: expected a class of captum_clip.attr or one of {', '.join(METHODS)}, got "
        f"{method!r}."
    )


def _option_names(method: type[Any]) -> list[str]:
    parameters = inspect.signature(method.attribute_targets).parameters.values()
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    return [name for name in keywords if name not in _TAKEN]


def _parsed(method: str, text: str) -> dict[str, Any]:
    """Options as on the command line: ``heads=averaged,start_layer=2``."""
    options: dict[str, Any] = {}
    for part in text.split(",") if text else []:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise InputError(
                f"method: cannot read {part!r} in {method!r}; options look like "
                "last-grad:heads=averaged,start_layer=2."
            )
        options[name] = int(value) if re.fullmatch(r"-?\d+", value) else value
    return options
