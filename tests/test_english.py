"""Plain English in README, documentation, tutorials, gallery, public docstrings.

``python -m tests.test_english docs/start.md captum_clip/maps.py`` lists the faults of pages and of
modules; without arguments those of all.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "appendix").glob("*.md"))
PAGES += sorted((ROOT / "tutorials").glob("*.ipynb"))
GALLERY = sorted((ROOT / "docs" / "gallery").glob("*.py"))
MODULES = [*sorted((ROOT / "captum_clip").rglob("*.py")), *GALLERY]

LONGEST, MEAN = 35, 22  # words of a sentence
FORBIDDEN = re.compile(r"^Of (?!course)|\bone of\b|\bone's\b|\bas dear\b|\bof no [a-z]+\b|\blest\b")
# no times of day, "saliency" is the term of the field, quotes are straight as in code
NOT_OURS = ("dates_times", "needless_variants", "typography")
ITEM = r"[\w, *]+(?: \(.*\))?: "  # of a list of arguments or attributes
HEADINGS = "Args|Returns|Raises|Attributes|Example"


def paragraphs_of(page: str) -> Iterator[str]:
    """The prose of Markdown: paragraphs, items and cells; code and formulas are a word each."""
    text = re.sub(r"<!--.*?-->|\$\$.*?\$\$", "", page, flags=re.DOTALL)
    text = re.sub(r"\$[^$\n]+\$", "formula", text)
    for block in MarkdownIt().enable("table").parse(text):
        leaves = [leaf for leaf in block.children or [] if leaf.type != "image"]
        words = ("code" if leaf.type == "code_inline" else leaf.content or " " for leaf in leaves)
        yield " ".join("".join(words).split())


def docstrings_of(module: str) -> Iterator[str]:
    """The docstrings of a module's public names, by paragraph, item and argument."""
    for node in ast.walk(ast.parse(module)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            text = ast.get_docstring(node) or ""
            if getattr(node, "name", "").startswith("_"):
                continue
            text = re.sub(r"\.\. math::.*?(?=\n\s*\n|\Z)", "", text, flags=re.DOTALL)
            text = re.sub(r"(?m)^ *(>>>|\.\.\.) .*(\n(?! *>>>)(?! *\n).*)*", "", text)
            text = re.sub(r"``[^`]*``|:\w+:`[^`]*`|`[^`]*`", "code", text)
            starts = rf"\n\s*\n|\n(?= {{4,}}\w+ {{2,}})|\n(?=\s+{ITEM})|(?<=::)\n|\n\s*- "
            for paragraph in re.split(starts, text):
                prose = re.sub(rf"^\s*(?:{HEADINGS}):|^\s*{ITEM}", "", paragraph)
                yield " ".join(prose.split())


def sentences_of(file: Path) -> list[str]:
    """Every sentence of a page, of a tutorial's text or of a module's docstrings."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    sentences: list[str] = []
    for prose in docstrings_of(text) if file.suffix == ".py" else paragraphs_of(text):
        whole = prose.replace("e.g. ", "").replace("et al. ", "et al ")
        sentences += re.split(r"(?<=[.!?])[\")]*\s+(?=[\"(A-Z]|code\b|formula\b)", whole)
    return [sentence for sentence in sentences if sentence]


def faults_of(file: Path) -> list[str]:
    """Sentences that are too long or hold a forbidden turn, and a mean length above the bound."""
    sentences = sentences_of(file)
    lengths = {sentence: len(sentence.split()) for sentence in sentences}
    faults = [f"{lengths[s]} words: {s}" for s in sentences if lengths[s] > LONGEST]
    faults += [f"{found[0]!r}: {s}" for s in sentences if (found := FORBIDDEN.search(s))]
    ended = [lengths[s] for s in sentences if s.endswith((".", "!", "?")) and lengths[s] > 3]
    mean = sum(ended) / max(1, len(ended))
    return faults + [f"{mean:.1f} words a sentence"] * (mean > MEAN)


def test_the_documentation_is_plain() -> None:
    """At most 22 words a sentence on average, none of more than 35, and no forbidden turn."""
    assert {page.name: faults for page in PAGES if (faults := faults_of(page))} == {}


def test_docstrings_are_plain() -> None:
    """The same for what the reference and help() say."""
    assert {str(file): faults for file in MODULES if (faults := faults_of(file))} == {}


def test_proselint_finds_nothing(tmp_path: Path) -> None:
    """No clichés, slips and doubled words in the guides."""
    for page in PAGES:
        ended = [sentence for sentence in sentences_of(page) if sentence.endswith((".", "?"))]
        prose = re.sub(r"\bcode\b ?", "", " ".join(ended))
        (tmp_path / f"{page.parent.name}-{page.stem}.md").write_text(prose, encoding="utf-8")
    command = [sys.executable, "-m", "proselint", "check", *(p.name for p in tmp_path.iterdir())]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    remarks = re.findall(r"([\w-]+\.md):[\d:]+ ([\w.]+): (.*)", said)
    assert "\n".join(" ".join(r) for r in remarks if not r[1].startswith(NOT_OURS)) == ""


if __name__ == "__main__":
    for file in [Path(name).resolve() for name in sys.argv[1:]] or PAGES + MODULES:
        for fault in faults_of(file):
            print(f"{file.relative_to(ROOT)}: {fault}")
