"""What computes shards, in whichever process: it loads the model, then measures."""

from __future__ import annotations

from collections.abc import Sequence

from ..checks import error_context
from ..runs import Advance, Arrays, ModelLoader, Save, to_npz
from .batch import Batch
from .method_on_batch import MethodOnBatch
from .model_context import ModelContext
from .plan import Plan, Shard
from .table import table_of, to_arrays
from .tasks import TASKS


class EvaluationWorker:
    """A model with a plan; the last batch stays for the next method.

    Raises:
        InputError: what bears the model's name here is another model.
    """

    def __init__(self, plan: Plan, models: ModelLoader) -> None:
        device = "cuda" if plan.config.gpus else "cpu"
        clip = models.load_same(plan.model, device, plan.fingerprint, "evaluation")
        self._plan = plan
        self._contexts = [ModelContext(clip, data, plan.config) for data in plan.data]
        self._last: tuple[tuple[int, tuple[int, ...]], Batch] | None = None

    def compute(self, units: Sequence[Shard], save: Save, advance: Advance) -> None:
        """Compute shards in their order."""
        for shard in units:
            save(shard.name, to_npz(self._measure(shard), shard))
            advance(shard.size)

    def _measure(self, shard: Shard) -> Arrays:
        batch, method = self._batch(shard), self._plan.methods[shard.method]
        maps = MethodOnBatch(batch, method)
        with error_context(f"{method.name} on {batch.context.data.name}"):
            rows = {
                name: list(TASKS[name].measure(maps) if batch.views else ())
                for name in self._plan.tasks[shard.data]
            }
        return to_arrays(table_of(method.name, rows), [*batch.skipped, *maps.skipped])

    def _batch(self, shard: Shard) -> Batch:
        key = (shard.data, shard.numbers)
        if self._last is None or self._last[0] != key:
            self._last = key, Batch(self._contexts[shard.data], shard.numbers)
        return self._last[1]
