"""What others do for the same maps: the equations written out, Captum, pytorch-grad-cam."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from captum.attr import LayerGradCam
from torch import Tensor

from captum_clip.models.towers import ResNetTower
from tests import oracles

from .jobs import counted
from .timing import Run
from .towers import Tower

AGAIN = " (again for each further)"
LEGRAD = (
    "LeGrad pins open_clip_torch <= 2.23; in an environment of its own: "
    "python -m venv .venv-legrad && .venv-legrad/bin/pip install legrad_torch && "
    ".venv-legrad/bin/python -m tests.benchmarks.legrad"
)
GRAD_CAM = "pytorch-grad-cam is not installed; to measure it: pip install grad-cam"


def peer_jobs(tower: Tower, images: Tensor, counts: Sequence[int], seed: int) -> dict[str, Run]:
    """What is measured beside the package on the same model."""
    if tower.clip.kind == "resnet":
        return _resnet_jobs(tower, images, counts, seed)
    if type(tower.model).__name__ == "CLIPModel" and not tower.large:
        return _vit_jobs(tower, images, counts, seed)
    return {}  # the oracle of OpenCLIP's ViTs has the exact GELU, and none is written for the rest


def notes(tower: Tower) -> list[str]:
    """One line for each peer that is left out, with how to have it."""
    if tower.clip.kind == "resnet":
        return [] if find_spec("pytorch_grad_cam") else [GRAD_CAM]
    has_legrad = tower.library == "OpenCLIP" and hasattr(tower.model.visual, "transformer")
    return [LEGRAD] if has_legrad else []


def _vit_jobs(tower: Tower, images: Tensor, counts: Sequence[int], seed: int) -> dict[str, Run]:
    def oracle(embeddings: Tensor) -> Tensor:
        with torch.device(images.device):
            seen = oracles.see(tower.model, images)
            return oracles.maps(
                "LastGradAttention", seen, oracles.cosines(seen.embedding, embeddings)
            )

    jobs = _for_counts(oracle, "oracle of LastGradAttention", tower, counts, seed)
    embeddings = tower.embeddings(1, seed)
    jobs[f"Mamooler's way, 1 target{AGAIN}"] = lambda: report(tower, images, embeddings[0])
    return jobs


def report(tower: Tower, images: Tensor, row: Tensor) -> Tensor:
    """Equation 6 Mamooler's way, all attention kept and a full backward: maps (B, h, w)."""
    with torch.device(images.device):
        seen = oracles.see(tower.model, images)
        for attention in seen.attention:
            attention.retain_grad()
        oracles.cosines(seen.embedding, row[None]).sum().backward()
        gradient = seen.attention[-1].grad
        assert gradient is not None
        steps = [(gradient * a.detach()).clamp(min=0).mean(1) for a in seen.attention]
        found = oracles.read(oracles.relevance(steps), seen.row)
    tower.model.zero_grad()
    return found[:, 1:].unflatten(1, seen.grid)


def _resnet_jobs(tower: Tower, images: Tensor, counts: Sequence[int], seed: int) -> dict[str, Run]:
    attention_pooled = hasattr(tower.clip.vision, "attnpool")
    see = oracles.see_resnet if attention_pooled else oracles.see_average_pooled

    def oracle(embeddings: Tensor) -> Tensor:
        with torch.device(images.device):
            seen = see(tower.model, images)
            return oracles.grad_cam(seen, oracles.cosines(seen.embedding, embeddings))

    jobs = _for_counts(oracle, "oracle of ClipGradCam", tower, counts, seed)
    jobs[f"Captum's LayerGradCam, 1 target{AGAIN}"] = _captum(tower, images, seed)
    if find_spec("pytorch_grad_cam"):
        jobs[f"pytorch-grad-cam, 1 target{AGAIN}"] = _pytorch_grad_cam(tower, images, seed)
    return jobs


def _for_counts(
    oracle: Callable[[Tensor], Tensor], name: str, tower: Tower, counts: Sequence[int], seed: int
) -> dict[str, Run]:
    """One forward and a backward for each target; more than eight would take too long."""
    few = [count for count in counts if count <= 8]
    return {f"{name}, {counted(c)}": partial(oracle, tower.embeddings(c, seed)) for c in few}


def _stage(tower: Tower) -> Any:
    assert isinstance(tower.clip.tower, ResNetTower)
    return tower.clip.tower.stage


def _captum(tower: Tower, images: Tensor, seed: int) -> Run:
    method = LayerGradCam(tower.similarity(1, seed), _stage(tower))
    return lambda: method.attribute(images, target=0).detach()


def _pytorch_grad_cam(tower: Tower, images: Tensor, seed: int) -> Run:
    library: Any = importlib.import_module("pytorch_grad_cam")
    outputs: Any = importlib.import_module("pytorch_grad_cam.utils.model_targets")
    similarity, stage = tower.similarity(1, seed), _stage(tower)
    chosen = [outputs.ClassifierOutputTarget(0)] * len(images)

    def run() -> Any:
        with library.GradCAM(model=similarity, target_layers=[stage]) as method:
            maps = method(input_tensor=images, targets=chosen)
        similarity.zero_grad()
        return maps

    return run
