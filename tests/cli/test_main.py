"""What all commands have in common: help, errors, exit codes, streams and signals."""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captum_clip import __version__, cli
from captum_clip.attr.registry import methods_for
from captum_clip.bench import EvaluationConfig, StudyConfig
from captum_clip.bench import commands as bench_commands
from captum_clip.bench.data import forms
from captum_clip.bench.tasks import TASKS
from captum_clip.cli import application, main, options
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


def test_the_list_of_commands_is_whole(capsys: Capture) -> None:
    """Each stands in a panel of its own package, with the whole of its first sentence."""
    assert main(["--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "..." not in printed.partition("Options:")[2]
    for words, command in COMMANDS.items():
        if len(words) == 1:
            first_sentence = command.help.partition(".\n")[0]
            assert f"{words[0]} {' '.join(first_sentence.split())}" in printed
    places = [printed.index(f"{panel}:") for panel in application.PANELS]
    assert places == sorted(places)
    assert "Commands of other packages" not in printed


def test_help_speaks_of_no_python_and_begins_with_the_model_and_the_output(
    capsys: Capture,
) -> None:
    for words in COMMANDS:
        assert main([*words, "--help"]) == 0
        printed = capsys.readouterr().out
        assert re.search(r"<\w|RANGE|x>=|<=x", printed) is None
        flags = re.findall(
            r"^  (?:-\w, )?(--[\w-]+)", printed.partition("Options:")[2], re.MULTILINE
        )
        if "--model" in flags:
            assert flags[0] == "--model", words
        if "--output" in flags:
            assert flags.index("--output") <= 2, words


def test_the_help_of_explain_has_sections(capsys: Capture) -> None:
    assert main(["explain", "--help"]) == 0
    headings = re.findall(r"^(\S.*):$", capsys.readouterr().out, re.MULTILINE)
    sections = ["Texts", "Classes and emotions", "Regions", "Picture", "Model and images"]
    assert headings[:7] == ["Positional arguments", "Options", *sections]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("search a.lance b --top 0", "'--top': expected a whole number, 1 or more, got 0 ("),
        ("search a.lance b --top many", "'--top': expected a whole number, 1 or more, got many ("),
        ("search a.lance b --weight 2", "'--weight': expected a number, from 0 to 1, got 2 ("),
        ("search a.lance b --weight nan", "'--weight': expected a number, from 0 to 1, got nan ("),
        ("demo --scenes 1001", "'--scenes': expected a whole number, from 0 to 1000, got 1001 ("),
    ],
)
def test_a_number_out_of_its_range_is_told_in_words(line: str, said: str, capsys: Capture) -> None:
    assert main(line.split()) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "config"), [("evaluate", EvaluationConfig), ("study", StudyConfig)]
)
def test_the_settings_of_the_bench_are_those_of_their_dataclass(name: str, config: Any) -> None:
    """Each option that is no input is a field, and --help shows the default of the field."""
    defaults = {entry.name: entry.default for entry in fields(config)}
    inputs = {"study", "texts_file", "device", "max_pixels", "quiet"}
    # The commands choose these two by other options.
    chosen = {"model", "gpus"}
    for option in COMMANDS[(name,)].params:
        if option.name in inputs:
            continue
        assert option.name in defaults
        default = option.to_info_dict()["default"]
        if default is not None and option.name not in chosen:
            assert default == defaults[option.name], option.name


def test_usage_shows_images_then_texts(capsys: Capture) -> None:
    for line, usage in (
        ("explain", "IMAGE... [TEXT]..."),
        ("figure", "{compare|average} [IMAGE]... [TEXT]..."),
    ):
        assert main([line, "--help"]) == 0
        assert f"captum-clip {line} [OPTIONS] {usage}\n" in capsys.readouterr().out


def test_help_lists_what_the_registries_know(capsys: Capture) -> None:
    vit, resnet = options.VIT_METHODS, options.RESNET_METHODS
    assert vit == methods_for("vit")
    assert resnet == methods_for("resnet")
    assert (resnet[0], *vit, "layer", "cam") == tuple(cases.OWN)
    assert tuple(TASKS) == bench_commands.TASKS
    assert tuple(forms()) == bench_commands.DATA_SETS
    main(["evaluate", "--help"])
    printed = capsys.readouterr().out.replace(",", " ").split()
    listed = (vit, resnet, bench_commands.TASKS, bench_commands.DATA_SETS)
    assert {name for names in listed for name in names} <= set(printed)


def test_methods_of_other_packages_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    others = EntryPoints([EntryPoint("their-map", "theirs:Map", "captum_clip.methods")])
    monkeypatch.setattr(options, "entry_points", lambda group: others.select(group=group))
    assert options.list_methods()["methods of other packages"] == ["their-map"]


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


def test_commands_of_entry_points_are_imported_when_they_are_called(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be imported is an error of its own line, and a warning of the help."""
    points = EntryPoints([EntryPoint("theirs", "no_such_module", cli.COMMANDS)])
    monkeypatch.setattr(application, "entry_points", lambda group: points.select(group=group))
    said = "the command theirs of no_such_module cannot be imported (No module named"
    assert main(["theirs", "a.png"]) == 2
    assert capsys.readouterr().err.startswith(f"captum-clip: error: {said}")
    assert main(["models", "--help"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["--help"]) == 0
    assert capsys.readouterr().err.startswith(f"captum-clip: warning: {said}")


def test_the_shell_completes_commands_and_options() -> None:
    words = {"COMP_WORDS": "captum-clip explain --mo", "COMP_CWORD": "2"}
    asked = {**os.environ, **words, "_CAPTUM_CLIP_COMPLETE": "bash_complete"}
    line = [sys.executable, "-c", "import sys; from captum_clip.__main__ import main; main()"]
    done = subprocess.run(line, env=asked, capture_output=True, text=True, timeout=60)
    assert done.stdout == "plain,--model\n"


@pytest.mark.parametrize(
    ("shell", "startup"),
    [("bash", ".bashrc"), ("zsh", ".zshrc"), ("fish", None)],
)
def test_completion_is_shown_and_installed(
    shell: str,
    startup: str | None,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once, also where it is asked for twice; what the user wrote stays."""
    monkeypatch.setenv("SHELL", f"/bin/{shell}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("click.shell_completion.BashComplete._check_version", lambda *_: None)
    assert main(["--show-completion"]) == 0
    script = capsys.readouterr().out
    assert f"_CAPTUM_CLIP_COMPLETE={shell}_complete" in script
    if startup is not None:
        (tmp_path / startup).write_text("alias a=b\n")
    assert main(["--install-completion"]) == main(["--install-completion"]) == 0
    assert capsys.readouterr().out.startswith(f"{shell} completes captum-clip in new terminals")
    [file] = [path for path in tmp_path.rglob("*captum-clip*") if path.is_file()]
    assert file.read_text() == script.removesuffix("\n")
    if startup is None:
        assert file == tmp_path / ".config/fish/completions/captum-clip.fish"
    else:
        assert (tmp_path / startup).read_text() == f'alias a=b\n\nsource "{file}"\n'


def test_an_unknown_shell_is_told(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/csh")
    assert main(["--show-completion"]) == 2
    assert "works in bash, zsh and fish, got the shell 'csh'" in capsys.readouterr().err


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
