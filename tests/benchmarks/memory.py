"""The most bytes of tensors that a run holds at once."""

from __future__ import annotations

import gc
import os
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from .timing import Run, synchronize

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes when it starts and stops


def peak(run: Run, device: torch.device) -> int:
    """The largest sum of bytes that was allocated in a run and not yet freed.

    What was there before, weights and images, does not count. On the CPU the sum is taken over the
    events of torch's own allocator, so temporary tensors and workspaces inside one operation, fused
    attention say, count as well; what oneDNN and NumPy take for themselves does not. On CUDA it is
    the caching allocator's figure, in its blocks of 512 bytes.
    """
    gc.collect()
    if device.type == "cuda":
        return _peak_on_cuda(run, device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    results: Any = profiler.profiler.kineto_results
    changes = [
        (event.start_ns(), event.nbytes())
        for event in results.events()
        if event.name() == "[memory]"
    ]
    live = largest = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        live += change
        largest = max(largest, live)
    return largest


def _peak_on_cuda(run: Run, device: torch.device) -> int:
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
