"""What an evaluation is to measure, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from ..checks import check_choice, check_integer, find_repeated
from ..errors import InputError
from ..runs import EngineName, check_engine, given_parts

Against = Literal["text", "image"]
Fill = Literal["mean", "black", "blur", "road"]
FILLS: Final = get_args(Fill)
DATA: Final = ("demo", "demo-objects", "demo-mosaics")
_LISTS: Final = ("data", "methods", "maps", "tasks", "fills")
_LARGEST_SEED: Final = 2**31 - 1
_LEAST: Final = {
    **{"images": 1, "slow_images": 1, "seed": 0, "draws": 1, "batch_size": 1, "chunk_size": 1},
    **{"resamples": 1, "gpus": 0, "workers": 1, "threads": 1},
}
_DECIDING: Final = (
    *("methods", "tasks", "against", "images", "slow_images", "seed", "draws", "fills"),
    *("template", "text", "void", "batch_size", "chunk_size"),
)


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
        reference: the method that the others are compared with; by default Mamooler's.
        tasks: names of tasks; none means all that the data support.
        against: explain regions by their text, or by another picture of the same thing; then only
            "localization" and "signs" are measured.
        images: at most so many of each data set.
        few: images of each data set, drawn from all of them, for what takes long: sensitivity,
            sanity, ROAD's fill, and all of Captum's own methods.
        seed: of every draw.
        draws: random masks per image for faithfulness and infidelity.
        fills: what takes the place of removed pixels: "mean" colour (normalised zero), "black",
            "blur", "road".
        batch_size: images per forward pass.
        chunk_size: images per unit of work; a stop loses one unit per worker.
        template: text of a class with "{}" for its name, for data that have classes by name.
        text: that fixations are compared with where their folder names none.
        void: "out" leaves out the pixels that Pascal VOC marks as void, as is done where nothing is
            said; "background" counts them as beside every region.
        resamples: of the bootstrap.
        engine: "local", or "ray" for several processes or machines.
        workers: processes of Ray.
        gpus: 0 computes on the CPU; with Ray the number that the workers share.
        threads: of each process; None is PyTorch's own number.
        processor: whose image processor the model gets, by name or folder, for a checkpoint that
            was saved without one.
        tokenizer: the same for the tokenizer.

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
    slow_images: int = 64
    seed: int = 0
    draws: int = 32
    fills: tuple[Fill, ...] = ("mean", "road")
    batch_size: int = 32
    chunk_size: int = 32
    template: str | None = None
    text: str | None = None
    void: str | None = None
    resamples: int = 2000
    engine: EngineName = "local"
    workers: int = 1
    gpus: int = 0
    threads: int | None = None
    processor: str | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        for name in ("model", "output"):
            object.__setattr__(self, name, str(getattr(self, name)))
        if not self.model:
            raise InputError(
                "evaluate: expected a model by name or path, so that any worker can load it, got "
                "an empty text."
            )
        for name in _LISTS:
            value = getattr(self, name)
            several = isinstance(value, Sequence) and not isinstance(value, str)
            listed = tuple(str(entry) for entry in (value if several else [value]))
            object.__setattr__(self, name, listed)
            repeated = find_repeated(listed)
            if repeated is not None:
                raise InputError(f"evaluate: {repeated!r} is given twice in {name}; once will do.")
        for name, least in _LEAST.items():
            if name != "threads" or self.threads is not None:
                check_integer("evaluate", name, getattr(self, name), least=least)
        check_integer("evaluate", "a seed", self.seed, least=0, most=_LARGEST_SEED)
        for name in ("template", "text", "void"):
            value = getattr(self, name)
            if not isinstance(value, str | None):
                raise InputError(f"evaluate: expected {name} as a text, got {value!r}.")
        check_choice("evaluate", self.against, get_args(Against), name="against")
        for fill in self.fills or ("none",):
            check_choice("evaluate", fill, FILLS, name="fills")
        check_engine("evaluate", self.engine, self.workers, self.gpus)
        given_parts("evaluate", processor=self.processor, tokenizer=self.tokenizer)

    def identity(self) -> dict[str, Any]:
        """All that decides the results, as JSON; places, the engine and the bootstrap do not."""
        values = {name: getattr(self, name) for name in _DECIDING}
        values |= given_parts("", processor=self.processor, tokenizer=self.tokenizer)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
