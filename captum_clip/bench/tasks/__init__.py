"""The tasks of an evaluation, by name."""

from typing import Final

from ..batch import Task
from ..data import DataSet
from .effects import EFFECT, IDENTICAL, PAIRS, THIRDS
from .faithfulness import FAITHFULNESS, PERTURBATION, SANITY
from .localization import CAPTION_WORDS, GRID_POINTING, LOCALIZATION, OBJECT_SIGNS, SEGMENTATION

TASKS: Final = {
    "thirds": THIRDS,
    "identical": IDENTICAL,
    "localization": LOCALIZATION,
    "signs": OBJECT_SIGNS,
    "segmentation": SEGMENTATION,
    "effect": EFFECT,
    "words": CAPTION_WORDS,
    "grid": GRID_POINTING,
    "perturbation": PERTURBATION,
    "faithfulness": FAITHFULNESS,
    "sanity": SANITY,
    "pairs": PAIRS,
}
"""All tasks by name, in the order of the tables; one of your own is measured once it is in here."""

__all__ = ["TASKS", "Task", "tasks_of"]


def tasks_of(data: DataSet | type[DataSet]) -> tuple[str, ...]:
    """Names of the tasks that fit a data set, which has a kind of truth that they can take."""
    return tuple(name for name, task in TASKS.items() if {*task.truth} & {*data.truth})
