"""Sphinx: `python -m sphinx -W --keep-going -b html docs docs/_build/html`, without a network."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

LOGGER = logging.getLogger(__name__)
DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]

import captum_clip  # noqa: E402

project = "captum_clip"
author = copyright = "The captum_clip authors"
version = release = captum_clip.__version__

extensions = [
    "myst_nb",  # Markdown, and the tutorials as they were saved
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "experiments", "gallery"]
templates_path = ["_templates"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"

# below "generated", which each build makes anew: pictures follow the package, not the scripts alone
GALLERY = "generated/gallery"
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": GALLERY,
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("saved_pictures.take",),
    "capture_repr": (),  # the path that `save` returns
    "notebook_extensions": set(),  # which myst_nb would read as further pages
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": 600,
}

default_role = "literal"  # `name` in a docstring, as in Markdown
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90

html_theme = "furo"
html_title = f"captum_clip {release}"
html_static_path = ["_static"]
html_css_files = ["docs.css"]
html_js_files = ["docs.js"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_search_scorer = str(DOCS / "_static" / "scorer.js")  # Sphinx reads it from where it is started
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


# Sphinx reads below its own folder only; what lies beside it is copied to where a link becomes:
BESIDE = {
    "../CHANGELOG.md": "beside/changelog.md",
    "experiments/README.md": "beside/experiments.md",
    **{
        f"../captum_clip/demo/{card.parent.name}/{card.name}": f"beside/{card.parent.name}.md"
        for card in sorted((ROOT / "captum_clip" / "demo").glob("*/MODEL_CARD.md"))
    },
    **{
        f"../tutorials/{notebook.name}": f"tutorials/{notebook.name}"
        for notebook in sorted((ROOT / "tutorials").glob("*.ipynb"))
    },
}


def copy_beside() -> None:
    """Make the copies anew, with their links to the documentation turned round."""
    for folder in ("beside", "generated", "tutorials"):
        shutil.rmtree(DOCS / folder, ignore_errors=True)
    for source, copy in BESIDE.items():
        text = (DOCS / source).read_text(encoding="utf-8")
        text = re.sub(r"\]\((\.\./)?docs/", "](../", text)
        if copy.endswith(".md"):
            text = f"---\norphan: true\n---\n\n{text}"
        (DOCS / copy).parent.mkdir(exist_ok=True)
        (DOCS / copy).write_text(text, encoding="utf-8")


def link_copies(app: Any, page: str, source: list[str]) -> None:
    """Links from a page to what lies beside the folder lead to the copy."""
    up = "../" * page.count("/")
    for original, copy in {**BESIDE, "gallery": f"{GALLERY}/index.rst"}.items():
        source[0] = source[0].replace(f"]({up}{original})", f"]({up}{copy})")


def list_groups(app: Any, page: str, source: list[str]) -> None:
    """The side bar has the groups of the index, which GitHub shows as lists."""
    if page != "index":
        return
    for group in source[0].split("\n## ")[1:]:
        pages = "\n".join(re.findall(r"\]\((?!\w+:)([^)#]+)\.(?:md|ipynb|rst)\)", group))
        caption = group.partition("\n")[0]
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"


def index_words(app: Any, page: str, source: list[str]) -> None:
    """Words that GitHub hides, `<!-- index: words; others -->`, which people search for."""
    source[0] = re.sub(
        r"^<!-- index: (.*) -->$",
        lambda found: f"```{{index}} ! {', ! '.join(found[1].split('; '))}\n```",
        source[0],
        flags=re.MULTILINE,
    )


SEARCHED = ["appendix/messages", "appendix/security", "appendix/citing"]


def hide_appendix(app: Any, page: str, source: list[str]) -> None:
    """Tables and protocols are no chapter, and their words would crowd every search."""
    if page.startswith("appendix/"):
        nosearch = "" if page in SEARCHED else "nosearch: true\n"
        source[0] = f"---\norphan: true\n{nosearch}---\n\n{source[0]}"


# docutils puts the index of \bar A_l below the letter, unless something follows in braces.
ACCENT = re.compile(r"\\(bar|hat|tilde|widehat) *(\{\w+\}|\w)")


def math_block(translator: Any, node: Any) -> None:
    """An equation as MathML, which browsers draw themselves: no script, no font."""
    translator.body.append(f'<div class="math">{mathml(node, True)}</div>')
    raise nodes.SkipNode


def math_inline(translator: Any, node: Any) -> None:
    """A formula in a line."""
    translator.body.append(mathml(node, False))
    raise nodes.SkipNode


def mathml(node: Any, block: bool) -> str:
    """The MathML of a formula; one that cannot be read is a warning with its place."""
    formula = ACCENT.sub(r"{\g<0>{}}", node.astext()).replace(r"\setminus", r"\smallsetminus")
    try:
        return str(tex2mathml(formula, as_block=block))
    except MathError as error:
        LOGGER.warning("cannot read the formula %s: %s", node.astext(), error, location=node)
        return escape(node.astext())


def resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Names in docstrings: where an object is documented, by the end of its name."""
    if node.get("refdomain") != "py":
        return None
    objects = env.get_domain("py").objects
    parts = node["reftarget"].split(".")
    for start in range(len(parts)):
        end = ".".join(parts[start:])
        found = [name for name in objects if name == end or name.endswith(f".{end}")]
        if found:
            name = min(found, key=len)
            entry = objects[name]
            return make_refnode(
                app.builder, node["refdoc"], entry.docname, entry.node_id, content, name
            )
    return None


def skip(app: Any, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Fields of a named tuple, which Python documents as "Alias for field number 0"."""
    return True if str(obj.__doc__).startswith("Alias for field number") else None


def setup(app: Any) -> None:
    """What Sphinx calls."""
    copy_beside()
    app.connect("source-read", link_copies)
    app.connect("source-read", list_groups)
    app.connect("source-read", index_words)
    app.connect("source-read", hide_appendix)
    app.add_html_math_renderer("mathml", (math_inline, None), (math_block, None))
    app.connect("autodoc-skip-member", skip)
    app.connect("missing-reference", resolve)
