"""A resumable training that only seed and step decide."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from captum_clip.demo.catalog import DemoTokenizer
from captum_clip.demo.scenes import Scene
from captum_clip.errors import InputError
from captum_clip.files import replace_file
from captum_clip.models import load_clip

from .architectures import normalize_pixels, unit
from .banks import Banks, Batch, build_banks
from .evaluate import concept_scores, figures
from .objective import one_cycle, pair_loss
from .recipes import RECIPES, TRAINED_BIAS, WORLDS

CURVE: Final = "curve.csv"
_CHECKPOINT: Final = "checkpoint.pt"
_HIGHEST_SCALE: Final = 100.0
_KEPT: Final = ("name", "steps", "seed", "batch_size", "scenes", "start", "peak")  # of settings

State = dict[str, Any]
"""What a training needs to go on: "step", "model", "optimizer", ...; batches follow from it."""


@dataclass(frozen=True)
class Settings:
    """The settings of a training run.

    Args:
        name: of the recipe in :data:`training.recipes.RECIPES`.
        steps: steps of the whole schedule.
        batch_size: scenes a step.
        seed: of weights, banks and batches.
        device: such as ``"cpu"`` or ``"cuda"``.
        variants: drawings of each thing in the banks.
        validation: number of validation scenes.
        half: run the towers in bfloat16 where it is safe (autocast).
        scenes: what they look like, a name of :data:`training.recipes.WORLDS`.
        start: the embedded model to start from, instead of the recipe's.
        peak: the highest learning rate, instead of the recipe's.
        workers: processes that draw batches; 0: the training's own.
    """

    name: str
    steps: int
    batch_size: int = 64
    seed: int = 0
    device: str = "cpu"
    variants: int = 48
    validation: int = 256
    half: bool = True
    scenes: str = "standard"
    start: str | None = None
    peak: float | None = None
    workers: int = 0


class Trainer:
    """A model with its optimizer, stepping through batches that only seed and step decide."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.recipe = RECIPES[settings.name]
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            self.model = self.recipe.architecture.build().to(settings.device).train()
        start = settings.start or self.recipe.start
        if start is not None:
            _start_from(load_clip(start, device=settings.device).model, self.model)
        bias = self.recipe.bias if start is None else TRAINED_BIAS
        own = getattr(self.model, "logit_bias", None)  # SigLIP's own, part of the model
        self.bias = nn.Parameter(torch.empty((), device=settings.device)) if own is None else own
        nn.init.constant_(self.bias, bias)
        self.peak = settings.peak or self.recipe.peak
        self.optimizer = torch.optim.AdamW(
            _groups(self.model, self.bias), lr=self.peak, betas=(0.9, 0.98)
        )
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(self.recipe.trained))
        self.step = 0
        self.curve: list[tuple[int, str, str]] = []
        self._tokenizer = DemoTokenizer()

    def restore(self, state: State) -> None:
        """Go on from a checkpoint; another number of steps bends the schedule from here on.

        Raises:
            InputError: it belongs to other settings or is past the last step.
        """
        settings = self.settings
        if state["step"] > settings.steps:
            raise InputError(
                f"the checkpoint has {state['step']} steps, asked: {settings.steps}; ask for more, "
                "or name another folder."
            )
        for field in ("name", "seed", "batch_size", "scenes"):
            if state[field] != getattr(settings, field):
                raise InputError(
                    f"the checkpoint was made with {field}={state[field]}, not "
                    f"{getattr(settings, field)}; ask for that, or name another folder."
                )
        self.model.load_state_dict(state["model"])
        with torch.no_grad():
            self.bias.copy_(state["bias"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.curve = state["step"], list(state["curve"])

    def state(self) -> State:
        """The state after the steps done so far."""
        settings = self.settings
        return {
            **{field: getattr(settings, field) for field in _KEPT},
            "step": self.step,
            "model": self.model.state_dict(),
            "bias": self.bias.detach(),
            "optimizer": self.optimizer.state_dict(),
            "curve": self.curve,
        }

    def advance(self, batch: Batch) -> float:
        """Do one step on the batch that belongs to it, and return its loss."""
        rate = one_cycle(self.step, self.settings.steps, peak=self.peak)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    def validate(self, scenes: tuple[Scene, ...]) -> float:
        """Measure the recall of nouns on validation scenes."""
        self.model.eval()
        scores = concept_scores(
            self.recipe.architecture, self.model, scenes, device=self.settings.device
        )
        self.model.train()
        return figures(scores, scenes).nouns

    def _loss(self, batch: Batch) -> torch.Tensor:
        device, run = self.settings.device, self.recipe.architecture
        pixels = normalize_pixels(batch.images, device, run.memory_format)
        tokens = self._tokenizer(list(batch.texts)).to(device)
        captions, prompts = tokens[: len(pixels)], tokens[len(pixels) :]
        kind = torch.device(device).type
        with (
            sdpa_kernel(SDPBackend.MATH),  # the fused kernel is slow in bfloat16 on the CPU
            torch.autocast(kind, torch.bfloat16, enabled=self.settings.half),
        ):
            images = run.encode_image(self.model, pixels)
            texts = [run.encode_text(self.model, part) for part in (captions, prompts)]
        scale: torch.Tensor = self.model.logit_scale.exp()  # type: ignore[operator]
        return pair_loss(
            unit(images),
            unit(torch.cat(texts)),
            torch.from_numpy(batch.positive).to(device),
            scale=scale.clamp(max=_HIGHEST_SCALE),
            bias=self.bias,
            margin=None if batch.margin is None else torch.from_numpy(batch.margin).to(device),
        )


class Batches(Dataset[Batch]):
    """The batch of each step."""

    def __init__(self, settings: Settings, banks: Banks) -> None:
        self._settings, self._banks = settings, banks

    def __getitem__(self, step: int) -> Batch:
        settings = self._settings
        draw = RECIPES[settings.name].draw
        return draw(self._banks, settings.seed, step, size=settings.batch_size)


def _groups(model: nn.Module, bias: nn.Parameter) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2 and p is not bias]
    return [
        {"params": matrices, "weight_decay": 0.05},
        {"params": [*others, bias], "weight_decay": 0.0},
    ]


def _start_from(other: nn.Module, model: nn.Module) -> None:
    """Take the weights of another model that have the name and shape of the model's own."""
    own = model.state_dict()
    shared = {
        name: value
        for name, value in other.state_dict().items()
        if name in own and own[name].shape == value.shape
    }
    model.load_state_dict(own | shared)


def train(settings: Settings, folder: Path, *, resume: bool = True) -> Trainer:
    """Train to the end of the schedule; the checkpoint and ``curve.csv`` go to the folder.

    Args:
        settings: what to do.
        folder: made if it is not there.
        resume: go on from the folder's checkpoint if there is one.
    """
    trainer = Trainer(settings)
    state = load_checkpoint(folder, settings.device) if resume else None
    if state is not None:
        trainer.restore(state)
    world = WORLDS[settings.scenes]
    banks = build_banks(settings.seed, variants=settings.variants, world=world, progress=True)
    scenes = trainer.recipe.validation(settings.validation, world)
    steps = range(trainer.step, settings.steps)
    batches = DataLoader(
        Batches(settings, banks), batch_size=None, sampler=steps, num_workers=settings.workers
    )
    losses: list[float] = []
    progress = tqdm(total=settings.steps, initial=trainer.step, desc=settings.name, mininterval=5)
    for batch in batches:
        losses.append(trainer.advance(batch))
        progress.update()
        if trainer.step % trainer.recipe.every == 0 or trainer.step == settings.steps:
            loss, recall = sum(losses) / len(losses), trainer.validate(scenes)
            losses.clear()
            trainer.curve.append((trainer.step, f"{loss:.4f}", f"{recall:.4f}"))
            save_checkpoint(folder, trainer.state())
            progress.set_postfix(loss=f"{loss:.3f}", recall=f"{recall:.3f}")
    progress.close()
    return trainer


def save_checkpoint(folder: Path, state: State) -> None:
    """Write a checkpoint and its curve: step, mean loss since the last row, validation recall."""
    folder.mkdir(parents=True, exist_ok=True)
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([("step", "loss", "recall"), *state["curve"]])
    replace_file(folder / _CHECKPOINT, lambda file: torch.save(state, file))
    replace_file(folder / CURVE, lambda file: file.write(text.getvalue().encode()))


def load_checkpoint(folder: Path, device: str = "cpu") -> State | None:
    """Read the checkpoint of a folder; None if there is none."""
    path = folder / _CHECKPOINT
    if not path.exists():
        return None
    state: State = torch.load(path, map_location=device, weights_only=True)
    return state
