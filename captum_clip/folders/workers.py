"""How work over many images is set up: settings, a loader of models, threads, processes of Ray."""

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
from ..models.names import named_model, split_checkpoint
from .storage import Content, readable_images

RESUME: Final = "what is done is kept, start the same command again."
Progress = Callable[[int, int, str], None]
"""Called with how many images were done, how many there are, and the label of the unit done last.

An image counts once a method; the label is empty at the first call."""
EngineName = Literal["local", "ray"]


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
    folder = checks.expand(model)
    return folder.resolve() if folder.is_dir() else None


def setting(default: Any, **rules: Any) -> Any:
    """A field of settings with the rules of :class:`RunConfig`."""
    return field(default=default, metadata=rules)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How work over many images is computed: an evaluation, a study, an index.

    The annotation of a field says what is checked and how it is kept: one value where several may
    be given becomes a tuple. The metadata say whether it `decides` the results, the `least` (1) and
    the `most` of a whole number, how a `text` is expected, and whether several may `repeat`.

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
        kinds = get_type_hints(type(self))
        for entry in fields(self):
            name, value = entry.name, getattr(self, entry.name)
            if value is not None or entry.default is not None:
                value = _coerced(name, value, kinds[name], entry.metadata)
                object.__setattr__(self, name, value)
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
        """All settings that decide the results, as JSON; neither folders nor the engine do."""
        deciding = [setting.name for setting in fields(self) if setting.metadata.get("decides")]
        values = {name: getattr(self, name) for name in deciding}
        parts = {name: values[name] for name in ("processor", "tokenizer")}
        values |= {name: label_of(value) for name, value in parts.items() if value is not None}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def _coerced(name: str, value: Any, kind: Any, rules: Mapping[str, Any]) -> Any:
    """The value of a setting as it is kept; InputError where annotation or rules forbid it."""
    if isinstance(kind, UnionType):  # with None, which is a default, or of a text with a path
        kind = get_args(kind)[0]
    if get_origin(kind) in (tuple, Sequence):
        values = [value] if isinstance(value, str) or not isinstance(value, Sequence) else value
        listed = [_coerced(name, each, get_args(kind)[0], rules) for each in values]
        repeated = None if rules.get("repeat") else checks.find_repeated(listed)
        if repeated is not None:
            raise InputError(f"{str(repeated)!r} is given twice in {name}; once will do.")
        return tuple(listed)
    if get_origin(kind) is Literal:
        checks.check_choice(value, get_args(kind), name=name)
    elif kind is bool:
        checks.check_flag(name, value)
    elif kind is int:
        checks.check_integer(name, value, least=rules.get("least", 1), most=rules.get("most"))
    else:
        is_text = isinstance(value, (str, Path)) and str(value).strip()
        checks.expect(is_text, f"{name} {rules.get('text', 'as a text')}", value)
        return str(value)
    return value


@dataclass
class ModelLoader:
    """Loads models by name, and keeps the last one for as long as it is asked for again.

    Sent to another process it loads there for itself. Where `processor` names another model, the
    models get its image processor in place of their own, and so for the tokenizer.
    """

    processor: str | None = None
    tokenizer: str | None = None
    image_size: int | None = None
    _loaded: tuple[tuple[str, str], ClipAdapter] | None = field(default=None, init=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_loaded": None}

    def load(self, model: str, device: str = "cpu", identity: Content | None = None) -> ClipAdapter:
        """Load a model, which must have the identity of the run's beginning where one is given."""
        if self._loaded is None or self._loaded[0] != (model, device):
            self._loaded = None  # lets go of the old one first
            parts = load_parts(self.processor, self.tokenizer)
            clip = load_clip(model, **parts, device=device, image_size=self.image_size)
            if identity and (changed := differing_parts(identity, clip.identity())):
                raise InputError(
                    f"{model} has other {' and '.join(changed)} than when the run began; give all "
                    "machines the same files, and do not change them during the run."
                )
            self._loaded = ((model, device), clip)
        return self._loaded[1]


def loader_of(config: RunConfig) -> ModelLoader:
    """What loads the models of a run, with the parts of others under their full names."""
    processor, tokenizer = (n and full_name(n) for n in (config.processor, config.tokenizer))
    return ModelLoader(processor, tokenizer, config.image_size)


def preprocess_alone(processor: Any, size: tuple[int, int], image: Image.Image) -> Tensor:
    """An image as the model takes it, (3, H, W), float32; InputError where its size is another."""
    # Some processors pad to the largest image of a batch.
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
        indices: (N,), of these in what was given.
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

    In which batch an image is computed changes its features by rounding.

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
    listed, skipped = [Path(os.path.expanduser(path)) for path in paths], dict[Path, str]()
    bar = "image features" * progress
    images = readable_images(listed, skipped, workers=workers, progress=bar)
    embeddings = list[npt.NDArray[np.float32]]()
    with torch.no_grad():
        while batch := list(islice(images, batch_size)):
            encoded = clip.encode_image(clip.preprocess(batch))  # (B, D)
            embeddings.append(encoded.float().cpu().numpy())
    indices = np.flatnonzero([path not in skipped for path in listed])
    kept = tuple(listed[index] for index in indices)
    return ImageFeatures(np.concatenate(embeddings), kept, indices, skipped)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with so many threads, then with as many as before."""
    # Sums are split among threads, so their number decides the last digits.
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def map_on_ray(config: RunConfig, work: Callable[[int], Any], count: int) -> Iterator[Any]:
    """Results of `work` for each number below a count, in any order, from Ray's processes."""
    share = math.ceil(config.processes / config.gpus) if config.gpus else 0  # workers a GPU
    with _connected(config) as ray:
        try:
            # A block for each unit: a worker that dies loses the whole block.
            rows = ray.data.from_items(
                [{"unit": number} for number in range(count)], override_num_blocks=count
            ).map_batches(
                UnitWorker,
                fn_constructor_args=(work, config.thread_count, checks.max_pixels.get()),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(config.processes, count)),
                num_cpus=config.thread_count,
                num_gpus=1 / share if share else 0,
            )
            for row in rows.iter_rows():
                if row["error"]:
                    raise InputError(f"{row['error'].rstrip('.')}; {RESUME}")
                yield pickle.loads(row["result"])
        except ray.exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"Ray could not go on ({reason}); {RESUME}") from error


class UnitWorker:
    """An actor of Ray Data: works at one number at a time."""

    def __init__(
        self, work: Callable[[int], Any], thread_count: int, most: int | None = None
    ) -> None:
        self._work, self._threads, self._most = work, thread_count, most

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
        """The result for the number of a row, or the reason why there is none."""
        result, reason = None, ""
        try:
            with threads(self._threads), checks.limit_pixels(self._most):
                result = self._work(int(rows["unit"][0]))
        # An error travels as text: raised here, Ray would start the worker anew.
        except CaptumClipError as error:
            reason = error.reason
        # As bytes, every block has one schema, whatever the result is.
        return {"error": [reason], "result": [pickle.dumps(result)]}


@contextmanager
def _connected(config: RunConfig) -> Iterator[Any]:
    """Ray, quiet: the caller's, a cluster that there is, or one that is started for a while."""
    quiet = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_USAGE_STATS_ENABLED": "0"}
    quiet |= {"RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    with ExitStack() as undo:
        for name in quiet.keys() - os.environ.keys():  # what the user has set stays
            os.environ[name] = quiet[name]
            undo.callback(os.environ.pop, name)
        undo.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=r"ray\.")
        warnings.filterwarnings("ignore", "lancedb fork")  # what Ray starts does not use it
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
    """Nothing on stderr, where Ray's C++ announces the log level that it was given."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _join_or_start(ray: Any, config: RunConfig) -> None:
    options = {"logging_level": logging.ERROR, "log_to_driver": False}
    cpus = max(os.cpu_count() or 1, config.processes * config.thread_count)
    try:
        try:
            ray.init(num_cpus=cpus, include_dashboard=False, **options)
        except ValueError:  # Ray: a cluster that is there already has its CPUs
            ray.init(**options)
    except Exception as error:  # a start that takes too long is no other class of Ray's
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(f"Ray cannot be started or reached ({reason}); {RESUME}") from error


def _check_room(ray: Any, config: RunConfig) -> None:
    """A worker that no machine has room for would be waited for without end."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(machine.get("GPU", 0) for machine in machines)
    fitting = [machine for machine in machines if machine.get("GPU", 0) >= min(config.gpus, 1)]
    cpus = max((machine.get("CPU", 0) for machine in fitting), default=0)
    if gpus < config.gpus or cpus < config.thread_count:
        raise InputError(
            f"no machine of the Ray cluster can run a worker with "
            f"{argument('threads', config.thread_count)} and its share of "
            f"{argument('gpus', config.gpus)}. The cluster has {gpus:.0f} GPUs, and at most "
            f"{cpus:.0f} CPUs on one machine; give fewer."
        )
