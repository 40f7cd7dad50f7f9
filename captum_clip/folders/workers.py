"""The setup of work over many images: settings, a loader of models, threads, processes of Ray."""

import logging
import math
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from .. import checks
from ..errors import CaptumClipError, InputError, argument, public
from ..models import ClipAdapter, differing_parts, load_clip
from ..models.images import process
from ..models.loading import load_parts
from ..models.names import split_checkpoint
from ..models.published import named_model
from .storage import Content, readable_images

RESUME: Final = "what is done is kept, start the same command again."
Progress = Callable[[int, int, str], None]
"""Called with the number of images done, the number of all, and the label of the last unit done.

An image counts once for each method; the label is empty at the first call."""
EngineName = Literal["local", "ray"]


def label_of(model: str) -> str:
    """Return the label of a model in results: its name, or the last part of a folder or file."""
    checkpoint = split_checkpoint(model)
    if checkpoint:
        architecture, file = checkpoint
        return f"{label_of(architecture)}:{file.name}"
    folder = _folder_of(model)
    return model if folder is None else folder.name


def full_name(model: str) -> str:
    """Return a model's name with whole paths, which do not depend on the working directory."""
    checkpoint = split_checkpoint(model)
    if checkpoint:
        architecture, file = checkpoint
        return f"{full_name(architecture)}:{file.resolve()}"
    folder = _folder_of(model)
    return model if folder is None else str(folder)


def _folder_of(model: str) -> Path | None:
    """Return the whole path of a model that is a folder, or None for any other name."""
    # A folder of the working directory may bear the name of a published model, which goes first.
    if model.startswith("demo/") or named_model(model) is not None:
        return None
    folder = checks.expand(model)
    return folder.resolve() if folder.is_dir() else None


def setting(default: Any, **rules: Any) -> Any:
    """Make a field of settings with the rules of :class:`RunConfig`."""
    return field(default=default, metadata=rules)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of work over many images: an evaluation, a study, an index.

    The annotation of a field decides how its value is checked and stored; a field for several
    values turns a single one into a tuple. The metadata say whether a field `decides` the results,
    the `least` (1) and the `most` of a whole number, which `text` a message expects, and whether
    values may `repeat`.

    Attributes:
        batch_size: images per forward pass.
        chunk_size: images per unit of work; a stop loses one unit per worker.
        seed: seed of every draw.
        engine: "local", or "ray" for several processes or machines.
        workers: processes that compute (ray; None is one for each GPU, or one), or batches of a
            study's images that are read ahead at a time (local; 0 is none, None is two).
        gpus: 0 computes on the CPU; 1 on a GPU; with Ray the number that the workers share.
        threads: threads of each process that computes; None is PyTorch's own number. Results are
            the same to the bit only with the same number.
        processor: name or folder of the model whose image processor all models get, for
            checkpoints that were saved without one.
        tokenizer: the same for the tokenizer.
        image_size: image size of the models, as in :func:`captum_clip.load_clip`: larger images
            give finer maps.
    """

    batch_size: int = setting(32, most=2**16, decides=True)
    chunk_size: int = setting(32, decides=True)
    seed: int = setting(0, least=0, most=2**31 - 1, decides=True)
    engine: EngineName = "local"
    workers: int | None = setting(None, least=0)
    gpus: int = setting(0, least=0)
    threads: int | None = setting(None, most=2**12)
    processor: str | None = setting(None, decides=True)
    tokenizer: str | None = setting(None, decides=True)
    image_size: int | None = setting(None, decides=True)

    def __post_init__(self) -> None:
        annotations = get_type_hints(type(self))
        for entry in fields(self):
            name = entry.name
            value = getattr(self, name)
            # None is a value only of a setting that has it as its default, and passes unchecked.
            is_unset = value is None and entry.default is None
            if not is_unset:
                checked = _checked_value(name, value, annotations[name], entry.metadata)
                # The class is frozen, so its own assignment would raise.
                object.__setattr__(self, name, checked)
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
        if self.workers is not None:
            return self.workers
        return 2 if self.engine == "local" else max(1, self.gpus)

    @property
    def thread_count(self) -> int:
        """Threads, with PyTorch's own number in place of None."""
        return self.threads or torch.get_num_threads()

    @property
    def device(self) -> str:
        """The device of the models."""
        return "cuda" if self.gpus else "cpu"

    def identity(self) -> dict[str, Any]:
        """Return all settings that decide the results, as JSON; folders and the engine do not."""
        values = {}
        for entry in fields(self):
            if not entry.metadata.get("decides"):
                continue
            value = getattr(self, entry.name)
            if entry.name in ("processor", "tokenizer") and value is not None:
                value = label_of(value)
            elif isinstance(value, tuple):
                value = list(value)
            values[entry.name] = value
        return values


def _checked_value(name: str, value: Any, annotation: Any, rules: Mapping[str, Any]) -> Any:
    """Return the value of a setting as it is stored.

    Raises:
        InputError: the annotation or the rules forbid it.
    """
    # The first type of a union decides: the others are None, a default, or a path beside a text.
    if isinstance(annotation, UnionType):
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (tuple, Sequence):
        is_single = isinstance(value, str) or not isinstance(value, Sequence)
        values = [value] if is_single else value
        item_annotation = get_args(annotation)[0]
        checked = [_checked_value(name, item, item_annotation, rules) for item in values]
        repeated = None if rules.get("repeat") else checks.find_repeated(checked)
        if repeated is not None:
            raise InputError(f"{str(repeated)!r} is given twice in {name}; once will do.")
        return tuple(checked)
    if get_origin(annotation) is Literal:
        checks.check_choice(value, get_args(annotation), name=name)
    elif annotation is bool:
        checks.check_flag(name, value)
    elif annotation is int:
        checks.check_integer(name, value, least=rules.get("least", 1), most=rules.get("most"))
    else:
        is_text = isinstance(value, (str, Path)) and str(value).strip()
        checks.expect(is_text, f"{name} {rules.get('text', 'as a text')}", value)
        return str(value)
    return value


@dataclass
class ModelLoader:
    """Loads models by name, and keeps the last one until another is asked for.

    A loader that is sent to another process loads its models there. If `processor` names another
    model, all models get its image processor in place of their own; so it is with `tokenizer`.
    """

    processor: str | None = None
    tokenizer: str | None = None
    image_size: int | None = None
    _loaded: tuple[tuple[str, str], ClipAdapter] | None = field(default=None, init=False)

    def __getstate__(self) -> dict[str, Any]:
        # A model is large and may not be picklable, so only its name is sent.
        return {**vars(self), "_loaded": None}

    def load(self, model: str, device: str = "cpu", identity: Content | None = None) -> ClipAdapter:
        """Load a model, and check it against its identity at the beginning of the run, if given."""
        if self._loaded is not None and self._loaded[0] == (model, device):
            return self._loaded[1]
        # The old model is released first, so that memory never has to hold two.
        self._loaded = None
        parts = load_parts(self.processor, self.tokenizer)
        clip = load_clip(model, **parts, device=device, image_size=self.image_size)
        changed = differing_parts(identity, clip.identity()) if identity else []
        if changed:
            raise InputError(
                f"{model} has other {' and '.join(changed)} than when the run began; give all "
                "machines the same files, and do not change them during the run."
            )
        self._loaded = ((model, device), clip)
        return clip


def loader_of(config: RunConfig) -> ModelLoader:
    """Make the loader of a run's models, with full names of the processor and the tokenizer."""
    processor = config.processor and full_name(config.processor)
    tokenizer = config.tokenizer and full_name(config.tokenizer)
    return ModelLoader(processor, tokenizer, config.image_size)


def preprocess_alone(processor: Any, size: tuple[int, int], image: Image.Image) -> Tensor:
    """Preprocess one image for a model, (3, H, W), float32.

    Raises:
        InputError: the result has another size.
    """
    # Some processors pad to the largest image of a batch, so each image is a batch of its own.
    pixels = process(processor, [image])[0]
    if pixels.shape[-2:] != size:
        raise InputError(
            f"it becomes {tuple(pixels.shape)} and not (3, {size[0]}, {size[1]}); a folder "
            "needs a processor that makes images of one size"
        )
    return pixels


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Features of those files that could be read.

    Attributes:
        embeddings: (N, D), L2-normalized, float32.
        paths: of the N images, in the order they were given.
        indices: (N,), their positions among the given files.
        skipped: file -> why it could not be read.
    """

    embeddings: npt.NDArray[np.float32]
    paths: tuple[Path, ...]
    indices: npt.NDArray[np.int64]
    skipped: dict[Path, str]


@public("image_features")
def image_features(
    clip: ClipAdapter,
    paths: Sequence[str | Path],
    *,
    batch_size: int = 16,
    workers: int = 0,
    progress: bool = False,
) -> ImageFeatures:
    """L2-normalized image features of files; a file that cannot be read is left out, with a reason.

    The features of an image differ by rounding with the batch in which it is computed.

    Args:
        clip: the adapter.
        paths: N image files.
        batch_size: images in a forward.
        workers: images read ahead at a time; 0 reads each when it is due.
        progress: show a bar.

    Raises:
        InputError: an option out of range, a model without a processor, or no image that can be
            read.
    """
    checks.check_integer("batch_size", batch_size)
    checks.check_integer("workers", workers, least=0)
    files = [Path(os.path.expanduser(path)) for path in paths]
    skipped: dict[Path, str] = {}
    bar = "image features" if progress else ""
    images = readable_images(files, skipped, workers=workers, progress=bar)
    embeddings: list[npt.NDArray[np.float32]] = []
    with torch.no_grad():
        while batch := list(islice(images, batch_size)):
            encoded = clip.encode_image(clip.preprocess(batch))  # (B, D)
            embeddings.append(encoded.float().cpu().numpy())
    # Reading the images fills `skipped`, which is complete only after the last one.
    indices = np.flatnonzero([path not in skipped for path in files])
    read_files = tuple(files[index] for index in indices)
    return ImageFeatures(np.concatenate(embeddings), read_files, indices, skipped)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with `count` threads, and restore their number afterwards."""
    # Sums are split among threads, so the number of threads decides the last digits of results.
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def map_on_ray(config: RunConfig, work: Callable[[int], Any], count: int) -> Iterator[Any]:
    """Yield the results of `work` for each number below a count, in any order, from Ray."""
    # The workers share the GPUs evenly, each within one GPU.
    gpu_share = 0.0
    if config.gpus:
        workers_per_gpu = math.ceil(config.processes / config.gpus)
        gpu_share = 1 / workers_per_gpu
    units = [{"unit": number} for number in range(count)]
    with _connected(config) as ray:
        try:
            # Each unit is a block, since a worker that dies loses its whole block.
            unit_rows = ray.data.from_items(units, override_num_blocks=count)
            rows = unit_rows.map_batches(
                UnitWorker,
                fn_constructor_args=(work, config.thread_count, checks.max_pixels.get()),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(config.processes, count)),
                num_cpus=config.thread_count,
                num_gpus=gpu_share,
            )
            for row in rows.iter_rows():
                if row["error"]:
                    raise InputError(f"{row['error'].rstrip('.')}; {RESUME}")
                yield pickle.loads(row["result"])
        except ray.exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"Ray could not go on ({reason}); {RESUME}") from error


class UnitWorker:
    """An actor of Ray Data that works on one number at a time."""

    def __init__(
        self, work: Callable[[int], Any], thread_count: int, max_pixels: int | None = None
    ) -> None:
        self._work = work
        self._thread_count = thread_count
        self._max_pixels = max_pixels

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
        """Return the result for the number of a row, or the reason why there is none."""
        number = int(rows["unit"][0])
        result = None
        reason = ""
        try:
            with threads(self._thread_count), checks.limit_pixels(self._max_pixels):
                result = self._work(number)
        # An error is passed on as text. If it were raised here, Ray would restart the worker.
        except CaptumClipError as error:
            reason = error.reason
        # Results are bytes, so that all blocks have one schema, whatever the results are.
        return {"error": [reason], "result": [pickle.dumps(result)]}


@contextmanager
def _connected(config: RunConfig) -> Iterator[Any]:
    """Connect to Ray without its output.

    This is the caller's connection, an existing cluster, or one that is started and shut down.
    """
    quiet_variables = {
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    }
    with ExitStack() as undo:
        # A variable that the user has set keeps its value.
        for name in quiet_variables.keys() - os.environ.keys():
            os.environ[name] = quiet_variables[name]
            undo.callback(os.environ.pop, name)
        undo.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=r"ray\.")
        # LanceDB warns that it is not safe to fork, but the processes of Ray do not use it.
        warnings.filterwarnings("ignore", "lancedb fork")
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise InputError(
                f"{argument('engine', 'ray')} needs Ray Data: pip install 'ray[data]', or "
                "leave the engine out to compute on this machine."
            ) from error
        logger = logging.getLogger("ray.data")
        undo.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        if not ray.is_initialized():
            undo.callback(ray.shutdown)
            with _muted():
                _join_or_start(ray, config)
        _check_room(ray, config)
        yield ray


@contextmanager
def _muted() -> Iterator[None]:
    """Mute stderr, where Ray's C++ code announces the log level that it was given."""
    original = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)


def _join_or_start(ray: Any, config: RunConfig) -> None:
    """Join an existing cluster, or start one on this machine; InputError if neither succeeds."""
    options = {"logging_level": logging.ERROR, "log_to_driver": False}
    # Ray starts a worker only if so many CPUs are left, so it is told of as many as all workers ask
    # for, even on a smaller machine.
    cpus = max(os.cpu_count() or 1, config.processes * config.thread_count)
    try:
        try:
            ray.init(num_cpus=cpus, include_dashboard=False, **options)
        # Ray refuses a number of CPUs when it joins an existing cluster.
        except ValueError:
            ray.init(**options)
    # Ray has no narrower class for a start that takes too long.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(f"Ray cannot be started or reached ({reason}); {RESUME}") from error


def _check_room(ray: Any, config: RunConfig) -> None:
    """Raise InputError if no machine has room for a worker, for which Ray would wait forever."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(machine.get("GPU", 0) for machine in machines)
    # All CPUs of a worker, and its share of a GPU if it has one, have to be on the same machine.
    least_gpus = min(config.gpus, 1)
    suitable = [machine for machine in machines if machine.get("GPU", 0) >= least_gpus]
    cpus = max((machine.get("CPU", 0) for machine in suitable), default=0)
    if gpus < config.gpus or cpus < config.thread_count:
        raise InputError(
            f"no machine of the Ray cluster can run a worker with "
            f"{argument('threads', config.thread_count)} and its share of "
            f"{argument('gpus', config.gpus)}. The cluster has {gpus:.0f} GPUs, and at most "
            f"{cpus:.0f} CPUs on one machine; give fewer."
        )
