"""What a training step with maps in the graph costs, beside a plain one.

``python -m tests.benchmarks.step_cost`` takes a ViT-B/32 of transformers of its true size, with
random weights, and prints a row for each job: forward, backward and both together, medians over
rounds in which all take turns after two to warm up, and the most memory that tensors take at once
on top of the model and its gradients. A plain step has the cosines with K texts and their
cross-entropy; the others add the share of the label's map outside of a mask.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPConfig, CLIPModel

from captum_clip import ClipSimilarity, DirectContribution, load_clip, targets
from captum_clip.maps import outside_share

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes when it starts
JOBS = ("plain", "pooling", "token", "all")
"""No map, or the depth of its contributions."""
Step = Callable[[], Tensor]


def steps(names: Sequence[str], batch: int, texts: int, device: str) -> dict[str, Step]:
    """What makes the loss of each job, on one model."""
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig()).to(device).eval()  # the configuration of ViT-B/32
    model.text_model.requires_grad_(False)
    clip = load_clip(model)
    rows = F.normalize(torch.randn(texts, 512), dim=1)
    forward = ClipSimilarity(clip, targets.embedding(rows))
    method = DirectContribution(forward)
    images = torch.randn(batch, 3, 224, 224, device=device)
    labels = torch.arange(batch, device=device) % texts
    masks = torch.zeros(batch, 224, 224, dtype=torch.bool, device=device)
    masks[:, 64:160, 64:160] = True

    def plain() -> Tensor:
        return F.cross_entropy(50 * forward(images), labels)

    def with_map(depth: str) -> Tensor:
        options = {"return_scores": True, "create_graph": True, "depth": depth}
        if depth == "all":  # a backward for each target
            scores = forward(images)
            maps = method.attribute(images, target=labels, create_graph=True, depth=depth)
        else:
            maps, scores = method.attribute_targets(images, **options)
            maps = maps[torch.arange(batch), labels][:, None]
        return F.cross_entropy(50 * scores, labels) + outside_share(maps, masks).mean()

    return {n: plain if n == "plain" else partial(with_map, n) for n in names}


def seconds(step: Step, device: str) -> tuple[float, float]:
    """Of a forward and of a backward."""
    begin = time.perf_counter()
    loss = step()
    _wait(device)
    middle = time.perf_counter()
    loss.backward()
    _wait(device)
    return middle - begin, time.perf_counter() - middle


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def memory(step: Step, device: str) -> float:
    """MiB of tensors that a step holds at once, on top of the model and its gradients."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step().backward()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step().backward()
    assert profiler.profiler is not None
    results: Any = profiler.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(accumulate(changes)) / 2**20


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    sizes = options.batch, options.texts, options.device
    jobs, times = steps(JOBS, *sizes), {name: list[tuple[float, float]]() for name in JOBS}
    for _ in range(2 + options.rounds):
        for name, step in jobs.items():
            times[name].append(seconds(step, options.device))
    print("| step | forward, ms | backward, ms | of a plain step | memory, MiB |")
    print("|---|---|---|---|---|")
    whole = {n: statistics.median(map(sum, rows[2:])) for n, rows in times.items()}
    for name, rows in times.items():
        peak = memory(jobs[name], options.device)
        forward, backward = (statistics.median(column) for column in zip(*rows[2:], strict=True))
        share = whole[name] / whole["plain"]
        times_ms = f"{1000 * forward:.0f} | {1000 * backward:.0f}"
        print(f"| {name} | {times_ms} | {share:.2f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
