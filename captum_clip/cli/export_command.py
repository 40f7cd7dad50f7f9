"""``captum-clip export``: a model as a folder that runs without PyTorch."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Option

from ..errors import InputError
from . import shared
from .options import Loading, app, command


@dataclass(frozen=True, kw_only=True)
class Export(Loading):
    """What is written, and how."""

    name: Annotated[str, Option(metavar="MODEL")]
    output: Path
    method: str = "direct"
    precision: Literal["float32", "float16", "int8"] = "float32"
    image_size: int | None = None
    runtime: Path | None = None
    max_pixels: Any = field(default=None, metadata={"typed": None})


@command(app, "export", "ViT-B/32 -o folder")
def export_command(typed: Export) -> None:
    """Write a MODEL as graphs of ONNX, which explain images without PyTorch."""
    if missing := [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]:
        raise InputError(f"export needs {missing[0]}: pip install 'captum-clip[export]'")
    from ..exported.writing import export

    shared.check_methods([typed.method])
    clip = shared.load_model(typed, typed.name)
    with shared.step("writing and comparing", quiet=typed.quiet):
        options: Any = {"method": typed.method, "precision": typed.precision}
        made = export(clip, typed.output, runtime=typed.runtime, **options)
    print(typed.output)
    for name, value in made.items():
        print(f"{name} {'off by at most' if name in ('score', 'cell') else 'agree to'} {value:.1g}")
