"""What each method of the tables of three copies costs, and its quality over that price.

``python docs/experiments/prices.py count vit METHOD...`` prints the price of each method: the
operations of its matrix products and convolutions, in units of a forward pass of the same images.
``python docs/experiments/prices.py figure prices.png`` draws quality over price from what steps of
``measured.py`` found, and prints the best methods up to each price.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from captum_clip import load_clip
from captum_clip.bench.data import DATA_SETS
from captum_clip.bench.methods import WITHOUT_MAP, method_of, named_methods
from captum_clip.bench.table import Queries
from measured import ALL
from tables import NAMES, copies_of, markdown, prices_of, short

LIMITS = (1.2, 3, 10, float("inf"))
SCENES = 1
COLUMNS = {"adds": "thirds_adds_rank", "drop": "thirds_removal_rank"}


class Operations(TorchDispatchMode):
    """Counts those of matrix products and convolutions, forward and backward.

    torch's own FlopCounterMode hooks autograd's nodes, which Captum's gradients do not survive.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named, count = kwargs or {}, flop_registry.get(func._overloadpacket)
        if count is None:
            with self:  # what is made of others is counted by them
                if (out := func.decompose(*args, **named)) is not NotImplemented:
                    return out
        out = func(*args, **named)
        if count is not None:
            self.total += count(*args, **named, out_val=out)
        return out


def operations(run: Callable[[], Any]) -> int:
    """Those of a call."""
    with Operations() as counter:
        run()
    return counter.total


def count(model: str, names: list[str]) -> None:
    """Print the price of each method for scenes with a text each."""
    clip = load_clip(f"demo/{model}")
    data = DATA_SETS["demo-thirds"](SCENES)
    samples = [data.read(number) for number in range(SCENES)]
    texts = [sample.regions[0].text for sample in samples]
    pixels = clip.preprocess([sample.image for sample in samples])
    rows = clip.encode_text(texts).detach()
    queries = Queries(pixels, rows, tuple(texts), tuple(texts), tuple(range(SCENES)))
    with torch.no_grad():
        unit = operations(lambda: clip.image_features(pixels))
    rows = []
    for name in named_methods(clip, names):
        method = method_of(name, clip)
        if not method.costly:
            method.maps(clip, queries)  # the first call looks at the model
        price = operations(lambda method=method: method.maps(clip, queries)) / unit
        rows.append([f"`{name}`", f"{price:.3g}"])
    markdown(("method", "price"), rows)


def figure(file: str) -> None:
    """Draw quality over price, and print the best methods up to each price."""
    drawing = Figure((11, 4), layout="constrained")
    rows = []
    for axes, model in zip(drawing.subplots(1, 3, sharey=True), ALL, strict=True):
        found, prices = copies_of(model)["mean"].unstack(), prices_of(model)
        found = found[~found.index.isin(WITHOUT_MAP)]
        points = found[[*COLUMNS.values()]].assign(price=prices).dropna()
        for (name, column), color in zip(COLUMNS.items(), ("#4477aa", "#cc6677"), strict=True):
            axes.scatter(points.price, points[column], 18, color, label=name, alpha=0.8)
        bests = {points[COLUMNS["drop"]][points.price <= limit].idxmax() for limit in LIMITS}
        for number, name in enumerate(sorted(bests, key=points.price.get)):  # above each other
            place = points.price[name], points[COLUMNS["drop"]][name]
            side = "left" if place[0] < 5 else "right"
            look: Any = {"arrowprops": {"arrowstyle": "-", "lw": 0.4}, "size": 6, "ha": side}
            axes.annotate(name, place, (0, 8 + 11 * number), textcoords="offset points", **look)
        axes.set(xscale="log", title=NAMES[model], xlabel="price in forward passes")
        for limit in LIMITS:
            below = points[points.price <= limit]
            cells = [f"{short(below[c].max())} `{below[c].idxmax()}`" for c in COLUMNS.values()]
            rows.append([NAMES[model], "any" if limit == LIMITS[-1] else f"{limit:g}", *cells])
    first = drawing.axes[0]
    first.set_ylabel("rank correlation, three copies")
    first.set_ylim(top=1.15)
    first.legend(frameon=False, loc="lower right")
    drawing.savefig(file, dpi=130)
    markdown(("model", "price up to", *COLUMNS), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(required=True)
    line = commands.add_parser("count")
    line.add_argument("model", choices=ALL)
    line.add_argument("names", nargs="+")
    line.set_defaults(run=lambda args: count(args.model, args.names))
    line = commands.add_parser("figure")
    line.add_argument("file")
    line.set_defaults(run=lambda args: figure(args.file))
    chosen = parser.parse_args()
    chosen.run(chosen)
