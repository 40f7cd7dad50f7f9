"""The tasks of an evaluation, by name."""

from typing import Final

from ..batch import Task
from .faithfulness_tasks import EFFECT, FAITHFULNESS, FIXLIP, PERTURBATION, SANITY
from .localization_tasks import FIXATION, GRID_POINTING, LOCALIZATION, SIGNS, WORDS
from .pairs_task import PAIRS
from .segmentation_task import SEGMENTATION

TASKS: Final = {
    "localization": LOCALIZATION,
    "signs": SIGNS,
    "segmentation": SEGMENTATION,
    "effect": EFFECT,
    "words": WORDS,
    "grid": GRID_POINTING,
    "perturbation": PERTURBATION,
    "faithfulness": FAITHFULNESS,
    "fixlip": FIXLIP,
    "sanity": SANITY,
    "fixation": FIXATION,
    "pairs": PAIRS,
}
"""All tasks by name, in the order of the tables; one of your own is measured once it is in here."""

__all__ = ["TASKS", "Task"]
