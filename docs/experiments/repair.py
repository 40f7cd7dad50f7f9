"""Trains the shortcut model out of its shortcut, with and without a loss on maps, and measures it.

``python docs/experiments/repair.py`` trains from the shortcut model on scenes in which tag and noun
always coincide, in five arms and with five seeds each, and prints what each gave. Nothing in these
scenes tells object from tag but the object's mask, which all arms but the first read:

- ``cross-entropy`` among the nouns that are trained, and nothing else;
- ``exchange``: the same, on objects whose outside is another scene's of the batch, its object
  included;
- ``maps``: cross-entropy and the share of direct contributions to the noun outside of its object;
- ``both``: the same on exchanged scenes;
- ``gradients``: cross-entropy and the squared gradient of the log-probabilities at the pixels
  outside of the object (Ross et al. 2017, arXiv:1703.03717).

``sweep`` is how the weights of the penalties and the kind of exchange were chosen: with another
seed, by the validation scenes of the same nouns in which the tag is another's. Each run writes a
file in ``out``; what is there is not run again, so a run that was interrupted goes on. ``--made``
prints the table of what is there.
"""

from __future__ import annotations

import argparse
import csv
import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from captum_clip import ClipSimilarity, DirectContribution, load_clip, targets
from captum_clip.bench.batch import ModelContext, measure_gate
from captum_clip.bench.data import open_data
from captum_clip.bench.evaluator import evaluate
from captum_clip.bench.run import EvaluationConfig
from captum_clip.demo.catalog import article
from captum_clip.maps import outside_share
from shortcut import MODEL
from shortcut.tags import TAGGED, TaggedScene, draw_tagged_scene
from training.architectures import normalize_pixels
from training.objective import one_cycle

TRAINED, HELD_OUT = TAGGED[:8], TAGGED[8:]
SEEDS = range(5)
SWEEP_SEED = 5
STEPS, BATCH, SCENES, PEAK = 150, 32, 960, 1e-4
PENALTIES = {
    "cross-entropy": (0.0,),
    "exchange": (0.0,),
    "filled-exchange": (0.0,),
    "maps": (1.0, 3.0, 10.0, 30.0),
    "gradients": (0.01, 0.1, 1.0, 10.0),
}
"""Weights that are tried."""
CHOSEN = {"cross-entropy": 0.0, "exchange": 0.0, "maps": 10.0, "both": 10.0, "gradients": 0.1}
ARMS = ("before", *CHOSEN)
TESTS = 240
CONDITIONS = ("own tag", "no tag", "another tag")
LOSSES = ("cross-entropy", "penalty")


class Scenes:
    """Tagged scenes of some nouns in turn, each with one other object.

    Args:
        numbers: their seeds.
        nouns: of the objects.
        split: of the drawings.
        condition: what tag they have.
    """

    def __init__(
        self,
        numbers: Sequence[int],
        nouns: Sequence[str] = TAGGED,
        split: Any = "train",
        condition: str = "own tag",
    ) -> None:
        scenes = [self._draw(seed, nouns, split, condition) for seed in numbers]
        self.images = torch.stack([torch.from_numpy(scene.image) for scene in scenes])
        self.masks = torch.stack([torch.from_numpy(scene.object_mask) for scene in scenes])
        self.labels = torch.tensor([TAGGED.index(scene.noun) for scene in scenes])

    @staticmethod
    def _draw(seed: int, nouns: Sequence[str], split: Any, condition: str) -> TaggedScene:
        noun = nouns[seed % len(nouns)]
        shift = 1 + seed // len(nouns) % (len(TAGGED) - 1) if condition == "another tag" else 0
        tag = TAGGED[(TAGGED.index(noun) + shift) % len(TAGGED)]
        without: Any = ["tag"] if condition == "no tag" else []
        return draw_tagged_scene(seed, split=split, noun=noun, tag=tag, without=without)

    def pixels(self, chosen: Any) -> Tensor:
        """What the model sees of some of them, (B, 3, H, W)."""
        return normalize_pixels(self.images[chosen].numpy())


def similarity(clip: Any) -> ClipSimilarity:
    """Of the twelve nouns."""
    return ClipSimilarity(clip, targets.text(clip, [article(noun) for noun in TAGGED]))


def maps_penalty(forward: ClipSimilarity) -> Callable[..., tuple[Tensor, Tensor]]:
    """Scores, and the share of the noun's map outside of its object, in one forward."""
    method = DirectContribution(forward)

    def loss(pixels: Tensor, masks: Tensor, labels: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        maps, scores = method.attribute_targets(pixels, return_scores=True, create_graph=True)
        own = maps[torch.arange(len(labels)), labels][:, None]
        return scores, outside_share(own, masks).mean()

    return loss


def gradients_penalty(forward: ClipSimilarity) -> Callable[..., tuple[Tensor, Tensor]]:
    """Scores, and the squared input gradient outside of the object, as Ross et al. have it."""

    def loss(pixels: Tensor, masks: Tensor, labels: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        pixels.requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):
            scores = forward(pixels)
            logs = F.log_softmax(scale * scores[:, : len(TRAINED)], dim=1).sum()
            [gradient] = torch.autograd.grad(logs, pixels, create_graph=True)
            return scores, (gradient * ~masks[:, None]).square().sum((1, 2, 3)).mean()

    return loss


def no_penalty(forward: ClipSimilarity) -> Callable[..., tuple[Tensor, Tensor]]:
    """Scores alone."""
    return lambda pixels, masks, labels, scale: (forward(pixels), torch.zeros(()))


MAKERS = {"maps": maps_penalty, "both": maps_penalty, "gradients": gradients_penalty}


def exchanged(pixels: Tensor, masks: Tensor, *, filled: bool = False) -> Tensor:
    """Each object on the outside of the scene before it, whose own object stays or is filled."""
    others, holes = pixels.roll(1, 0), masks.roll(1, 0)[:, None]
    if filled:
        mean = (others * ~holes).sum((2, 3), keepdim=True) / (~holes).sum((2, 3), keepdim=True)
        others = torch.where(holes, mean, others)
    return torch.where(masks[:, None], pixels, others)


EXCHANGES = {"exchange": exchanged, "both": exchanged}
EXCHANGES["filled-exchange"] = partial(exchanged, filled=True)


def train(arm: str, seed: int, weight: float) -> tuple[Any, list[tuple[float, float]]]:
    """Train the vision tower of the shortcut model; the model, and both losses of each step."""
    clip = load_clip(str(MODEL))
    named = clip.model.requires_grad_(False).named_parameters()
    trained = [p for name, p in named if name.startswith(("vision_model.", "visual_projection."))]
    for parameter in trained:
        parameter.requires_grad_()
    first = SCENES * seed
    scenes = Scenes(range(first, first + SCENES), TRAINED)
    forward = similarity(clip)
    loss_of, scale = (
        MAKERS.get(arm, no_penalty)(forward),
        clip.model.logit_scale.exp().detach().clamp(max=100),
    )
    optimizer = torch.optim.AdamW(trained, lr=PEAK, weight_decay=0.05)
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(SCENES, generator=generator) for _ in range(STEPS)])
    losses = []
    for step in tqdm(range(STEPS), desc=f"{arm} {seed}", mininterval=10, leave=False):
        chosen = order[step * BATCH : (step + 1) * BATCH]
        labels, masks = scenes.labels[chosen], scenes.masks[chosen]
        pixels = scenes.pixels(chosen)
        if arm in EXCHANGES:
            pixels = EXCHANGES[arm](pixels, masks)
        scores, penalty = loss_of(pixels, masks, labels, scale)
        entropy = F.cross_entropy(scale * scores[:, : len(TRAINED)], labels)
        optimizer.zero_grad()
        (entropy + weight * penalty).backward()
        torch.nn.utils.clip_grad_norm_(trained, 5.0)
        for group in optimizer.param_groups:
            group["lr"] = one_cycle(step, STEPS, peak=PEAK)
        optimizer.step()
        losses.append((float(entropy.detach()), float(penalty.detach())))
    return clip, losses


@torch.no_grad()
def right(forward: ClipSimilarity, scenes: Scenes) -> Tensor:
    """Whether the object's noun is the first of the twelve, (N,)."""
    chunks = torch.arange(len(scenes.labels)).split(BATCH)
    best = torch.cat([forward(scenes.pixels(chunk)).argmax(1) for chunk in chunks])
    return best == scenes.labels


def measured(clip: Any) -> dict[str, float]:
    """Shares of test scenes that are right, by condition and group, and of maps on the object."""
    forward, figures = similarity(clip), dict[str, float]()
    method = DirectContribution(forward)
    for condition in CONDITIONS:
        scenes = Scenes(range(TESTS), split="test", condition=condition)
        hits, trained = right(forward, scenes), scenes.labels < len(TRAINED)
        figures[f"trained, {condition}"] = float(hits[trained].double().mean())
        figures[f"held out, {condition}"] = float(hits[~trained].double().mean())
        with torch.no_grad():
            shares = [
                outside_share(
                    method.attribute(scenes.pixels(chunk), target=scenes.labels[chunk]),
                    scenes.masks[chunk],
                )
                for chunk in torch.arange(TESTS).split(BATCH)
            ]
        figures[f"outside, {condition}"] = float(torch.cat(shares).mean())
    return figures


def suite_figures(clip: Any, folder: Path) -> dict[str, float]:
    """On drawn scenes: recall and effects as the gate has them, pointing of `direct`."""
    drawn: dict[str, Any] = {"images": 60, "seed": 32}
    settings: dict[str, Any] = {**drawn, "threads": 1}
    settings |= {"data": ("demo",), "tasks": ("localization",), "methods": ("direct",)}
    config = EvaluationConfig(str(folder / "model"), str(folder / "suite"), **settings)
    rows = evaluate(config).table
    rows = rows[(rows["metric"] == "pointing") & (rows["method"] == "direct")]
    figures = {"suite, pointing": float(rows["value"].mean())}
    for name in ("demo", "demo-objects", "demo-mosaics"):
        data = open_data(name, number=drawn["images"], seed=drawn["seed"])
        for check, values in measure_gate(ModelContext(clip, data, config)).checks.items():
            figures[f"suite, {name}, {check}"] = values.figure
    return figures


def save(clip: Any, folder: Path) -> None:
    """A model as a folder that `load_clip` opens."""
    clip.model.save_pretrained(folder / "model")
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(MODEL / name, folder / "model" / name)


def kept(file: Path, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The figures of a file, made where it is not there."""
    if not file.exists():
        text = StringIO()
        csv.writer(text, lineterminator="\n").writerows(make().items())
        file.write_text(text.getvalue())
    with file.open(newline="") as opened:
        return {name: float(value) for name, value in csv.reader(opened)}


def run(arm: str, seed: int, folder: Path) -> dict[str, float]:
    """The figures of a run."""

    def make() -> dict[str, float]:
        own = folder / f"{arm}-{seed}"
        shutil.rmtree(own, ignore_errors=True)
        before = load_clip(str(MODEL))
        clip = before if arm == "before" else train(arm, seed, CHOSEN[arm])[0]
        save(clip, own)
        return {**measured(clip), **suite_figures(clip, own)}

    return kept(folder / f"{arm}-{seed}.csv", make)


def sweep(folder: Path) -> None:
    """Print what each weight gives on validation scenes of the trained nouns."""
    print("| penalty, weight | own tag | no tag | another tag | cross-entropy | penalty |")
    print("|---|---|---|---|---|---|")
    for arm, weights in PENALTIES.items():
        for weight in weights:
            make = partial(swept, arm, weight)
            figures = kept(folder / f"sweep-{arm}-{weight:g}.csv", make)
            cells = [f"{figures[condition]:.2f}" for condition in CONDITIONS]
            for loss in LOSSES:
                cells.append(f"{figures[f'first {loss}']:.3g} to {figures[f'last {loss}']:.3g}")
            print(f"| {arm}, {weight:g} | {' | '.join(cells)} |", flush=True)


def swept(arm: str, weight: float) -> dict[str, float]:
    """What a weight gives: shares that are right, and both losses at first and in the end."""
    clip, losses = train(arm, SWEEP_SEED, weight)
    draw = partial(Scenes, range(96), TRAINED, "validation")
    figures = {c: float(right(similarity(clip), draw(c)).double().mean()) for c in CONDITIONS}
    last = torch.tensor(losses[-20:]).mean(0).tolist()
    for index, loss in enumerate(LOSSES):
        figures |= {f"first {loss}": losses[0][index], f"last {loss}": last[index]}
    return figures


def interval(values: Sequence[float]) -> str:
    """The mean over seeds, with the 95 % interval of Student's t."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.2f}"
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    half = float(student.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return f"{mean:.2f} [{mean - half:.2f}, {mean + half:.2f}]"


def runs_of(arm: str, folder: Path, made: bool) -> list[dict[str, float]]:
    """The figures of an arm's runs, or of those that are there."""
    seeds = SEEDS if arm in CHOSEN else [0]
    chosen = [s for s in seeds if not made or (folder / f"{arm}-{s}.csv").exists()]
    return [run(arm, seed, folder) for seed in chosen]


def table(folder: Path, arms: Sequence[str], made: bool) -> None:
    """Run what is not there, and print a row for each figure and a column for each arm."""
    results = {arm: runs for arm in arms if (runs := runs_of(arm, folder, made))}
    titles = [
        f"{arm}, n = {len(runs)}" if arm in CHOSEN and len(runs) < len(SEEDS) else arm
        for arm, runs in results.items()
    ]
    print(f"| | {' | '.join(titles)} |")
    print("|---" * (1 + len(titles)) + "|")
    for name in next(iter(results.values()))[0]:
        cells = [interval([figures[name] for figures in runs]) for runs in results.values()]
        name = name.replace("|", "")  # of an absolute value
        print(f"| {name} | {' | '.join(cells)} |")


def differences(folder: Path) -> None:
    """Print how much more maps and both give than the exchange, paired by seed."""
    runs = {arm: runs_of(arm, folder, True) for arm in ("exchange", "maps", "both")}
    if not runs["exchange"]:
        raise SystemExit(
            f"{folder} has no figures of the exchange; first run: "
            "python docs/experiments/measured.py repair"
        )
    counts = {arm: min(len(runs["exchange"]), len(runs[arm])) for arm in ("maps", "both")}
    arms = [arm for arm, count in counts.items() if count]
    print(f"| | {' | '.join(f'{arm} - exchange, n = {counts[arm]}' for arm in arms)} |")
    print("|---" * (1 + len(arms)) + "|")
    for name in runs["exchange"][0]:
        pairs = (zip(runs[arm], runs["exchange"], strict=False) for arm in arms)
        cells = [interval([more[name] - less[name] for more, less in pair]) for pair in pairs]
        print(f"| {name.replace('|', '')} | {' | '.join(cells)} |")


def main() -> None:
    """Run all arms and print their table, or that of the sweep."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "what", choices=["table", "sweep", "differences"], nargs="?", default="table"
    )
    parser.add_argument("--folder", type=Path, default=Path("out"))
    parser.add_argument("--arm", choices=ARMS, action="append", help="these alone; default: all")
    parser.add_argument("--made", action="store_true", help="run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "differences":
        differences(options.folder)
        return
    options.folder.mkdir(exist_ok=True)
    if options.what == "sweep":
        sweep(options.folder)
    else:
        table(options.folder, options.arm or ARMS, options.made)


if __name__ == "__main__":
    main()
