"""Settings of every test run."""

from __future__ import annotations

import torch

torch.set_num_threads(1)  # small tensors: more threads only wait for each other
