"""Settings of an evaluation or a study, checked before anything is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch

from ..attr.registry import check_method
from ..checks import check_choice, check_flag, check_integer, expand, expect, find_repeated
from ..errors import InputError, argument, public
from ..models.names import named_model, split_checkpoint

EngineName = Literal["local", "ray"]
Against = Literal["text", "image"]
Fill = Literal["mean", "black", "blur"]
FILLS: Final = get_args(Fill)
DATA: Final = ("demo-thirds", "demo-identical", "demo", "demo-objects", "demo-mosaics")


def label_of(model: str) -> str:
    """How results call a model: its name; of a folder or a file the last part, without the path."""
    if checkpoint := split_checkpoint(model):
        return f"{label_of(checkpoint[0])}:{checkpoint[1].name}"
    folder = _folder_of(model)
    return model if folder is None else folder.name


def full_name(model: str) -> str:
    """A model's name as any process on any machine understands it."""
    if checkpoint := split_checkpoint(model):
        return f"{full_name(checkpoint[0])}:{checkpoint[1].resolve()}"
    return str(_folder_of(model) or model)


def _folder_of(model: str) -> Path | None:
    if model.startswith("demo/") or named_model(model) is not None:
        return None
    folder = expand(model)
    return folder.resolve() if folder.is_dir() else None


_DECIDES: Final = {"decides": True}
_COUNT: Final = {"least": 1} | _DECIDES
_BATCH: Final = {"most": 2**16} | _COUNT
_TEXT: Final = {"text": "as a text"}
_PLACE: Final = {"text": "as a folder or a URL"}
_NAME: Final = {"text": "by name or path"}
_NAMES: Final = {"several": "distinct"} | _NAME
_TEXTS: Final = {"several": "distinct", "text": "with something in them"} | _DECIDES
_FILLS: Final = {"several": "distinct", "choices": FILLS} | _DECIDES


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How an evaluation or a study is computed.

    The metadata of a field say whether it `decides` the results, and what is checked: `least` and
    `most` of a whole number, the `choices`, a `flag`, a `text` with how it is expected; the same of
    each where there may be `several`, which are "distinct" or "any".

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

    batch_size: int = field(default=32, metadata=_BATCH)
    chunk_size: int = field(default=32, metadata=_COUNT)
    seed: int = field(default=0, metadata={"least": 0, "most": 2**31 - 1} | _DECIDES)
    engine: EngineName = field(default="local", metadata={"choices": get_args(EngineName)})
    workers: int | None = field(default=None, metadata={"least": 0})
    gpus: int = field(default=0, metadata={"least": 0})
    threads: int | None = field(default=None, metadata={"least": 1, "most": 2**12})
    processor: str | None = field(default=None, metadata=_TEXT | _DECIDES)
    tokenizer: str | None = field(default=None, metadata=_TEXT | _DECIDES)
    image_size: int | None = field(default=None, metadata=_COUNT)

    def __post_init__(self) -> None:
        for setting in fields(self):
            name, value = setting.name, getattr(self, setting.name)
            if value is not None or setting.default is not None:
                object.__setattr__(self, name, _checked(name, value, setting.metadata))
        if self.engine == "local" and self.gpus > 1:
            raise InputError(
                f"the local engine computes on one GPU; {argument('engine', 'ray')} uses more."
            )
        if self.engine == "ray" and self.processes < max(1, self.gpus):
            raise InputError(
                "Ray needs one worker or more, and as many as GPUs, got "
                f"{argument('workers', self.workers)} and {argument('gpus', self.gpus)}."
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
        deciding = [setting.name for setting in fields(self) if setting.metadata.get("decides")]
        values = {name: getattr(self, name) for name in deciding}
        parts = {name: values[name] for name in ("processor", "tokenizer")}
        values |= {name: label_of(value) for name, value in parts.items() if value is not None}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def _checked(name: str, value: Any, rules: Mapping[str, Any]) -> Any:
    """The value of a setting as it is kept; InputError where the rules do not allow it."""
    if "several" in rules:
        each = {rule: rules[rule] for rule in rules if rule != "several"}
        is_one = isinstance(value, str) or not isinstance(value, Sequence)
        listed = [_checked(name, v, each) for v in ([value] if is_one else value)]
        repeated = find_repeated(listed) if rules["several"] == "distinct" else None
        if repeated is not None:
            raise InputError(f"{str(repeated)!r} is given twice in {name}; once will do.")
        return tuple(listed)
    if "least" in rules:
        check_integer(name, value, least=rules["least"], most=rules.get("most"))
    if "choices" in rules:
        check_choice(value, rules["choices"], name=name)
    if "flag" in rules:
        check_flag(name, value)
    if "text" in rules:
        is_text = isinstance(value, (str, Path)) and str(value).strip()
        expect(is_text, f"{name} {rules['text']}", value)
        return str(value)
    return value


@dataclass(frozen=True)
class EvaluationConfig(RunConfig):
    """Methods and metrics over data sets, for one model.

    Attributes:
        model: a name or folder that :func:`captum_clip.load_clip` knows.
        output: a folder or URL of its own for the results.
        data: data sets, as :func:`captum_clip.evaluation.data.open_data` reads them; none means
            those of the demo that the tasks need.
        methods: names of :func:`captum_clip.evaluation.methods_for`, with options, "mamooler", or
            "all" of them; none means the registered ones that fit the tower. Drawn maps and
            predictors without a map are measured beside them.
        maps: folders of maps made elsewhere, each a method.
        reference: the method that the others are compared with; by default the report's.
        tasks: names of tasks; none means all that the data support but "pairs".
        against: explain regions by their text, or by another image of the same thing; then only
            "localization" and "signs" are measured.
        images: at most so many of each data set; None is 100, of copies 300.
        slow_images: images of each data set, drawn from all of them, for what takes long:
            sensitivity, sanity, and all of Captum's own methods.
        draws: random masks per image for faithfulness and infidelity.
        fills: what takes the place of removed pixels: "mean" color (normalized zero), "black",
            "blur".
        template: text of a class with "{}" for its name, for data that have classes by name.
        void: "out" leaves out the pixels that Pascal VOC marks as void, which is the default;
            "background" counts them as outside of every region.
        resamples: of the bootstrap.

    The settings of :class:`RunConfig` are keywords too.

    Raises:
        InputError: something that cannot be measured.
    """

    model: str = field(metadata=_NAME)
    output: str = field(metadata=_PLACE)
    data: tuple[str, ...] = field(default=(), metadata=_NAMES)
    methods: tuple[str, ...] = field(default=(), metadata=_NAMES | _DECIDES)
    maps: tuple[str, ...] = field(default=(), metadata=_NAMES)
    reference: str | None = field(default=None, metadata=_TEXT)
    tasks: tuple[str, ...] = field(default=(), metadata=_NAMES | _DECIDES)
    against: Against = field(default="text", metadata={"choices": get_args(Against)} | _DECIDES)
    images: int | None = field(default=None, metadata=_COUNT)
    slow_images: int = field(default=16, metadata=_COUNT)
    draws: int = field(default=32, metadata=_COUNT)
    fills: tuple[Fill, ...] = field(default=("mean",), metadata=_FILLS)
    template: str | None = field(default=None, metadata=_TEXT | _DECIDES)
    void: str | None = field(default=None, metadata=_TEXT | _DECIDES)
    resamples: int = field(default=2000, metadata={"least": 1})

    @public("evaluate")
    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fills:
            check_choice("none", FILLS, name="fills")


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
        centered: for each emotion also the emotion minus the mean of all of them.
        limit: study a sample of this many images; None is all. Without it the seed decides nothing.
        value_entropy: measure this entropy too, which takes longer than all the rest.

    The settings of :class:`RunConfig` are keywords too.

    Raises:
        InputError: something that cannot be studied.
    """

    images: str | Path = field(metadata=_PLACE)
    output: str | Path = field(metadata=_PLACE)
    texts: Sequence[str] = field(default=(), metadata=_TEXTS)
    models: Sequence[str] = field(default=("ViT-B/32",), metadata=_NAMES)
    methods: Sequence[str] = field(default=(), metadata={"several": "distinct"})
    emotions: Sequence[str | Path] = field(default=(), metadata={"several": "any"} | _NAME)
    centered: bool = field(default=False, metadata={"flag": True} | _DECIDES)
    limit: int | None = field(default=None, metadata=_COUNT)
    value_entropy: bool = field(default=False, metadata={"flag": True} | _DECIDES)
    batch_size: int = field(default=16, kw_only=True, metadata=_BATCH)
    chunk_size: int = field(default=128, kw_only=True, metadata=_COUNT)

    @public("StudyConfig")
    def __post_init__(self) -> None:
        super().__post_init__()
        for method in self.methods:
            check_method(method)
        count, models = len(self.emotions), len(self.models)
        expected = f"a file of emotions for each of {', '.join(self.models)}, in the same order"
        expect(count in (0, models), expected, self.emotions)
        if not models or not (self.texts or count):
            raise InputError("there is nothing to explain; give texts or emotions.")
        if self.centered and not count:
            raise InputError("centered applies to emotions, and none are given.")

    def identity(self) -> dict[str, Any]:
        """All settings that decide the results; of them the seed only where there is a sample."""
        seed = None if self.limit is None else self.seed
        return {**super().identity(), "seed": seed, "threads": self.threads}
