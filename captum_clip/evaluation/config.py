"""What an evaluation is to measure, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from ..errors import InputError
from ..runs import ENGINES
from ..runs import EngineName as Engine

Against = Literal["text", "image"]
Fill = Literal["mean", "black", "blur", "road"]
FILLS: Final = get_args(Fill)
DATA: Final = ("demo", "demo-singles", "demo-mosaics")
_AGAINST: Final = get_args(Against)
_LISTS: Final = ("data", "methods", "maps", "tasks", "fills")
_LARGEST_SEED: Final = 2**31 - 1
_LOWEST: Final = {
    **{"images": 1, "few": 1, "seed": 0, "draws": 1, "batch_size": 1, "chunk_size": 1},
    **{"resamples": 1, "gpus": 0, "workers": 1, "threads": 1},
}


@dataclass(frozen=True)
class EvaluationConfig:
    """Methods and metrics over data sets, for one model.

    Attributes:
        model: a name or folder that :func:`captum_clip.load_clip` knows.
        output: a folder or URL of its own for the results.
        data: data sets, as :func:`captum_clip.evaluation.data.open_data` reads them; none means
            those of the demo that the tasks need.
        methods: names of :func:`captum_clip.evaluation.methods_for`, with options; none means all
            that fit the tower, baselines too.
        maps: folders of maps made elsewhere, each a method.
        reference: the method that the others are compared with; the tower's own by default.
        tasks: names of tasks; none means all that the data serve.
        against: explain regions by their text, or by another picture of the same thing; then only
            "localization" and "signs" are measured.
        images: at most so many of each data set.
        few: images of each data set, the first ones, for what takes long: sensitivity, sanity,
            ROAD's fill, and all of Captum's own methods.
        seed: of every draw.
        draws: perturbations an image for infidelity.
        fills: what takes the place of removed pixels: "mean" colour (normalised zero), "black",
            "blur", "road".
        batch_size: images a forward pass.
        chunk_size: images a unit of work, what a stop can cost.
        template: text of a class with "{}" for its name, for data that have classes by name.
        text: that fixations are compared with where their folder names none.
        resamples: of the bootstrap.
        engine: "local", or "ray" for several processes or machines.
        workers: processes of Ray.
        gpus: 0 computes on the CPU; with Ray the number that the workers share.
        threads: of each process; None is PyTorch's own number.

    Raises:
        InputError: something that cannot be measured, said in one sentence.
    """

    model: str
    output: str
    data: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    reference: str | None = None
    tasks: tuple[str, ...] = ()
    against: Against = "text"
    images: int = 500
    few: int = 64
    seed: int = 0
    draws: int = 10
    fills: tuple[Fill, ...] = ("mean", "road")
    batch_size: int = 32
    chunk_size: int = 32
    template: str | None = None
    text: str | None = None
    resamples: int = 2000
    engine: Engine = "local"
    workers: int = 1
    gpus: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("model", "output"):
            object.__setattr__(self, name, str(getattr(self, name)))
        for name in _LISTS:
            given = getattr(self, name)
            listed = (
                (given,) if isinstance(given, str) or not isinstance(given, Sequence) else given
            )
            object.__setattr__(self, name, tuple(str(one) for one in listed))
            twice = [one for one in self._of(name) if self._of(name).count(one) > 1]
            if twice:
                raise InputError(f"evaluate: {twice[0]!r} is given twice in {name}; once will do.")
        for name, low in _LOWEST.items():
            value = getattr(self, name)
            if value is None and name == "threads":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise InputError(f"evaluate: expected {name} of {low} or more, got {value!r}.")
        if self.seed > _LARGEST_SEED:
            raise InputError(f"evaluate: expected a seed up to {_LARGEST_SEED}, got {self.seed}.")
        for name in ("template", "text"):
            if not isinstance(getattr(self, name), str | None):
                raise InputError(
                    f"evaluate: expected {name} as a text, got {getattr(self, name)!r}."
                )
        self._check_choices()

    def _of(self, name: str) -> tuple[str, ...]:
        found: tuple[str, ...] = getattr(self, name)
        return found

    def _check_choices(self) -> None:
        for name, known in (("against", _AGAINST), ("engine", ENGINES)):
            if getattr(self, name) not in known:
                raise InputError(
                    f"evaluate: expected {name} of {', '.join(known)}, got {getattr(self, name)!r}."
                )
        unknown = [fill for fill in self.fills if fill not in FILLS]
        if unknown or not self.fills:
            raise InputError(
                f"evaluate: expected fills of {', '.join(FILLS)}, got "
                f"{unknown[0] if unknown else 'none'!r}."
            )
        if self.engine == "local" and self.gpus > 1:
            raise InputError("evaluate: the local engine computes on one GPU; take engine='ray'.")
        if self.engine == "ray" and self.workers < self.gpus:
            raise InputError(
                f"evaluate: {self.gpus} GPUs need as many workers or more, got {self.workers}."
            )

    def identity(self) -> dict[str, Any]:
        """All that decides the results, as JSON; places, the engine and the bootstrap do not."""
        names = (
            "methods",
            "tasks",
            "against",
            "images",
            "few",
            "seed",
            "draws",
            "fills",
            "template",
            "text",
        )
        found = {name: getattr(self, name) for name in (*names, "batch_size", "chunk_size")}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in found.items()}
