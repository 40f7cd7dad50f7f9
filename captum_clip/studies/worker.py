"""How the shards of a study are computed, in whichever process: images read ahead, then maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby, islice

from ..runs import Advance, ModelLoader, Save
from ..runs.workers import iterate_workers
from .batch_explainer import BatchExplainer, Job
from .image_loader import Batch, ImageLoader
from .plan import Plan
from .shards import Shard, join, to_bytes


class StudyWorker:
    """Computes shards; the last model stays for the next one."""

    def __init__(self, plan: Plan, models: ModelLoader) -> None:
        self._plan = plan
        self._models = models

    def compute(self, units: Sequence[Shard], save: Save, advance: Advance) -> None:
        """Compute shards job by job, each batch in its order."""
        for job, shards in groupby(units, key=lambda shard: shard.job):
            # in a function, at whose end nothing holds the model: the next one is loaded then
            self._compute(self._plan.jobs[job], list(shards), save, advance)

    def _compute(self, job: Job, shards: Sequence[Shard], save: Save, advance: Advance) -> None:
        plan, engine = self._plan, self._plan.config.choose_engine()
        clip = self._models.load_same(job.model, engine.device, job.fingerprint, "study")
        explainer = BatchExplainer(job, clip)
        names, size = plan.files.names, plan.config.batch_size
        loader = ImageLoader(plan.images, names, clip.processor, job.size, size)
        batches = [batch for shard in shards for batch in shard.batches]
        decoders = engine.processes if engine.name == "local" else None
        with load_batches(loader, batches, decoders) as loaded:
            for shard in shards:
                parts = []
                for batch in islice(loaded, len(shard.batches)):
                    parts.append(explainer.explain(batch))
                    advance(len(batch.indices))
                save(shard.name, to_bytes(join(parts), shard))


def load_batches(
    loader: ImageLoader, batches: Sequence[Sequence[int]], decoders: int | None
) -> AbstractContextManager[Iterator[Batch]]:
    """Batches in their order, decoded ahead in so many processes; None is a thread, one ahead."""
    if decoders is None:
        return nullcontext(_one_ahead(loader, batches))
    advice = (
        "take fewer workers or a smaller batch, and start the same command again: what is done is "
        "kept"
    )
    return iterate_workers(loader.load, batches, decoders, advice=advice)


def _one_ahead(loader: ImageLoader, batches: Sequence[Sequence[int]]) -> Iterator[Batch]:
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(loader.load, batches[0])
        for indices in batches[1:]:
            batch, coming = coming.result(), pool.submit(loader.load, indices)
            yield batch
        yield coming.result()
