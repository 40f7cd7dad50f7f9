"""One page that can be cited: tables, curves, examples, protocol and versions, in one HTML file."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import PurePath
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from ..runs import slug
from .config import EvaluationConfig
from .examples import Example
from .summary import Summary
from .tables import legend, report_tables

REPORT: Final = "report.html"
_OPTIONS: Final = {"methods": "method", "tasks": "task", "fills": "fill"}
_ELSEWHERE: Final = ("model", "output", "engine", "workers", "gpus")
"""Fields that change no figure, or are told otherwise."""


def report_html(
    summary: Summary,
    *,
    title: str,
    about: Mapping[str, Any],
    curves: Mapping[str, bytes],
    examples: Mapping[str, Sequence[Example]],
    manifest: Mapping[str, Any],
) -> str:
    """The same figures as :func:`.tables.results_md`, on a page without any other file.

    Args:
        summary: of :func:`captum_clip.evaluation.summary.summarize`.
        title: of the page.
        about: what a reader must know, one line each.
        curves: what each shows -> a PNG file.
        examples: metric -> the best and the worst.
        manifest: of the run.
    """
    return _template().render(
        title=title,
        about=about,
        legend=[_inline(line) for line in legend(summary) if line],
        tables=list(report_tables(summary)),
        summary=summary,
        curves={what: _encoded("png", file) for what, file in curves.items()},
        examples=examples,
        versions=manifest["environments"],
        settings={name: manifest[name] for name in ("model", "config", "data")},
    )


def command_of(config: EvaluationConfig, model: str) -> str:
    """The command that measures the same again; of files and folders the last part of the path.

    Example:
        >>> config = EvaluationConfig("demo/vit", "out", data=("masks:/data/farm",), images=9)
        >>> command_of(config, "demo/vit")
        'captum-clip evaluate --model demo/vit --data masks:farm --images 9'
    """
    parts = ["captum-clip evaluate", f"--model {shlex.quote(model)}"]
    for field in fields(config):
        value = getattr(config, field.name)
        if value == field.default or field.name in _ELSEWHERE:
            continue
        option = _OPTIONS.get(field.name, field.name).replace("_", "-")
        for each in value if isinstance(value, tuple) else (value,):
            kind, colon, place = str(each).rpartition(":") if field.name == "data" else ("", "", "")
            shown = f"{kind}{colon}{PurePath(place).name}" if colon else each
            shown = PurePath(each).name if field.name == "maps" else shown
            parts.append(f"--{option} {shlex.quote(str(shown))}")
    return " ".join(parts)


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("captum_clip.evaluation", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "inline": _inline,
        "jpeg": lambda file: _encoded("jpeg", file),
        "json": lambda value: json.dumps(value, ensure_ascii=False),
        "slug": slug,
    }
    return environment.get_template("report.html")


def _encoded(kind: str, file: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"


def _inline(markdown: str) -> Markup:
    """A cell or a line of the tables in Markdown: bold, emphasis, intervals, escapes."""
    text = str(escape(markdown))
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    text = re.sub(r"(?<!\\)\*(.+?)(?<!\\)\*", r"<em>\1</em>", text)
    text = re.sub(r"(\[[^\]]+\])", r'<span class="interval">\1</span>', text)
    return Markup(re.sub(r"\\([\\|*&`])", r"\1", text))
