"""Training of the demo models.

``python -m captum_clip.demo.train vit --checkpoint FOLDER`` trains one from scratch or goes on
where the folder's checkpoint stopped; ``--export FOLDER`` also writes the model when it is done.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from captum_clip.demo.architectures import ARCHITECTURES, Architecture, normalize_pixels, trim, unit
from captum_clip.demo.banks import Banks, Batch, build_banks, draw_batch
from captum_clip.demo.checkpoints import (
    CURVE_FIELDS,
    Checkpoint,
    load_checkpoint,
    read_curve,
    save_checkpoint,
    write_curve,
)
from captum_clip.demo.evaluate import concept_scores, draw_scenes, figures
from captum_clip.demo.export import export_checkpoint
from captum_clip.demo.objective import one_cycle, pair_loss
from captum_clip.demo.scenes import Scene
from captum_clip.demo.vocabulary import DemoTokenizer
from captum_clip.errors import InputError

_STEPS: Final = {"vit": 16000, "resnet": 6000}
_FIRST_BIAS: Final = -5.0
_HIGHEST_SCALE: Final = 100.0


@dataclass(frozen=True)
class Settings:
    """What a training run is asked to do.

    Args:
        name: ``"vit"`` or ``"resnet"``.
        steps: steps of the whole schedule.
        batch_size: scenes a step.
        seed: of weights, banks and batches.
        device: such as ``"cpu"`` or ``"cuda"``.
        variants: drawings of each thing in the banks.
        every: steps between validations, at which a checkpoint is written.
        validation: number of validation scenes (two or three objects each).
        half: run the towers in bfloat16 where it is safe (autocast).
        peak: the highest learning rate, the architecture's if None.
    """

    name: str
    steps: int
    batch_size: int = 64
    seed: int = 0
    device: str = "cpu"
    variants: int = 48
    every: int = 250
    validation: int = 256
    half: bool = True
    peak: float | None = None


class Trainer:
    """A model with its optimizer, stepping through batches that only seed and step decide.

    Args:
        settings: what to do.
        draw: (banks, seed, step, size=) -> the batch of a step.
    """

    def __init__(self, settings: Settings, *, draw: Callable[..., Batch] = draw_batch) -> None:
        self.settings = settings
        self.architecture: Architecture = ARCHITECTURES[settings.name]
        self.peak = settings.peak or self.architecture.peak
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            self.model = self.architecture.build().to(settings.device).train()
        self.bias = nn.Parameter(torch.tensor(_FIRST_BIAS, device=settings.device))
        self.optimizer = torch.optim.AdamW(
            _groups(self.model, self.bias), lr=self.peak, betas=(0.9, 0.98)
        )
        self.step = 0
        self.recall = 0.0
        self._draw = draw
        self._tokenizer = DemoTokenizer()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint; another number of steps bends the schedule from here on.

        Raises:
            InputError: if it belongs to other settings or is past the last step.
        """
        asked = self.settings
        if checkpoint.step > asked.steps:
            raise InputError(f"the checkpoint has {checkpoint.step} steps, asked: {asked.steps}")
        for field in ("seed", "batch_size"):
            if getattr(checkpoint, field) != getattr(asked, field):
                raise InputError(
                    f"the checkpoint was made with {field}={getattr(checkpoint, field)}, not "
                    f"{getattr(asked, field)}: give that, or another folder"
                )
        self.model.load_state_dict(checkpoint.model)
        with torch.no_grad():
            self.bias.copy_(checkpoint.bias)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.step, self.recall = checkpoint.step, checkpoint.recall

    def checkpoint(self) -> Checkpoint:
        """Take the state after the steps done so far."""
        settings = self.settings
        return Checkpoint(
            step=self.step,
            steps=settings.steps,
            seed=settings.seed,
            batch_size=settings.batch_size,
            model=self.model.state_dict(),
            bias=self.bias.detach(),
            optimizer=self.optimizer.state_dict(),
            recall=self.recall,
        )

    def advance(self, banks: Banks) -> float:
        """Do one step and return its loss."""
        settings = self.settings
        batch = self._draw(banks, settings.seed, self.step, size=settings.batch_size)
        rate = one_cycle(self.step, settings.steps, peak=self.peak)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    def validate(self, scenes: Sequence[Scene]) -> float:
        """Measure the recall of nouns on validation scenes."""
        self.model.eval()
        scores = concept_scores(self.architecture, self.model, scenes, device=self.settings.device)
        self.model.train()
        self.recall = figures(scores, scenes).nouns
        return self.recall

    def _loss(self, batch: Batch) -> torch.Tensor:
        device, run = self.settings.device, self.architecture
        pixels = normalize_pixels(batch.images, device, run.memory_format)
        tokens = self._tokenizer(list(batch.texts)).to(device)
        captions, prompts = tokens[: len(pixels)], tokens[len(pixels) :]
        kind = torch.device(device).type
        with (
            sdpa_kernel(SDPBackend.MATH),  # the fused kernel is slow in bfloat16 on the CPU
            torch.autocast(kind, torch.bfloat16, enabled=self.settings.half),
        ):
            images = run.encode_image(self.model, pixels)
            texts = [run.encode_text(self.model, trim(part)) for part in (captions, prompts)]
        scale: torch.Tensor = self.model.logit_scale.exp()  # type: ignore[operator]
        return pair_loss(
            unit(images),
            unit(torch.cat(texts)),
            torch.from_numpy(batch.positive).to(device),
            scale=scale.clamp(max=_HIGHEST_SCALE),
            bias=self.bias,
            margin=None if batch.margin is None else torch.from_numpy(batch.margin).to(device),
        )


def _groups(model: nn.Module, bias: nn.Parameter) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    return [
        {"params": matrices, "weight_decay": 0.05},
        {"params": [*others, bias], "weight_decay": 0.0},
    ]


def train(
    settings: Settings,
    folder: Path,
    *,
    resume: bool = True,
    trainer: Trainer | None = None,
    scenes: Sequence[Scene] = (),
) -> Trainer:
    """Train to the end of the schedule; checkpoints and ``curve.csv`` go to the folder.

    Args:
        settings: what to do.
        folder: for checkpoints and the curve; made if it is not there.
        resume: go on from the folder's checkpoint if there is one.
        trainer: of these settings, if it is another than from scratch.
        scenes: to validate on, if others than those of the settings.
    """
    trainer = trainer or Trainer(settings)
    found = load_checkpoint(folder, settings.device) if resume else None
    if found is not None:
        trainer.restore(found)
    rows = read_curve(folder, until=trainer.step) if found is not None else []
    banks = build_banks(settings.seed, variants=settings.variants, progress=True)
    scenes = scenes or draw_scenes("validation", number=settings.validation, counts=[2, 3])
    losses: list[float] = []
    progress = tqdm(total=settings.steps, initial=trainer.step, desc=settings.name, mininterval=5)
    while trainer.step < settings.steps:
        losses.append(trainer.advance(banks))
        progress.update()
        if trainer.step % settings.every == 0 or trainer.step == settings.steps:
            recall = trainer.validate(scenes)
            loss = sum(losses) / len(losses)
            losses.clear()
            row = (f"{trainer.step}", f"{loss:.4f}", f"{recall:.4f}")
            rows.append(dict(zip(CURVE_FIELDS, row, strict=True)))
            write_curve(folder, rows)
            save_checkpoint(folder, trainer.checkpoint())
            progress.set_postfix(loss=f"{loss:.3f}", recall=f"{recall:.3f}")
    progress.close()
    return trainer


def main(arguments: list[str] | None = None) -> None:
    """Train a demo model, or go on training it, and export it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name", choices=sorted(ARCHITECTURES))
    parser.add_argument("--steps", type=int, help=f"default: {_STEPS}")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of this training")
    parser.add_argument("--fresh", action="store_true", help="ignore the folder's checkpoint")
    parser.add_argument("--export", type=Path, help="write the trained model to this folder")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    settings = Settings(
        name=options.name,
        steps=options.steps or _STEPS[options.name],
        batch_size=options.batch_size,
        seed=options.seed,
        device=options.device,
    )
    train(settings, options.checkpoint, resume=not options.fresh)
    if options.export is not None:
        export_checkpoint(options.name, options.checkpoint, options.export)


if __name__ == "__main__":
    main()
