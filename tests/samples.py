"""Random tensors and pictures, the same at every run."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Values from [0, 1)."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Values of mean 0 and standard deviation 1."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def picture(seed: int = 0, height: int = 40, width: int = 50) -> Image.Image:
    """An RGB picture of noise."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)
