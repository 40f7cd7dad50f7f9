"""The price of LeGrad: ``python -m tests.benchmarks.legrad``, in an environment of its own.

legrad_torch pins open_clip_torch <= 2.23, older than this package takes, so nothing here imports
captum_clip. LeGrad takes one image at a time, with all its texts; so the batch is one.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import logging
import warnings
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from .memory import peak
from .tables import Row, environment, markdown
from .timing import Run, medians, seconds

INSTALL = "python -m venv .venv-legrad && .venv-legrad/bin/pip install legrad_torch"


def wrapped(model: Any, images: Tensor) -> Any:
    """A copy of the model with LeGrad, which patches it for good.

    Raises:
        SystemExit: the copy no longer computes what the model does.
    """
    library: Any = importlib.import_module("legrad")
    with contextlib.redirect_stdout(io.StringIO()):
        wrapper = library.LeWrapper(copy.deepcopy(model))
    with torch.no_grad():
        own, other = model.encode_image(images), wrapper.encode_image(images)
    if not torch.allclose(own, other, rtol=1e-3, atol=1e-4 * float(own.abs().max())):
        raise SystemExit(
            "LeGrad: with this version of open_clip the wrapped model computes another embedding, "
            f"so it is not measured; make an environment with the version it pins: {INSTALL}"
        )
    return wrapper


def legrad_job(model: Any, image: Tensor, count: int, seed: int) -> Run:
    """Maps of one image for as many texts."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, model.encode_image(image).shape[1], generator=random)
    rows = torch.nn.functional.normalize(rows, dim=1)
    wrapper = wrapped(model, torch.cat([image, image.flip(-1)]))

    def run() -> Tensor:
        maps: Tensor = wrapper.compute_legrad(image=image, text_embedding=rows)
        for block in wrapper.visual.transformer.resblocks:  # what it keeps on the model
            for holder in (block, block.attn):
                for name in ("feat_post_attn", "feat_post_mlp", "attention_maps"):
                    holder.__dict__.pop(name, None)
        return maps.detach()

    return run


def measured(model: Any, image: Tensor, counts: list[int], repeats: int, seed: int) -> list[Row]:
    """The plain forward and LeGrad, time and memory."""
    plain = "plain forward"
    runs = {plain: torch.inference_mode()(lambda: model.encode_image(image))}
    for count in counts:
        name = f"LeGrad, {count} target{'s' * (count > 1)}"
        runs[name] = legrad_job(model, image, count, seed)
    found = medians(runs, repeats, lambda run: seconds(run, image.device))
    peaks = {name: peak(run, image.device) for name, run in runs.items()}
    return [
        Row(
            "ViT-B/32, OpenCLIP as LeGrad pins it",
            name,
            batch=1,
            seconds=found[name],
            forwards=found[name] / found[plain],
            peak=peaks[name],
            peak_forwards=peaks[name] / peaks[plain],
        )
        for name in runs
    ]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--targets", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if find_spec("legrad") is None:
        raise SystemExit(f"LeGrad is not installed; to measure it: {INSTALL}")
    warnings.simplefilter("ignore", FutureWarning)  # the old open_clip's use of timm
    logging.disable(logging.WARNING)  # that the weights are random is meant
    torch.manual_seed(arguments.seed)
    library: Any = importlib.import_module("open_clip")
    model = library.create_model("ViT-B-32-quickgelu").eval()
    image = torch.randn(1, 3, 224, 224)
    print(", ".join(f"{k} {v}" for k, v in environment(image.device, image.dtype).items()))
    rows = measured(model, image, arguments.targets, arguments.repeats, arguments.seed)
    print(f"\n{markdown(rows)}")


if __name__ == "__main__":
    main()
