"""Every command with good and with bad arguments, as a user types them."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captum_clip import __version__, cli
from captum_clip.attr.registry import methods_for
from captum_clip.cli import demo as demo_command
from captum_clip.cli import main
from captum_clip.cli import models as models_command
from captum_clip.cli import parser as parser_module
from captum_clip.cli.command import Command
from captum_clip.errors import InputError
from captum_clip.explanation import Explanation
from captum_clip.files import replace_file
from captum_clip.models import available
from captum_clip.models.loading import EXAMPLES
from tests import builders

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small model in a folder, which is a name for `--model`."""
    folder = tmp_path_factory.mktemp("models") / "small"
    small = builders.hf_vit()
    for part in small:
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a photo in another one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("photos") / "my.photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def run(*arguments: str, capsys: Capture, code: int = 0) -> str:
    """Run a command; what it printed, or its only line on stderr."""
    assert main(list(arguments)) == code
    out, err = capsys.readouterr()
    if code == 0:
        return out
    assert out == ""
    last = err.replace("\r", "\n").strip().split("\n")[-1].strip()
    assert last.startswith("captum-clip: error: ")
    assert "Traceback" not in err
    return last


# explain


def test_explain_draws_a_picture_into_the_current_folder(
    here: Path, photo: str, model: str, capsys: Capture
) -> None:
    printed = run("explain", photo, "a horse", "a dog", "--model", model, capsys=capsys)
    assert printed.endswith("\nmy.photo-explained.png\n")
    assert "a horse\n" in printed
    assert ", direct, positive)" in printed
    with Image.open(here / "my.photo-explained.png") as picture:
        assert picture.width > 3 * 400
    assert os.listdir(here) == ["my.photo-explained.png"]


@pytest.mark.parametrize(
    ("options", "signs"),
    [
        ([], ["positive"]),
        (["--negative"], ["negative"]),
        (["--sign", "negative"], ["negative"]),
        (["--sign", "both"], ["positive", "negative"]),
    ],
)
def test_explain_passes_its_options_on(
    here: Path, photo: str, model: str, capsys: Capture, options: list[str], signs: list[str]
) -> None:
    method = "last-grad:heads=averaged"
    arguments = [photo, "a", "--model", model, "--method", method, "-o", "found.npz", *options]
    assert run("explain", *arguments, capsys=capsys).endswith("\nfound.npz\n")
    found = Explanation.load(here / "found.npz")
    assert (list(found.maps), found.method) == (signs, method)


def test_explain_draws_the_whole_photo_where_it_was_cropped(
    here: Path, photo: str, model: str, capsys: Capture
) -> None:
    def size(*options: str, image: str = photo) -> tuple[int, int]:
        arguments = [image, "a", "--model", model, *options, "-o", "drawn.png"]
        run("explain", *arguments, capsys=capsys)
        with Image.open(here / "drawn.png") as drawn:
            return drawn.size

    assert size() == size("--original") == size("--whole")
    assert size() != size("--no-original") == size("--no-original", "--whole")
    with Image.open(photo) as picture:
        picture.resize((40, 40)).save(here / "square.png")
    assert size(image="square.png") == size("--no-original")


def test_explain_writes_the_regions(here: Path, photo: str, model: str, capsys: Capture) -> None:
    arguments = [photo, "a horse", "a dog", "--model", model, "--sign", "both"]
    run("explain", *arguments, "--regions", "out", "--threshold", "0.5", capsys=capsys)
    content = json.loads((here / "out/regions.json").read_text())
    assert content["photo"] == photo
    assert content["threshold"] == 0.5
    assert len(content["regions"]) == 4
    assert {row["mask"] for row in content["regions"]} < set(os.listdir(here / "out"))
    said = run("explain", photo, "a", "--threshold", "2", capsys=capsys, code=2)
    assert "--threshold: expected otsu, mean or a number in [0, 1), got 2" in said


def test_explain_says_which_maps_to_doubt(
    here: Path, photo: str, model: str, capsys: Capture
) -> None:
    arguments = ["explain", photo, "a", "--model", model, "--method", "rollout", "-o", "a.npz"]
    said = "The map of \u201ca\u201d is almost that of unrelated texts (correlation 1.00).\na.npz\n"
    assert run(*arguments, capsys=capsys).endswith(said)
    assert Explanation.load(here / "a.npz").hints[0][-1] in said


def test_explain_words_prints_the_norms(
    here: Path, photo: str, model: str, capsys: Capture
) -> None:
    arguments = [photo, "a horse", "--words", "--model", model, "-o", "words.pdf"]
    lines = run("explain", *arguments, capsys=capsys).splitlines()
    assert [("norm" in line) for line in lines if "unrelated" not in line] == [
        False,
        False,
        True,
        True,
        False,
    ]
    assert (here / "words.pdf").read_bytes().startswith(b"%PDF")


def test_explain_prints_the_norm_of_a_text_of_one_word(
    here: Path, photo: str, model: str, capsys: Capture
) -> None:
    arguments = [photo, "horse", "--words", "--model", model, "-o", "words.npz"]
    lines = run("explain", *arguments, capsys=capsys).splitlines()
    assert [("norm" in line) for line in lines if "unrelated" not in line] == [
        False,
        False,
        True,
        False,
    ]


def test_explain_does_not_replace_its_image(
    here: Path, photo: str, model: str, capsys: Capture
) -> None:
    copy = here / "photo.png"
    with Image.open(photo) as picture:
        picture.save(copy)
    before = copy.read_bytes()
    arguments = [str(copy), "a", "--model", model, "-o", "photo.png"]
    assert "would replace the image" in run("explain", *arguments, capsys=capsys, code=2)
    assert copy.read_bytes() == before


def test_explain_takes_the_name_of_a_class(
    here: Path, photo: str, model: str, capsys: Capture
) -> None:
    arguments = [photo, "a", "--model", model, "--method", "AllGradAttention", "-o", "a.npz"]
    assert "all-grad, positive" in run("explain", *arguments, capsys=capsys)


def test_explain_prints_the_scores_of_the_library_call(
    here: Path, photo: str, model: str, capsys: Capture
) -> None:
    from captum_clip.explanation import explain

    printed = run("explain", photo, "a horse", "--model", model, capsys=capsys)
    score = explain(photo, "a horse", model=model).scores.item()
    assert f"{score:6.3f}  a horse" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jpg", "a"], "there is no image file none.jpg"),
        (["PHOTO"], "required: TEXT"),
        (["PHOTO", "a", "-o", "a.gif"], "must end in .png, .jpg, .jpeg, .pdf, .svg, .npz"),
        (["PHOTO", "a", "-o", "none/a.png"], "there is no folder none"),
        (["PHOTO", "a", "b", "--words"], "--words takes one TEXT apart, got 2"),
        (["PHOTO", " "], "is empty"),
        (["PHOTO", "a" * 200], "takes 77"),
        (["PHOTO", "a", "--method", "camera"], "expected one of grad-cam"),
        (["PHOTO", "a", "--method", "gradcam"], "did you mean grad-cam?"),
        (["PHOTO", "a", "--method", "last_grad"], "did you mean last-grad?"),
        (["PHOTO", "a", "--method", "lastgrad:heads=paired"], "did you mean last-grad?"),
        (["https://x.org/a.jpg", "a"], "https://x.org/a.jpg is a URL; download the image"),
        (
            ["PHOTO", "a", "--method", "grad-cam"],
            "ClipGradCam needs the last stage of a convolutional tower",
        ),
        (["PHOTO", "a", "--method", "last-grad:heads=3"], "paired, averaged, got 3"),
        (["PHOTO", "a", "--method", "rollout", "--negative"], "no negative map"),
        (["PHOTO", "a", "--negative", "--sign", "both"], "not allowed with"),
        (["PHOTO", "a", "--device", "abacus"], "abacus"),
        (["PHOTO", "a", "--model", "nonsense"], "'nonsense' is neither a known name nor a folder"),
        (["BROKEN", "a"], "broken.png"),
    ],
)
def test_explain_says_on_one_line_what_is_wrong(
    here: Path, photo: str, model: str, capsys: Capture, arguments: list[str], message: str
) -> None:
    broken = Path(photo).with_name("broken.png")
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    given = [{"PHOTO": photo, "BROKEN": str(broken)}.get(one, one) for one in arguments]
    if "--model" not in given:
        given += ["--model", model]
    assert message in run("explain", *given, capsys=capsys, code=2)
    assert os.listdir(here) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["none.jpg", "a"],
        ["BROKEN", "a"],
        ["PHOTO", "a", "-o", "a.gif"],
        ["PHOTO", " "],
        ["PHOTO", "a", "--text", ""],
        ["PHOTO", "a", "b", "--words"],
        ["PHOTO", "a", "--method", "x"],
        ["PHOTO", "a", "--method", "last-grad:x=1"],
        ["PHOTO", "a", "--method", "rollout", "--sign", "both"],
        ["PHOTO", "a", "--device", "abacus"],
        ["PHOTO", "--emotions", "none.json"],
    ],
)
def test_what_needs_no_model_is_said_before_one_is_loaded(
    here: Path, photo: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr("captum_clip.models.load_clip", lambda *_, **__: pytest.fail("was loaded"))
    broken = Path(photo).with_name("broken.png")
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    names = {"PHOTO": photo, "BROKEN": str(broken)}
    run("explain", *(names.get(word, word) for word in arguments), capsys=capsys, code=2)


def test_texts_are_words_or_options(here: Path, photo: str, model: str, capsys: Capture) -> None:
    arguments = ["--text", "a dog", "--model", model, "a horse", "--text", "a cow", "-o", "a.npz"]
    run("explain", photo, *arguments, capsys=capsys)
    assert Explanation.load(here / "a.npz").names == ("a horse", "a dog", "a cow")


def test_a_checkpoint_without_processor_and_tokenizer_takes_others(
    here: Path, photo: str, model: str, tmp_path_factory: pytest.TempPathFactory, capsys: Capture
) -> None:
    bare = tmp_path_factory.mktemp("bare")
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes(Path(model, name).read_bytes())
    said = run("explain", photo, "a", "--model", str(bare), capsys=capsys, code=2)
    assert "--processor NAME" in said or "--tokenizer NAME" in said
    options = ["--processor", model, "--tokenizer", model]
    printed = run("explain", photo, "a", "--model", str(bare), *options, capsys=capsys)
    expected = run("explain", photo, "a", "--model", model, capsys=capsys)
    assert printed.splitlines()[1:] == expected.splitlines()[1:]
    options = ["--processor", "RN50", "--tokenizer", model]
    said = run("explain", photo, "a", "--model", str(bare), *options, capsys=capsys, code=2)
    assert "'RN50' is a model of OpenCLIP; expected a folder or a repository" in said


@pytest.mark.parametrize(("terminal", "options"), [(False, []), (True, ["--quiet"])])
def test_bars_are_for_those_who_look_at_a_terminal(
    here: Path,
    photo: str,
    model: str,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    options: list[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert main(["explain", photo, "a", "--model", model, *options]) == 0
    assert capsys.readouterr().err == ""


# models


def test_models_lists_every_name_with_its_checkpoint(capsys: Capture) -> None:
    lines = run("models", capsys=capsys).splitlines()
    for known in available():
        [line] = [line for line in lines if line.split()[:1] == [known.name]]
        assert known.checkpoint in line
        assert all(alias in line for alias in known.aliases)
    assert len(available()) == 12
    for example in EXAMPLES:
        assert any(example.name in line and example.family in line for line in lines)


def test_models_vocabulary_lists_every_word(capsys: Capture) -> None:
    from captum_clip.demo.vocabulary import WORDS

    printed = run("models", "--vocabulary", capsys=capsys)
    assert set(WORDS) <= set(printed.split())
    assert max(map(len, printed.splitlines())) <= 80


# demo


@pytest.fixture
def one_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single scene."""
    monkeypatch.setattr(demo_command, "_SCENES", demo_command._SCENES[:1])


@pytest.mark.usefixtures("one_scene")
def test_demo_needs_no_arguments_and_says_where_its_pictures_are(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["demo"]) == 0
    out, err = capsys.readouterr()
    words = [f"captum-clip-demo-words-{tower}.jpg" for tower in ("resnet", "vit")]
    names = ["captum-clip-demo-signs.jpg", *words, "captum-clip-demo.jpg"]
    assert sorted(os.listdir(here)) == names
    for name in names:
        assert f" {name}\n" in out
        with Image.open(here / name) as picture:
            picture.verify()
    assert "19/19" in err  # the bar, since this is a terminal
    assert "Warning" not in err
    assert "oading weights" not in err


def test_demo_says_when_its_folder_cannot_be(here: Path, capsys: Capture) -> None:
    (here / "file").touch()
    said = run("demo", "-o", "file", capsys=capsys, code=2)
    assert "the folder file cannot be made" in said


def test_demo_shows_scenes_of_known_things_with_every_method() -> None:
    from captum_clip.demo.catalogue import NOUNS, THINGS

    known = {*NOUNS, *(thing.name for thing in THINGS)}
    assert {name for _, objects in demo_command._SCENES for name in objects} <= known
    assert {method for _, method in demo_command._COLUMNS} <= {
        *methods_for("vit"),
        *methods_for("resnet"),
    }
    assert demo_command._scene(0)[1] == ["a horse", "a dog"]


# All of them


def all_commands() -> list[tuple[list[str], Command]]:
    """Every command with the words that call it."""
    commands = []
    for module in parser_module._COMMANDS:
        commands.append(([module.COMMAND.name], module.COMMAND))
        commands += [
            ([module.COMMAND.name, below.name], below) for below in module.COMMAND.commands
        ]
    return commands


@pytest.mark.parametrize(("words", "command"), all_commands())
def test_help_of_each_command_says_what_it_does(
    words: list[str], command: Command, capsys: Capture
) -> None:
    printed = run(*words, "--help", capsys=capsys)
    assert command.description in " ".join(printed.split())
    assert command.example in printed
    assert command.example.split()[:2] == ["captum-clip", words[0]]
    assert all(len(line) <= 100 or "captum-clip" in line for line in printed.splitlines())


def test_the_example_in_each_help_can_be_typed() -> None:
    """Its options are those of the command."""
    parser = parser_module.build_parser()
    for _, command in all_commands():
        arguments = parser.parse_args(shlex.split(command.example)[1:])
        assert callable(arguments.run)


def test_help_shows_examples(capsys: Capture) -> None:
    assert "captum-clip demo\n" in run("--help", capsys=capsys)


def test_the_help_of_explain_names_every_method(capsys: Capture) -> None:
    printed = run("explain", "--help", capsys=capsys).replace("-\n", "-")
    words = " ".join(printed.split()).replace("- ", "-")
    assert all(name in words for kind in ("vit", "resnet") for name in methods_for(kind))


def test_version(capsys: Capture) -> None:
    assert run("--version", capsys=capsys) == f"captum-clip {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "usage", "message"),
    [
        (["explian"], "", "invalid choice: 'explian'"),
        (["explian"], "", "; did you mean explain? (see captum-clip --help)"),
        (["study", "statistic"], "", "; did you mean statistics? (see captum-clip study --help)"),
        (
            ["models", "--vocabluary"],
            "usage: captum-clip models [-h] [--vocabulary]",
            "arguments: --vocabluary; did you mean --vocabulary? (see captum-clip models --help)",
        ),
        (["demo", "x"], "usage: captum-clip demo", "arguments: x (see captum-clip demo --help)"),
        (
            ["explain", "a.jpg", "a", "--modle=x", "b"],
            "usage: captum-clip explain",
            "unrecognized arguments: --modle=x b; did you mean --model?",
        ),
    ],
)
def test_wrong_arguments_are_answered_with_what_was_meant(
    arguments: list[str], usage: str, message: str, capsys: Capture
) -> None:
    """An unknown option with the usage of its command before it."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(usage or "captum-clip: error: ")
    last = err.splitlines()[-1]
    assert last.startswith("captum-clip: error: ")
    assert message in last


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("two\nlines"), 2, "captum-clip: error: two lines\n"),
        (KeyboardInterrupt(), 130, ""),
        (
            ModuleNotFoundError("No module named 'x'", name="x"),
            2,
            "captum-clip: error: x is not installed, which this command needs.\n",
        ),
    ],
)
def test_failures_have_their_exit_codes(
    error: BaseException, code: int, said: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_command, "_print_models", raising(error))
    assert main(["models"]) == code
    assert capsys.readouterr().err == said


def test_a_mistake_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_command, "_print_models", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["models"])


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_noise_is_kept_away_and_put_back(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy() -> None:
        warnings.warn("a library's remark", stacklevel=1)
        logging.getLogger("library").warning("a library's remark")

    monkeypatch.setattr(models_command, "_print_models", noisy)
    filters = list(warnings.filters)
    monkeypatch.setattr(logging.root.manager, "_disable", logging.NOTSET)
    assert main(["models"]) == 0
    assert capsys.readouterr().err == ""
    assert logging.root.manager.disable == logging.NOTSET
    assert list(warnings.filters) == filters


HELP = [["--help"], ["--version"], []] + [
    [name, "--help"]
    for name in ("explain", "figure", "rank", "study", "evaluate", "emotions", "models", "demo")
]


@pytest.mark.parametrize("arguments", [*HELP, ["app", "--help"], ["figure", "layers", "--help"]])
def test_help_is_answered_without_a_heavy_import(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from captum_clip.cli import main\n"
        f"assert main({arguments!r}) == 0\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'transformers', 'captum', 'pandas', 'tqdm'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_a_command_the_help_is_printed(capsys: Capture) -> None:
    assert run(capsys=capsys) == run("--help", capsys=capsys)


def test_python_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "captum_clip", "--version"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
    )
    assert done.stdout == f"captum-clip {__version__}\n"
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("streams", "code", "said"),
    [
        ("> /dev/full", 2, "captum-clip: error: the output cannot be written: no space is left"),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("> /dev/full 2>&-", 2, ""),
    ],
)
def test_streams_that_take_nothing_are_no_mistake_of_the_program(
    streams: str, code: int, said: str
) -> None:
    command = f"{shlex.quote(sys.executable)} -m captum_clip models {streams}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert done.stderr.startswith(said)


def test_a_reader_that_has_enough_is_no_failure() -> None:
    code = "import sys; from captum_clip.cli import main; sys.exit(main(['models']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert b"BrokenPipe" not in said


def test_a_process_that_is_ended_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM, as batch systems send it, while a file is written."""

    def write(*_: Any) -> None:
        replace_file(tmp_path / "a", lambda file: os.kill(os.getpid(), signal.SIGTERM))

    monkeypatch.setattr(models_command, "_print_models", write)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["models"]) == 143
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interruption_of_the_imports_says_nothing() -> None:
    code = (
        "import runpy, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'captum_clip.cli.parser': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "runpy.run_module('captum_clip', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (130, "")
