"""Settings of an evaluation or a study, checked before anything is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, get_args

import torch

from ..attr.registry import check_method
from ..checks import (
    as_list,
    check_choice,
    check_flag,
    check_integer,
    expand,
    find_repeated,
    show,
)
from ..errors import InputError, public
from ..models.names import published

EngineName = Literal["local", "ray"]
Against = Literal["text", "image"]
Fill = Literal["mean", "black", "blur", "road"]
FILLS: Final = get_args(Fill)
Format = Literal["latex", "csv"]
DATA: Final = ("demo", "demo-objects", "demo-mosaics")


def label_of(model: str) -> str:
    """How results call a model: its name; of a folder the last part, without the path."""
    folder = _folder_of(model)
    return model if folder is None else folder.name


def full_name(model: str) -> str:
    """A model's name as any process on any machine understands it."""
    return str(_folder_of(model) or model)


def _folder_of(model: str) -> Path | None:
    if model.startswith("demo/") or published(model) is not None:
        return None
    folder = expand(model)
    return folder.resolve() if folder.is_dir() else None


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How an evaluation or a study is computed.

    Attributes:
        batch_size: images per forward pass.
        chunk_size: images per unit of work; a stop loses one unit per worker.
        seed: of every draw.
        engine: "local", or "ray" for several processes or machines.
        workers: processes that compute (ray; None is one for each GPU, or one), or batches of a
            study's images that are read ahead at a time (local; 0 is none, None is two).
        gpus: 0 computes on the CPU; 1 on a GPU; with Ray the number that the workers share.
        threads: of each process that computes; None is PyTorch's own number. The same results to
            the bit need the same number.
        processor: whose image processor all models get, by name or folder, for checkpoints that
            were saved without one.
        tokenizer: the same for the tokenizer.
        image_size: of the models, as of :func:`captum_clip.load_clip`: larger images, finer maps.
    """

    deciding: ClassVar[tuple[str, ...]]  # fields that decide the results
    several: ClassVar[tuple[str, ...]]  # fields of one value or several, none of which comes twice
    places: ClassVar[tuple[str, ...]] = ("output",)
    texts_or_none: ClassVar[tuple[str, ...]] = ("processor", "tokenizer")
    least: ClassVar[dict[str, int]] = {
        **{"batch_size": 1, "chunk_size": 1, "seed": 0, "workers": 0, "gpus": 0, "threads": 1},
        "image_size": 1,
    }
    most: ClassVar[dict[str, int]] = {"batch_size": 2**16, "seed": 2**31 - 1, "threads": 2**12}

    batch_size: int = 32
    chunk_size: int = 32
    seed: int = 0
    engine: EngineName = "local"
    workers: int | None = None
    gpus: int = 0
    threads: int | None = None
    processor: str | None = None
    tokenizer: str | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        for name in self.places:
            place = getattr(self, name)
            if not isinstance(place, (str, Path)) or not str(place):
                raise InputError(f"expected {name} as a folder or a URL, got {show(place)}.")
            object.__setattr__(self, name, str(place))
        for name in self.several:
            given = getattr(self, name)
            is_one = isinstance(given, str) or not isinstance(given, Sequence)
            listed = (given,) if is_one else tuple(given)
            if (repeated := find_repeated(listed)) is not None:
                raise InputError(f"{str(repeated)!r} is given twice in {name}; once will do.")
            object.__setattr__(self, name, listed)
        for name in self.texts_or_none:
            value = getattr(self, name)
            if not isinstance(value, str | None) or value == "":
                raise InputError(f"expected {name} as a text, got {value!r}.")
        defaults = {one.name: one.default for one in fields(self)}
        for name, least in self.least.items():
            value = getattr(self, name)
            if value is not None or defaults[name] is not None:
                check_integer(name, value, least=least, most=self.most.get(name))
        for name in (name for name, default in defaults.items() if isinstance(default, bool)):
            check_flag(name, getattr(self, name))
        check_choice(self.engine, get_args(EngineName), name="an engine")
        if self.engine == "local" and self.gpus > 1:
            raise InputError(
                f"the local engine computes on one GPU; `engine='ray'` uses {self.gpus} of them."
            )
        if self.engine == "ray" and self.processes < max(1, self.gpus):
            raise InputError(
                f"Ray needs one worker or more, and as many as GPUs, got "
                f"`workers={self.workers}` and `gpus={self.gpus}`."
            )

    @property
    def processes(self) -> int:
        """Workers, with the engine's default in place of None."""
        default = 2 if self.engine == "local" else max(1, self.gpus)
        return default if self.workers is None else self.workers

    @property
    def thread_count(self) -> int:
        """Threads, with PyTorch's own number in place of None."""
        return self.threads or torch.get_num_threads()

    @property
    def device(self) -> str:
        """Where models compute."""
        return "cuda" if self.gpus else "cpu"

    def identity(self) -> dict[str, Any]:
        """All settings that decide the results, as JSON; neither places nor the engine do."""
        values = {name: getattr(self, name) for name in self.deciding}
        parts = {name: getattr(self, name) for name in ("processor", "tokenizer")}
        values |= {name: label_of(value) for name, value in parts.items() if value is not None}
        values |= {} if self.image_size is None else {"image_size": self.image_size}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def check_config(config: Any, kind: type[RunConfig]) -> None:
    """Raise InputError unless a config is of a kind."""
    if not isinstance(config, kind):
        got = type(config).__name__
        raise InputError(f"expected settings as {kind.__name__}(...), got {got}.")


@dataclass(frozen=True)
class EvaluationConfig(RunConfig):
    """Methods and metrics over data sets, for one model.

    Attributes:
        model: a name or folder that :func:`captum_clip.load_clip` knows.
        output: a folder or URL of its own for the results.
        data: data sets, as :func:`captum_clip.evaluation.data.open_data` reads them; none means
            those of the demo that the tasks need.
        methods: names of :func:`captum_clip.evaluation.methods_for`, with options, "mamooler", or
            "all" of them; none means the registered ones that fit the tower and four baselines.
        maps: folders of maps made elsewhere, each a method.
        reference: the method that the others are compared with; by default Mamooler's.
        tasks: names of tasks; none means all that the data support but "pairs".
        against: explain regions by their text, or by another image of the same thing; then only
            "localization" and "signs" are measured.
        images: at most so many of each data set.
        slow_images: images of each data set, drawn from all of them, for what takes long:
            sensitivity, sanity, ROAD's fill, and all of Captum's own methods.
        draws: random masks per image for faithfulness and infidelity.
        fills: what takes the place of removed pixels: "mean" colour (normalised zero), "black",
            "blur", "road".
        template: text of a class with "{}" for its name, for data that have classes by name.
        text: that fixations are compared with where their folder names none.
        void: "out" leaves out the pixels that Pascal VOC marks as void, which is the default;
            "background" counts them as outside of every region.
        resamples: of the bootstrap.
        formats: further files: "latex", the tables in ``results.tex``, and "csv", every measured
            value in ``values.csv``, a row each.

    The settings of :class:`RunConfig` are keywords too.

    Raises:
        InputError: something that cannot be measured.
    """

    deciding = (
        *("methods", "tasks", "against", "images", "slow_images", "seed", "draws", "fills"),
        *("template", "text", "void", "batch_size", "chunk_size"),
    )
    several = ("data", "methods", "maps", "tasks", "fills", "formats")
    texts_or_none = (*RunConfig.texts_or_none, "reference", "template", "text", "void")
    least = RunConfig.least | {"images": 1, "slow_images": 1, "draws": 1, "resamples": 1}

    model: str
    output: str
    data: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    reference: str | None = None
    tasks: tuple[str, ...] = ()
    against: Against = "text"
    images: int = 100
    slow_images: int = 16
    draws: int = 32
    fills: tuple[Fill, ...] = ("mean", "road")
    template: str | None = None
    text: str | None = None
    void: str | None = None
    resamples: int = 2000
    formats: tuple[Format, ...] = ()

    @public("evaluate")
    def __post_init__(self) -> None:
        object.__setattr__(self, "model", str(self.model))
        if not self.model:
            raise InputError(
                "expected a model by name or path, so that any worker can load it, got "
                "an empty text."
            )
        super().__post_init__()
        for name in self.several:
            object.__setattr__(self, name, tuple(map(str, getattr(self, name))))
        check_choice(self.against, get_args(Against), name="against")
        for fill in self.fills or ("none",):
            check_choice(fill, FILLS, name="fills")
        for form in self.formats:
            check_choice(form, get_args(Format), name="formats")


@dataclass(frozen=True)
class StudyConfig(RunConfig):
    """A study of saliency maps over a folder of images.

    Attributes:
        images: a folder, searched recursively, or a URL that fsspec knows.
        output: a folder or URL of its own for the results.
        texts: targets.
        models: names or folders that :func:`captum_clip.load_clip` knows; every model is studied
            with every method that fits its tower.
        methods: names of ``attr.METHODS``, with options as in "last-grad:heads=averaged"; none
            means the tower's own, as in `explain`, and "mamooler" the report's.
        emotions: a file for each model, in the same order, fitted for it, as
            :func:`captum_clip.targets.emotion` reads it; or none.
        centred: for each emotion also the emotion minus the mean of all of them.
        limit: study a sample of this many images; None is all. Without it the seed decides nothing.
        value_entropy: measure this entropy too, which takes longer than all the rest.

    The settings of :class:`RunConfig` are keywords too.

    Raises:
        InputError: something that cannot be studied.
    """

    deciding = (
        *("texts", "centred", "batch_size", "chunk_size", "seed", "limit", "value_entropy"),
        "threads",
    )
    several = ("texts", "models", "methods")
    places = ("images", "output")
    least = RunConfig.least | {"limit": 1}

    images: str | Path
    output: str | Path
    texts: Sequence[str] = ()
    models: Sequence[str] = ("ViT-B/32",)
    methods: Sequence[str] = ()
    emotions: Sequence[str | Path] = ()
    centred: bool = False
    limit: int | None = None
    value_entropy: bool = False
    batch_size: int = field(default=16, kw_only=True)
    chunk_size: int = field(default=128, kw_only=True)

    @public("StudyConfig")
    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "emotions", tuple(as_list(self.emotions)))
        object.__setattr__(self, "models", tuple(map(str, self.models)))
        if not all(self.models):
            raise InputError(
                f"expected models by name or path, so that any worker can load them, "
                f"got {self.models}."
            )
        for method in self.methods:
            check_method(method)
        blank = [text for text in self.texts if not isinstance(text, str) or not text.strip()]
        if blank:
            raise InputError(f"expected texts with something in them, got {blank[0]!r}.")
        if len(self.emotions) not in (0, len(self.models)):
            raise InputError(
                f"expected a file of emotions for each of the {len(self.models)} "
                f"models ({', '.join(self.models)}), in the same order, got {len(self.emotions)}."
            )
        if not self.models or not (self.texts or self.emotions):
            raise InputError("there is nothing to explain; give texts or emotions.")
        if self.centred and not self.emotions:
            raise InputError("centred means emotions, and there are none.")

    def identity(self) -> dict[str, Any]:
        """As of every run; the seed decides nothing but a sample."""
        return {**super().identity(), "seed": None if self.limit is None else self.seed}
