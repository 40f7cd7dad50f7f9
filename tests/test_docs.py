"""The documentation: its examples and commands run, its links lead somewhere."""

from __future__ import annotations

import csv
import doctest
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from open_clip.factory import _MODEL_CONFIGS
from torch import Tensor

import captum_clip
from captum_clip import attr
from captum_clip.bench.data import DATA_SETS
from captum_clip.bench.tasks import TASKS
from captum_clip.demo import MODELS
from captum_clip.models import families
from tests import oracles
from tests.cli.parsing import parse
from tests.experiments import FOLDER, experiment

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "appendix").glob("*.md"))


class Block(NamedTuple):
    """A Python example of a page: its place, what the comment above it says, and its code."""

    line: int
    mark: str
    code: str


def blocks_of(page: Path) -> Iterator[Block]:
    """The Python examples of a page in their order."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"(?:<!-- ([^\n]*?) -->\n)?```python\n(.*?)```", text, re.DOTALL):
        yield Block(text[: found.start(2)].count("\n"), found[1] or "", found[2])


# Examples with names of the hub run on the embedded models, which need no network.
VIT, RESNET = str(MODELS["demo/vit"]), f"local-dir:{MODELS['demo/resnet']}"
INSTEAD = {
    '"openai/clip-vit-base-patch32"': repr(VIT),
    '"RN50-quickgelu", pretrained="openai"': repr(RESNET),
    '"RN50-quickgelu"': repr(RESNET),
    '"ViT-B/32"': '"demo/vit"',
    '"RN101"': '"demo/resnet"',
    '"google/siglip2-base-patch16-224"': '"demo/siglip"',
    '"ViT-B-16-SigLIP2/webli"': '"demo/vit"',
    '"hf-hub:timm/ViT-B-16-SigLIP2"': '"demo/vit"',
    "start_layer=11": "start_layer=2",  # the last of the small copy of OpenAI's model
    '"facebook/sam-vit-base"': '"sam"',
    'transforms("ViT-B-32", pretrained=file)': 'transforms("small", pretrained=file)',
    "pretrained=True, num_classes=0": "num_classes=0, depth=1",
    "import clip as openai_clip": "from tests.models import test_openai as openai_clip",
    '"docs/experiments/shortcut/model"': repr(str(FOLDER / "shortcut" / "model")),
}

# What an example takes for granted, and the files that it reads.
PICTURES = """
from PIL import Image
from captum_clip.demo.scenes import draw_scene

def picture(name, seed):
    Path(name).parent.mkdir(exist_ok=True)
    Image.fromarray(draw_scene(seed, objects=["horse", "dog"]).image).save(name)

picture("photo.jpg", 7)
picture("scene.jpg", 7)
picture("other.jpg", 8)
picture("photos/one.jpg", 7)
picture("photos/two.jpg", 8)
"""
TAKEN = {
    "README": """
import captum_clip, torch
from torch.nn.functional import normalize

clip = captum_clip.load_clip("demo/vit")
model, pixels = clip.model, clip.preprocess("scene.jpg")
texts = clip.encode_text(["a horse", "a dog"]).detach()
""",
    "regions": """
from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

narrow = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "mlp_dim": 8}
vision = {**narrow, "image_size": 64, "output_channels": 8, "num_pos_feats": 4, "window_size": 2}
prompt = {"hidden_size": 8, "image_size": 64, "image_embedding_size": 4, "mask_input_channels": 4}
decoder = {**narrow, "iou_head_hidden_dim": 8, "attention_downsample_rate": 1}
parts = {"vision_config": vision, "prompt_encoder_config": prompt, "mask_decoder_config": decoder}
sides = {"size": {"longest_edge": 64}, "mask_size": {"longest_edge": 16}}
pads = {"pad_size": {"height": 64, "width": 64}, "mask_pad_size": {"height": 16, "width": 16}}
SamModel(SamConfig(**parts)).save_pretrained("sam")
SamProcessor(SamImageProcessor(**sides, **pads)).save_pretrained("sam")
""",
    "data_sets": """
from tests.experiments import experiment

experiment("artemis").write_artemis("art", paintings=80)
Path("art/artemis_dataset_release_v0.csv").rename("artemis_dataset_release_v0.csv")
Path("art/images").rename("wikiart")
""",
    "own_model": """
from captum_clip import load_clip
from tests.models.tuned import *

write_checkpoints()

clip = load_clip("demo/vit")
model, processor, tokenizer = clip.model, clip.processor, clip.tokenizer
""",
}


def run(block: Block, page: Path, namespace: dict[str, Any]) -> None:
    """Run an example as a user would, or compare what it prints where it is a dialogue."""
    code = block.code
    for name, embedded in INSTEAD.items():
        code = code.replace(name, embedded)
    if not code.startswith(">>>"):
        exec(compile("\n" * block.line + code, page, "exec"), namespace)
        return
    test = doctest.DocTestParser().get_doctest(code, namespace, page.name, str(page), block.line)
    said: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    results = doctest.DocTestRunner(optionflags=flags).run(test, out=said.append, clear_globs=False)
    assert not results.failed, "".join(said)
    namespace.update(test.globs)


def as_file(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an example that is a whole file in its place, for this test only."""
    path = Path(block.mark.removeprefix("file: "))
    assert not (ROOT / path).exists(), f"{path} exists; the example needs another name"
    name = ".".join(path.with_suffix("").parts)
    module = ModuleType(name)
    module.__package__ = name.rpartition(".")[0]
    monkeypatch.setitem(sys.modules, name, module)
    if module.__package__:
        monkeypatch.setattr(sys.modules[module.__package__], path.stem, module, raising=False)
    exec(compile(block.code, path, "exec"), module.__dict__)


@pytest.fixture(autouse=True)
def _restored_registries() -> Iterator[None]:
    """What an example registers is forgotten after it."""
    registries: list[dict[str, Any]] = [attr.METHODS, TASKS, DATA_SETS, _MODEL_CONFIGS]
    before = [(registry, dict(registry)) for registry in registries]
    known = families.FAMILIES[:]
    yield
    families.FAMILIES[:] = known
    for registry, contents in before:
        registry.clear()
        registry.update(contents)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("page", [p for p in PAGES if [*blocks_of(p)]], ids=lambda p: p.stem)
def test_examples_of_a_page_run(page, tmp_path, monkeypatch):
    """One after the other in one namespace, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(FOLDER)
    namespace: dict[str, Any] = {"__name__": "__main__", "Path": Path}
    exec(PICTURES + TAKEN.get(page.stem, ""), namespace)
    for block in blocks_of(page):
        if block.mark.startswith("file: "):
            as_file(block, monkeypatch)
        elif block.mark.startswith("needs: ") and not find_spec(block.mark.removeprefix("needs: ")):
            continue
        elif not block.mark.startswith("not run: "):
            run(block, page, namespace)


def see_own(model: Any, images: Tensor) -> oracles.Seen:
    """A forward of the page's own vision transformer with every attention in the graph."""
    x = model.patches(images).flatten(2).mT
    x = torch.cat([model.class_token.expand(len(images), -1, -1), x], 1) + model.positions
    seen = []
    for block in model.blocks:
        own = block.attention
        stacked = zip(own.in_map.weight.chunk(3), own.in_map.bias.chunk(3), strict=True)
        projections = [*stacked, (own.out_map.weight, own.out_map.bias)]
        attended, attention = oracles.attend(oracles.norm(x, block.norm_1), projections, 4)
        seen.append(attention)
        x = x + attended
        x = x + block.mlp(oracles.norm(x, block.norm_2))
    embedding = model.project(oracles.norm(x[:, 0], model.norm))
    return oracles.Seen(embedding, x, x[:, 1:], tuple(seen), (4, 4), "cls")


@pytest.fixture
def own_clip(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The page's own vision tower in double precision, before its family is registered."""
    model, family = (b for b in blocks_of(ROOT / "docs" / "extending.md") if "own_" in b.mark)
    as_file(model, monkeypatch)
    torch.manual_seed(0)
    vision = sys.modules["own_clip"].OwnVision().double().eval()
    return vision, lambda: as_file(family, monkeypatch)


@pytest.mark.parametrize("method", oracles.METHODS)
def test_example_of_a_family_draws_what_the_equations_say(method, own_clip):
    """The family of one's own in docs/extending.md is right for every method, all targets."""
    vision, register = own_clip
    register()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    found = getattr(attr, method)(vision, layer=vision).attribute_targets(images)
    seen = see_own(vision, images)
    torch.testing.assert_close(found, oracles.maps(method, seen, seen.embedding))


def commands_of(page: Path) -> Iterator[list[str]]:
    """The arguments of every `captum-clip` in the page's command lines."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["captum-clip"]:
                yield words[1:]


def test_commands_of_the_pages_exist():
    """Commands and options are those of the command line; files and models are not looked for."""
    found = [arguments for page in PAGES for arguments in commands_of(page)]
    assert len(found) > 50
    for arguments in found:
        parse(arguments)


# Links


def anchors_of(page: Path) -> set[str]:
    """What a link can name after #, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links_of(page: Path) -> Iterator[str]:
    """Where a page leads, but for the web."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"(?:\]\(|src=\")([^)\s\"]+)[)\"]", text)
    yield from (link for link in links if "://" not in link)


def test_links_between_files_lead_somewhere():
    """Files and headings exist, seen from where the page lies on GitHub."""
    for page, link in [(each, link) for each in PAGES for link in links_of(each)]:
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}, which is not there"
        assert not anchor or anchor in anchors_of(target), f"{page.name}: no heading {link}"


def test_the_pages_import_public_modules_only():
    """What a reader copies does not break when a private module is renamed."""
    code = {page: [block.code for block in blocks_of(page)] for page in PAGES}
    scripts = [*(ROOT / "docs").glob("examples/*.py"), *(ROOT / "docs").glob("gallery/*.py")]
    code |= {script: [script.read_text(encoding="utf-8")] for script in scripts}
    private = re.compile(r"^[> ]*(?:from|import) (?:captum_clip\S*)?\._.*", re.M)
    assert {p.name: found for p in code if (found := private.findall("".join(code[p])))} == {}


def test_every_public_module_has_its_reference():
    """What captum_clip exports is in the list that the reference is made from."""
    listed = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for name in dir(captum_clip):
        if isinstance(getattr(captum_clip, name), ModuleType):
            assert re.search(rf"^   captum_clip\.{name}$", listed, re.MULTILINE), name


def test_a_search_finds_the_words_of_users():
    """On the page where they would look; the search knows only what a page says."""
    words = {"regions": ["bounding boxes"], "start": ["heatmaps", "Jupyter"]}
    words |= {"own_model": ["torch.compile", "DataParallel"]}
    for page, each in words.items():
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        assert [word for word in each if word not in text] == [], page


def test_every_page_is_in_the_index():
    """On GitHub there is no list of pages but the index."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.stem == "index" or f"({page.name})" in index, page.name


def test_the_appendix_stays_out_of_the_search(monkeypatch):
    """By what the configuration writes above each page; no chapter has it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    hide = runpy.run_path(str(ROOT / "docs" / "conf.py"))["hide_appendix"]
    for page, hidden in {"appendix/measurements": True, "right": False}.items():
        source = ["text"]
        hide(None, page, source)
        assert ("nosearch: true" in source[0], "orphan: true" in source[0]) == (hidden, hidden)
        assert source[0].endswith("text")


@pytest.fixture
def measured() -> Any:
    """What makes the pictures and tables of the documentation."""
    return experiment("measured")


def test_every_picture_of_the_embedded_models_is_made_by_a_step(measured):
    by_hand = {"flow.svg", "floors.svg"}  # drawings
    by_hand |= {f"badge_{name}.svg" for name in ("license", "python", "tests")}
    shown = {picture.name for picture in (ROOT / "docs" / "images").iterdir()} - by_hand
    steps = [step for step in measured.STEPS if step.image is not None]
    made = {f"{step.name}.{'jpg' if step.side else 'png'}" for step in steps}
    assert shown == made
    pages = "".join(page.read_text() for page in PAGES)
    assert all(f"images/{picture}" in pages for picture in shown)


def test_commands_of_the_steps_exist(measured):
    """Commands and options are those of the command line, which steps take hours to find out."""
    lines = [
        line for step in measured.STEPS if not step.python for line in step.commands.split("\n")
    ]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("captum-clip ")]
    assert len(commands) > 20
    for arguments in commands:
        parse(arguments)


def test_tables_of_the_documentation_go_where_the_page_shows_them(measured, tmp_path, monkeypatch):
    """Under the marker of the step, or into the file of a csv-table."""
    monkeypatch.setattr(measured, "OUT", tmp_path / "docs/experiments/measured")
    monkeypatch.setattr(measured, "DOCS", tmp_path / "docs")
    page = tmp_path / "docs/page.md"
    page.parent.mkdir()
    page.write_text("a\n<!-- measured: x -->\n| old |\n|---|\n\nb | c\n")
    measured.Step("x", "echo '| new |'", page="page.md").make()
    assert page.read_text() == "a\n<!-- measured: x -->\n| new |\n\nb | c\n"
    page.write_text("```{csv-table}\n:file: tables/x.csv\n```\n")
    step = measured.Step("x", "printf '| a | b, c |\n|---|---|\n| 1 |  |\n'", page="page.md")
    step.make()
    assert (page.parent / "tables/x.csv").read_text() == 'a,"b, c"\n1,\n'
    assert page.read_text() == "```{csv-table}\n:file: tables/x.csv\n```\n"


def test_every_measured_table_has_its_place(measured):
    """Under its marker, or as a file; and what a step reads has a step."""
    names = {step.name for step in measured.STEPS}
    assert len(names) == len(measured.STEPS)
    for step in measured.STEPS:
        assert names.issuperset(step.after), step.name
        if step.page is not None:
            page = ROOT / "docs" / step.page
            text = page.read_text(encoding="utf-8")
            if f":file: tables/{step.name}.csv\n" in text:
                with (page.parent / "tables" / f"{step.name}.csv").open(newline="") as lines:
                    header, *rows = csv.reader(lines)
                assert rows, step.name
                assert {len(row) for row in rows} == {len(header)}, step.name
            else:
                assert f"<!-- measured: {step.name} -->\n|" in text, step.name


def test_every_script_makes_something_that_a_page_names(measured):
    """Or that a step makes."""
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    pages += "".join(step.commands for step in measured.STEPS)
    for script in sorted(FOLDER.glob("*.py")):
        assert re.search(rf"\b{script.name}\b", pages), script.name


def test_a_table_in_a_file_can_be_opened_on_github():
    """A link stands below it, and no file is left over."""
    shown = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"^:file: (.*)$", text, re.MULTILINE):
            assert f":header-rows: 1\n```\n\n[The table as a file]({name})\n" in text, name
            shown.add(page.parent / name)
    assert shown == {*(ROOT / "docs" / "appendix" / "tables").iterdir()}


def test_tables_are_made_of_what_steps_found(measured, tmp_path, monkeypatch, capsys):
    """A figure over fewer images than others of its metric says so; numbers lose their zero."""
    tables = experiment("tables")
    rows = [
        *("last-grad,pointing,0.58,0.55,0.6,500", "last-grad,energy,0.33,0.32,0.34,500"),
        *("occlusion,pointing,0.5,0.4,1,64", "all-grad,pointing,-0.004,-0.12,0.1,500"),
    ]
    for model in tables.NAMES:
        text = "\n".join(["method,metric,mean,low,high,images", *rows])
        for step in tables.PARTS:
            folder = tmp_path / f"{step}_{model}" / "out"
            folder.mkdir(parents=True)
            (folder / "results.csv").write_text(text)
        folder = tmp_path / f"broad_{model}"
        folder.mkdir()
        (folder / "printed.txt").write_text(f"x\n| scenes | nouns |\n|---|---|\n| a | .{model} |\n")
    monkeypatch.setattr(tables, "OUT", tmp_path)
    tables.TABLES["pointing"]()
    first, *_ = capsys.readouterr().out.splitlines()[2:]
    assert first == "| demo/vit | last-grad | .58 [.55, .60] | – | .33 [.32, .34] |"
    tables.TABLES["excerpt"]()
    printed = capsys.readouterr().out
    assert "| demo/vit | occlusion | .500 [.400, 1.000] (n = 64) | –" in printed
    assert "| demo/siglip | all-grad | −.004 [−.120, .100] | –" in printed
    tables.TABLES["broad"]()
    assert capsys.readouterr().out.splitlines()[2:] == ["| a | .vit | .resnet | .siglip |"]
    assert set(tables.TABLES) == {
        step.name for step in measured.STEPS if "tables.py" in step.commands
    }


def test_steps_of_the_documentation_follow_their_commands(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "OUT", tmp_path)
    step = measured.Step("a", "echo 1; touch other")
    step.make()
    assert step.is_made()
    assert (tmp_path / "a/printed.txt").read_text() == "1\n"
    other = measured.Step("a", "ls")
    assert not other.is_made()
    other.make()
    assert "other" not in (tmp_path / "a/printed.txt").read_text()  # nothing stays of them
    failing = measured.Step("b", "touch kept; test -e more")
    for _ in range(2):
        with pytest.raises(subprocess.CalledProcessError):
            failing.make()
        assert not failing.is_made()
    (tmp_path / "b/more").touch()  # of the same commands all stays
    failing.make()
    assert failing.is_made()
