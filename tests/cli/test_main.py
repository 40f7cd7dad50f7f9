"""What all commands have in common: help, errors, exit codes, streams and signals."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captum_clip import __version__, cli
from captum_clip.attr.registry import methods_for
from captum_clip.bench.data import forms
from captum_clip.bench.tasks import TASKS
from captum_clip.cli import main, options
from captum_clip.errors import InputError
from tests.attr import cases
from tests.cli.parsing import leaves, parse

Capture = pytest.CaptureFixture[str]
COMMANDS = dict(leaves())
HEAVY = {"torch", "numpy", "matplotlib", "transformers", "captum", "pandas", "tqdm", "rich"}


def program(code: str, *, shell: bool = False) -> subprocess.CompletedProcess[str]:
    """Run Python code, or a line of the shell in which PYTHON is this one, in its own process."""
    line = code.replace("PYTHON", shlex.quote(sys.executable))
    words = ["sh", "-c", line] if shell else [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    return subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)


def test_help_of_each_command_explains_every_option(capsys: Capture) -> None:
    """And the example at its end can be typed."""
    for words, command in COMMANDS.items():
        assert main([*words, "--help"]) == 0
        printed = capsys.readouterr().out
        assert f"example:\n  captum-clip {' '.join(words)} " in printed
        assert all(parameter.help for parameter in command.params)
        assert all(len(line) <= 80 or "captum-clip" in line for line in printed.splitlines())
        parse(shlex.split(printed.splitlines()[-1])[1:])


def test_usage_shows_images_then_texts(capsys: Capture) -> None:
    for line, usage in (
        ("explain", "IMAGE... [TEXT]..."),
        ("figure", "{figure} [IMAGE]... [TEXT]..."),
    ):
        assert main([line, "--help"]) == 0
        assert f"captum-clip {line} [OPTIONS] {usage}\n" in capsys.readouterr().out


def test_help_lists_what_the_registries_know(capsys: Capture) -> None:
    vit, resnet = (tuple(listed) for listed in options.OPTIONS["methods"].values())
    assert vit == methods_for("vit")
    assert resnet[:-1] == methods_for("resnet")
    assert (resnet[0], *vit, "layer", "cam") == tuple(cases.OWN)
    names = {"tasks": tuple(TASKS), "data sets": tuple(forms())}
    assert {title: tuple(listed) for title, listed in options.OPTIONS["listed"].items()} == names
    main(["evaluate", "--help"])
    printed = capsys.readouterr().out.replace(",", " ").split()
    listed = (vit, resnet[:-1], *names.values())
    assert {name for names in listed for name in names} <= set(printed)


def test_help_and_what_is_no_command_line_need_no_heavy_import() -> None:
    """Each command in one process, and lines that are refused as they are parsed."""
    lines = [
        [],
        ["--version"],
        ["models"],
        ["models", "--vocabulary"],
        *([*words, "--help"] for words in COMMANDS),
    ]
    wrong = ["explian", "explain a.jpg b --method x --side imge", "study statistic a -o o"]
    code = (
        "import sys\n"
        "from captum_clip.cli import main\n"
        f"assert [main(line) for line in {lines}] == {[0] * len(lines)}\n"
        f"assert [main(line.split()) for line in {wrong}] == {[2] * len(wrong)}\n"
        f"assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)"
    )
    done = program(code)
    assert done.returncode == 0, done.stderr


def test_a_wrong_path_name_or_text_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    """They are said within a second, of which torch alone would take more."""
    image = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(image)
    wrong = [
        "explain nosuch.png horse",
        f"explain {image}",
        f"explain {image} horse dog --words",
        f"explain {image} horse --side text --regions r",
        f"explain {image} horse -o {tmp_path}/none/a.png",
        f"explain {image} --texts none.txt",
        f"explain {image} horse --image none.png",
        f"explain {image} horse --method lastgrad:heads=paired",
        f"explain {image} horse -m demo/vit -m ViT-B/3",
        f"explain {image} horse -m demo/vit --processor nosuch",
        f"explain {tmp_path} horse -m nosuch",
        "figure compare none.png horse",
        f"figure compare {image} horse -m nosuch",
        "study statistics none horse -o o",
        f"study statistics {tmp_path} horse -m nosuch -o o",
        "evaluate -m nosuch -o o",
        "emotions fit none -m demo/vit -o p.safetensors",
        "search none.lance horse",
        f"search {tmp_path} horse",
        "index none -o o.lance",
        f"index {tmp_path} -m nosuch -o o.lance",
        "heads none -m demo/vit -o o",
        f"change {tmp_path} horse -m demo/vit -m nosuch -o o",
        "app -m nosuch",
    ]
    code = (
        "import sys\n"
        "from captum_clip.cli import main\n"
        f"assert [main(line.split()) for line in {wrong}] == {[2] * len(wrong)}\n"
        f"loaded = {HEAVY - {'numpy', 'tqdm'} | {'lancedb', 'gradio'}} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = program(code)
    assert done.returncode == 0, done.stderr


def test_the_shell_completes_commands_and_options() -> None:
    words = {"COMP_WORDS": "captum-clip explain --mo", "COMP_CWORD": "2"}
    asked = {**os.environ, **words, "_CAPTUM_CLIP_COMPLETE": "complete_bash"}
    line = [sys.executable, "-c", "import sys; from captum_clip.__main__ import main; main()"]
    done = subprocess.run(line, env=asked, capture_output=True, text=True, timeout=60)
    assert done.stdout == "--model\n"


def test_without_a_command_the_help_is_printed(capsys: Capture) -> None:
    assert main([]) == main(["--help"]) == main(["-h"]) == 0
    printed = capsys.readouterr().out
    third = printed[: len(printed) // 3]
    assert printed == 3 * third
    assert "captum-clip demo\n" in third


def test_python_m_is_the_same_command() -> None:
    done = program("PYTHON -m captum_clip --version", shell=True)
    assert (done.returncode, done.stdout) == (0, f"captum-clip {__version__}\n")


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("two\nlines"), 2, "captum-clip: error: two lines\n"),
        (KeyboardInterrupt(), 130, ""),
        (
            ModuleNotFoundError("No module named 'x'", name="x"),
            2,
            "captum-clip: error: x is not installed, and this command needs it.\n",
        ),
    ],
)
def test_failures_have_their_exit_codes(
    error: BaseException, code: int, said: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captum_clip.models.available", raising(error))
    assert main(["models"]) == code
    assert capsys.readouterr().err == said


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captum_clip.models.available", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["models"])


def test_warnings_and_logs_of_libraries_are_hidden_and_their_settings_restored(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy() -> list[Any]:
        warnings.warn("a library's remark", stacklevel=1)
        logging.getLogger("library").warning("a library's remark")
        return []

    monkeypatch.setattr("captum_clip.models.available", noisy)
    monkeypatch.setattr(logging.root.manager, "_disable", logging.NOTSET)
    filters = list(warnings.filters)
    assert main(["models"]) == 0
    assert capsys.readouterr().err == ""
    assert logging.root.manager.disable == logging.NOTSET
    assert list(warnings.filters) == filters


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_enough_is_no_error(unbuffered: str) -> None:
    """As `head` is, which closes its end of the pipe; a shell tells the code of `head` alone."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        command = [sys.executable, "-m", "captum_clip", "models"]
        how: Any = {"env": {**os.environ, "PYTHONUNBUFFERED": unbuffered}, "timeout": 60}
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, **how)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_that_is_ended_leaves_nothing_half_written(tmp_path: Path) -> None:
    """SIGTERM, as batch systems send it, while a file is written."""
    done = program(
        "import os, signal\n"
        "from pathlib import Path\n"
        "from captum_clip import __main__, files, models\n"
        "end = lambda file: os.kill(os.getpid(), signal.SIGTERM)\n"
        f"models.available = lambda: files.replace_file(Path({str(tmp_path / 'a')!r}), end)\n"
        "__main__.sys.argv = ['captum-clip', 'models']\n"
        "raise SystemExit(__main__.main())"
    )
    assert (done.returncode, done.stderr) == (143, "")
    assert list(tmp_path.iterdir()) == []
