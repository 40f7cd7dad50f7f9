"""Folders of a stranger: nothing of them runs, nobody is asked, and what is wrong is our error."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import open_clip
import pytest
import torch
from PIL import Image

from captum_clip import cli, load_clip
from captum_clip.cli import show_commands
from captum_clip.errors import CaptumClipError, InputError
from captum_clip.models import loading, names, safety
from tests import builders
from tests.cli.parsing import leaves
from tests.models.checkpoints import save_open_clip, save_transformers

CANARY = Path("canary")
EVIL = """
open({canary!r}, "w").close()
class Evil:
    def __init__(self, *args, **options): pass
    from_pretrained = classmethod(lambda cls, *args, **options: cls())
    register_for_auto_class = classmethod(lambda cls, *args: None)
"""


class Opens:
    """Writes the canary where it is unpickled."""

    def __init__(self, first: str = "") -> None:
        self.first = first

    def __reduce__(self) -> Any:
        return (exec, (f"open({str(CANARY.absolute())!r}, 'w').close();{self.first}",))


class Nobody:
    """A standard input that nobody answers on, and who asked it, since transformers goes on."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> NoReturn:
        self.asked.append(name)
        raise AssertionError(f"standard input was asked for {name}")


def change(folder: Path, file: str, **settings: Any) -> None:
    """Write settings into a configuration; a double underscore leads into a part of it."""
    path = folder / file
    about = json.loads(path.read_text()) if path.exists() else {}
    for key, value in settings.items():
        *parts, last = key.split("__")
        inner = about
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[last] = value
    path.write_text(json.dumps(about))


def pickled(folder: Path, file: str, first: str = "") -> None:
    """Replace the weights by what runs code."""
    for path in folder.glob("*.safetensors"):
        path.unlink()
    torch.save({"weight": Opens(first)}, folder / file)


def wrap(folder: Path, file: str, content: Any) -> None:
    """Leave a folder with a file that says what its model is made from."""
    (folder / file).write_text(json.dumps(content))


Change = Callable[[Path], None]
TOKEN = "tokenizer_config.json"
IMAGE = "preprocessor_config.json"
CONFIG = "config.json"
CLIP = "open_clip_config.json"
CLASSES = ("AutoConfig", "AutoModel", "AutoProcessor", "AutoImageProcessor", "CLIPModel")
AUTO = {**dict.fromkeys(CLASSES, "evil.Evil"), "AutoTokenizer": ["evil.Evil", "evil.Evil"]}


def says(file: str, **settings: Any) -> Change:
    return lambda folder: change(folder, file, **settings)


def holds(file: str, content: Any) -> Change:
    return lambda folder: wrap(folder, file, content)


def all_of(*changes: Change) -> Change:
    def spoil(folder: Path) -> None:
        for each in changes:
            each(folder)

    return spoil


def peft(**settings: Any) -> Change:
    return holds("adapter_config.json", {"base_model_name_or_path": "base", **settings})


PROCESSOR = says("processor_config.json", auto_map=AUTO, processor_class="Evil")
TRANSFORMERS: dict[str, Change] = {
    "tokenizer": says(TOKEN, auto_map=AUTO),
    "tokenizer of no class": says(TOKEN, auto_map=AUTO, tokenizer_class="EvilTokenizer"),
    "tokenizer with trust": says(TOKEN, auto_map=AUTO, trust_remote_code=True),
    "tokenizer by a processor": all_of(
        says(TOKEN, auto_map=AUTO, tokenizer_class="AutoProcessor"), PROCESSOR
    ),
    "image processor": says(IMAGE, auto_map=AUTO),
    "image processor of no class": says(
        IMAGE, auto_map=AUTO, image_processor_type="EvilImageProcessor"
    ),
    "model": says(CONFIG, auto_map=AUTO),
    "model of its own": says(CONFIG, auto_map=AUTO, model_type="evil", architectures=["Evil"]),
    "vision model": says(CONFIG, vision_config__auto_map=AUTO),
    "attention of the hub": says(CONFIG, _attn_implementation="evil/evil"),
    "attention of a part": says(CONFIG, vision_config__attn_implementation="evil/evil@main:evil"),
    "quantization": says(CONFIG, quantization_config={"quant_method": "torchao", "of": "evil"}),
    "pickle": lambda folder: pickled(folder, "pytorch_model.bin"),
    "sentence-transformers": holds("modules.json", [{"path": "", "type": "evil.Evil"}]),
    "peft, megatron": peft(peft_type="LORA", megatron_config={"a": 1}, megatron_core="evil"),
    "peft, an evil base": peft(base_model_name_or_path="evil_base"),
}
OPEN_CLIP: dict[str, Change] = {
    "tokenizer_kwargs": all_of(
        says(CLIP, model_cfg__text_cfg__tokenizer_kwargs={"trust_remote_code": True}),
        says(CLIP, model_cfg__text_cfg__hf_tokenizer_name="evil"),
        says(TOKEN, auto_map=AUTO, tokenizer_class="EvilTokenizer"),
    ),
    "bpe_path": says(CLIP, model_cfg__text_cfg__tokenizer_kwargs={"bpe_path": "/etc/passwd"}),
    "text tower in a folder": says(CLIP, model_cfg__text_cfg__hf_model_name="evil_base"),
    "trunk on the hub": says(CLIP, model_cfg__vision_cfg__timm_model_name="hf-hub:evil/evil"),
    "custom_text": says(CLIP, model_cfg__custom_text="evil.Evil"),
    "pickle for OpenCLIP": lambda folder: pickled(folder, "open_clip_pytorch_model.bin"),
}
LOADS = {
    *("tokenizer", "image processor", "model", "vision model"),
    *("tokenizer of no class", "sentence-transformers", "custom_text"),
}
"""Those whose library has a class of its own for what the folder would run."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good model of each library, to be spoiled."""
    folder = tmp_path_factory.mktemp("saved")
    save_transformers(builders.hf_vit(), folder / "transformers")
    save_open_clip(builders.open_clip_vit(), folder / "open_clip", builders.VIT_CONFIG)
    builders.hf_vit().tokenizer.save_pretrained(folder / "open_clip")
    return folder


@pytest.fixture
def world(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with evil.py in it and on the path; then no canary, and no question."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(str(work))
    monkeypatch.setattr(sys, "stdin", nobody := Nobody())
    monkeypatch.setattr(loading, "_hub_answers", lambda: False)
    monkeypatch.setattr(names, "find_spec", lambda name: True)  # peft is there
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    write_evil(work)
    shutil.copytree(saved / "transformers", "base")
    shutil.copytree("base", "evil_base")
    write_evil(Path("evil_base"))
    for file in (TOKEN, IMAGE, CONFIG):
        change(Path("evil_base"), file, auto_map=AUTO)
    yield work
    sys.modules.pop("evil", None)
    assert (nobody.asked, CANARY.exists()) == ([], False)


def write_evil(folder: Path) -> None:
    (folder / "evil.py").write_text(EVIL.format(canary=str(CANARY.absolute())))


def end_of(name: str) -> str:
    """How it ends to load a model and to use its processor and tokenizer; "" where it is right."""
    try:
        clip = load_clip(name)
        clip.preprocess(Image.new("RGB", (40, 40)))
        clip.encode_text("a horse")
    except CaptumClipError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", [*TRANSFORMERS, *OPEN_CLIP])
def test_nothing_of_a_strangers_folder_runs(saved: Path, world: Path, kind: str) -> None:
    """As a folder, by a relative name, and by a symbolic link; a module cache stays empty."""
    library = "transformers" if kind in TRANSFORMERS else "open_clip"
    shutil.copytree(saved / library, "evil_model")
    write_evil(Path("evil_model"))
    (TRANSFORMERS | OPEN_CLIP)[kind](Path("evil_model"))
    Path("link").symlink_to("evil_model")
    ends = [end_of(name) for name in (str(world / "evil_model"), "evil_model", "./link")]
    assert [not end for end in ends] == [kind in LOADS] * 3
    assert all(len(end) < 700 for end in ends)
    assert "evil" not in sys.modules


def test_an_adapter_on_a_base_of_ones_own_follows_the_same_rules(saved: Path, world: Path) -> None:
    """``BASE:FOLDER``, where either may be a stranger's."""
    shutil.copytree(saved / "transformers", "evil")
    TRANSFORMERS["peft, megatron"](Path("evil"))
    assert "adapter_config.json says" in end_of("demo/vit:evil")
    assert "load the model yourself" in end_of("evil_base:evil")
    assert "evil" not in sys.modules


def test_the_canary_sings_where_code_runs(
    saved: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or none of these tests would say anything: the same folder without the defence."""
    shutil.copytree(saved / "open_clip", "evil_model")
    write_evil(Path("evil_model"))
    OPEN_CLIP["tokenizer_kwargs"](Path("evil_model"))
    tokenizer = open_clip.get_tokenizer("local-dir:evil_model")
    assert type(tokenizer.tokenizer).__name__ == "Evil"
    CANARY.unlink()
    # and each of the two defences holds alone
    monkeypatch.setattr(loading, "check_files", lambda name, where: None)
    assert "comes with code of its own, which is never run" in end_of("evil_model")


@pytest.mark.parametrize(
    ("library", "where", "place"),
    [
        ("transformers", "/a:b/model", "/a:b/model"),
        ("transformers", "hf-hub:a/model", "hf-hub:a/model"),
        ("open_clip", "local-dir:/a:b/model", "/a:b/model"),
        ("open_clip", "hf-hub:a/model", "a/model"),
    ],
)
def test_a_folder_with_a_colon_in_its_path_is_checked(library: Any, where: str, place: str) -> None:
    source = names.ModelSource("name", library, where, local=True)
    assert list(loading._unchecked_places(source)) == [place]


@pytest.mark.parametrize("name", ["hf-hub:someone/small", "someone/small"])
def test_nothing_of_a_repository_runs(
    saved: Path, world: Path, cache: Callable[[str], Path], name: str
) -> None:
    snapshot = cache("someone/small")
    library = "open_clip" if ":" in name else "transformers"
    shutil.copytree(saved / library, snapshot, dirs_exist_ok=True)
    write_evil(snapshot)
    change(snapshot, TOKEN, auto_map=AUTO, tokenizer_class="EvilTokenizer", trust_remote_code=True)
    with pytest.raises(InputError, match=r"tokenizer_config\.json says True for 'trust_remote_"):
        load_clip(name)
    change(snapshot, TOKEN, trust_remote_code=False)
    assert end_of(name) == ""
    if library == "open_clip":
        change(snapshot, CLIP, model_cfg__text_cfg__hf_tokenizer_name="someone/small")
        change(snapshot, CONFIG, model_type="evil", auto_map=AUTO)
        assert "which is never run" in end_of(name)


def test_a_part_of_another_model_is_checked_too(saved: Path, world: Path) -> None:
    OPEN_CLIP["tokenizer_kwargs"](Path("evil_base"))
    change(Path("evil_base"), TOKEN, trust_remote_code=True)
    for option in ("processor", "tokenizer"):
        with pytest.raises(InputError, match="is never followed; load the model yourself"):
            loading.load_parts(**{"processor": None, "tokenizer": None, option: "evil_base"})


@pytest.mark.parametrize("name", ["explain", "index", "heads"])
def test_no_command_asks_on_standard_input(
    world: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with a model whose tokenizer, processor and class are code."""
    monkeypatch.setattr(show_commands, "_SCENES", ((0, ("horse",)),))
    Image.new("RGB", (40, 40)).save("photo.png")
    (world / "photos").mkdir()
    Image.new("RGB", (40, 40)).save("photos/photo.png")
    change(Path("evil_base"), TOKEN, tokenizer_class="EvilTokenizer")
    change(Path("evil_base"), IMAGE, image_processor_type="EvilImageProcessor")
    values = {"model": "evil_base", "models": "evil_base", "tokenizer": "evil_base"}
    values |= {"processor": "evil_base", "images": "photo.png", "folder": "photos"}
    values |= {"output": "made", "host": "no.such.host.invalid", "data": "masks:none"}
    line = name.split()
    [command] = [command for words, command in leaves() if " ".join(words) == name]
    for option in command.params:
        if option.param_type_name == "argument":
            line.append(values.get(option.name, "a horse"))
        elif option.required or option.name in values:
            line += [option.opts[0], values.get(option.name, "a horse")]
    assert cli.main(line) in (0, 1, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_every_architecture_of_open_clip_is_one_that_a_folder_may_name(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No rule refuses what is published; a repository that one names is not asked for here."""
    monkeypatch.setattr("transformers.utils.cached_file", lambda *_, **__: "none/none")
    configs = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
    assert len(configs) > 100
    Path("all").mkdir()
    wrap(Path("all"), CLIP, configs)
    safety.check_files("all", "all")
    change(Path("all"), CLIP, last__text_cfg__hf_model_name="./base")
    with pytest.raises(InputError, match=r"says '\./base' for 'last\.text_cfg\.hf_model_name'"):
        safety.check_files("all", "all")


def index_outside(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"logit_scale": "../outside.safetensors"}}
    wrap(folder, "model.safetensors.index.json", index)


WRONG: dict[str, dict[str, Change]] = {
    "transformers": {
        "architectures: 3": says(CONFIG, architectures=3),
        "projection_dim: x": says(CONFIG, projection_dim="x"),
        "text_config: 3": says(CONFIG, text_config=3),
        "layer_norm_eps: null": says(CONFIG, vision_config__layer_norm_eps=None),
        "vocab_size: huge": says(CONFIG, text_config__vocab_size=10**9),
        "crop_size: {}": says(IMAGE, crop_size={"height": [], "width": "x"}),
        "size: huge": says(IMAGE, size={"shortest_edge": 65536}),
        "index: outside": index_outside,
        **{f"{file}: []": holds(file, []) for file in (CONFIG, IMAGE, TOKEN)},
    },
    "open_clip": {
        "interpolation": says(CLIP, preprocess_cfg__interpolation="__import__"),
        "mean: x": says(CLIP, preprocess_cfg__mean=[0.5, None, "x"]),
        "model_cfg: null": says(CLIP, model_cfg=None),
        "layers: x": says(CLIP, model_cfg__vision_cfg__layers="x"),
        "image_size: huge": says(CLIP, model_cfg__vision_cfg__image_size=65536),
    },
}


@pytest.mark.parametrize(
    ("library", "kind"), [(library, kind) for library, kinds in WRONG.items() for kind in kinds]
)
def test_what_is_wrong_in_a_folder_is_one_sentence(
    saved: Path, world: Path, library: str, kind: str
) -> None:
    """Of ours, and not a long one."""
    shutil.copytree(saved / library, "wrong")
    WRONG[library][kind](Path("wrong"))
    assert 0 < len(end_of("wrong")) < 700
