"""Infidelity and sensitivity of `captum.metrics`, with the defaults that CLIP maps need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from captum import metrics as captum_metrics
from torch import Tensor

from ..checks import check_positive
from ..errors import InputError
from ..maps import check_maps, expand_to_input
from .checks import (
    Forward,
    Seed,
    Targets,
    check_count,
    check_images,
    checked_scores,
    checked_targets,
    seeds_of,
)
from .perturbations import Perturbation, patch_removal
from .resize import as_planes, at_least_single


def infidelity(
    forward: Forward,
    images: Tensor,
    maps: Tensor,
    target: Targets = None,
    *,
    perturbation: Perturbation | None = None,
    samples: int = 50,
    normalize: bool = True,
    batch_size: int = 32,
    seed: Seed = 0,
) -> Tensor:
    r"""Infidelity of maps: how far they are from predicting what perturbations do to the score.

    .. math:: \mathrm{INFD} = E_I\bigl[(\beta \, I \cdot m - (y(x) - y(x_I)))^2\bigr], \quad
              \beta = \frac{E[I \cdot m \, (y(x) - y(x_I))]}{E[(I \cdot m)^2]}

    by `captum.metrics.infidelity`. With beta (`normalize`) the scale of the map makes no
    difference, nor does its sign as a whole, since beta may be negative; without it beta is 1.
    Zero is perfect, and a map of zeros gets the mean square of the score's change, the unit that a
    figure is to be read in. There is no intercept: a map with one value everywhere tells how much
    an average cell counts, and that alone explains most of the square, so it may beat maps that
    tell one cell from another. :func:`faithfulness_correlation` has an offset.

    Args:
        forward: images (B, C, H, W) -> scores (B,) or (B, K).
        images: (B, C, H, W), preprocessed.
        maps: (B, 1, h, w) or (B, h, w), whose cells are spread over their pixels and channels by
            :func:`captum_clip.maps.expand_to_input`; or of the images' shape, taken as they are.
        target: column of the scores, one for all or one per image; None with one column.
        perturbation: draws I; by default :func:`patch_removal` on the map's own grid, where I is 1
            on removed cells. :func:`gaussian_noise` suits gradients.
        samples: perturbations per image.
        normalize: see above; without it maps must be on the scale of the score.
        batch_size: images per forward pass.
        seed: image i draws from seed + i, so that a set may come in batches of any size; or the
            seed of each image.

    Returns:
        (B,), at least in single precision; arithmetic in double.

    Raises:
        InputError: images and maps that do not belong together, NaN or infinity, more targets than
            scores; maps as fine as the images without a perturbation.

    Source: Yeh et al. 2019 (arXiv:1901.09392); Captum.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> brightness = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4)
        >>> metrics.infidelity(lambda x: x.mean((1, 2, 3)), images, brightness) < 1e-12
        tensor([True, True])
    """
    caller = "infidelity"
    check_images(caller, images)
    check_maps(caller, maps)
    if maps.shape == images.shape:
        spread = at_least_single(maps)
    else:
        spread = expand_to_input(as_planes(caller, maps, images)[:, None], images)
    chosen = checked_targets(caller, target, images, name="target")
    if perturbation is None:
        grid = (maps.shape[-2], maps.shape[-1])
        if grid == images.shape[-2:]:
            raise InputError(
                f"{caller}: the maps are as fine as the images, {grid[0]} x {grid[1]}; say what to "
                "perturb, for example perturbation=metrics.patch_removal((7, 7))."
            )
        perturbation = patch_removal(grid)
    largest = None if target is None else int(chosen.max())

    def score(inputs: Tensor) -> Tensor:
        return checked_scores(caller, forward, inputs, largest).double()

    values = [
        captum_metrics.infidelity(
            score,
            _perturb_repeated(perturbation, generators),
            images[part],
            spread[part].double(),
            target=chosen[part],
            n_perturb_samples=samples,
            max_examples_per_batch=most,
            normalize=normalize,
        )
        for part, most, generators in _batches(caller, images, samples, batch_size, seed)
    ]
    # rounding may leave -1e-20
    return torch.cat(values).clamp(min=0).to(at_least_single(maps).dtype)


@torch.inference_mode(False)
def sensitivity(
    attribute: Callable[..., Any],
    images: Tensor,
    target: Targets = None,
    *,
    radius: float = 0.02,
    samples: int = 10,
    batch_size: int = 32,
    seed: Seed = 0,
    **options: Any,
) -> Tensor:
    r"""The largest relative change of maps under small noise, `captum.metrics.sensitivity_max`.

    .. math:: \mathrm{SENS} = \max_{|\delta|_\infty \le r} \frac{|m(x + \delta) - m(x)|}{|m(x)|}

    over uniform draws. A map of zeros is divided by 1.

    Args:
        attribute: images, ``target=`` and the options -> maps (B, ...): the `attribute` of any
            method of Captum or of this package. It is called with a tensor, with gradients on.
        images: (B, C, H, W), preprocessed.
        target: one for all or one per image; None where the method needs none.
        radius: r, in units of the normalised images.
        samples: draws per image.
        batch_size: images per call of `attribute`.
        seed: image i draws from seed + i, so that a set may come in batches of any size; or the
            seed of each image.
        **options: passed on to `attribute` as they are.

    Returns:
        (B,), 0 for a map that does not change.

    Raises:
        InputError: no such images, targets, radius or maps; NaN or infinity in them.

    Source: Yeh et al. 2019 (arXiv:1901.09392); Captum.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> metrics.sensitivity(lambda inputs, target: torch.ones(len(inputs), 1, 2, 2), images)
        tensor([0., 0.])
    """
    caller = "sensitivity"
    check_images(caller, images)
    check_positive(caller, "a radius", radius)
    one_target = target is None or isinstance(target, int)
    chosen = None if one_target else checked_targets(caller, target, images, name="target").clone()

    def explain(inputs: Tensor | tuple[Tensor], target: Any) -> Tensor | tuple[Tensor]:
        # captum gives a tuple first and a tensor afterwards, and turns gradients off; its own
        # methods warn of inputs that need none
        pixels = inputs[0] if isinstance(inputs, tuple) else inputs
        with torch.enable_grad():
            leaf = pixels.detach().clone().requires_grad_()
            result = attribute(leaf, target=target, **options)
        maps = result[0] if isinstance(result, tuple) else result
        check_maps(caller, maps)
        maps = at_least_single(maps.detach()).contiguous()
        return (maps,) if isinstance(inputs, tuple) else maps

    def add_noise(image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = radius * (2 * torch.rand(image.shape, generator=generator) - 1).to(image)
        return noise, image + noise

    def noisy(generators: list[torch.Generator]) -> Callable[[Tensor], Tensor]:
        perturb = _perturb_repeated(add_noise, generators)
        return lambda inputs: perturb(inputs)[1]

    values = [
        captum_metrics.sensitivity_max(
            explain,
            images[part],
            perturb_func=noisy(generators),
            n_perturb_samples=samples,
            max_examples_per_batch=most,
            target=target if chosen is None else chosen[part],
        )
        for part, most, generators in _batches(caller, images, samples, batch_size, seed)
    ]
    return torch.cat(values)


def _batches(
    caller: str, images: Tensor, samples: int, batch_size: int, seed: Seed
) -> Iterator[tuple[slice, int, list[torch.Generator]]]:
    """Parts of a batch, how many perturbed images fit at a time, and a generator per image."""
    check_count(caller, "samples", samples)
    check_count(caller, "batch_size", batch_size)
    seeds = seeds_of(caller, seed, len(images))
    size = max(1, batch_size // samples)
    for start in range(0, len(images), size):
        generators = [torch.Generator().manual_seed(s) for s in seeds[start : start + size]]
        most = min(batch_size, len(generators) * samples)
        yield slice(start, start + size), most, generators


def _perturb_repeated(
    perturb: Perturbation, generators: list[torch.Generator]
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """What captum asks for: changes and changed images, each image repeated a number of times."""

    def draw(inputs: Tensor) -> tuple[Tensor, Tensor]:
        repeated = len(inputs) // len(generators)
        pairs = [perturb(image, generators[i // repeated]) for i, image in enumerate(inputs)]
        changes, changed = (torch.stack(column) for column in zip(*pairs, strict=True))
        return changes, changed

    return draw
