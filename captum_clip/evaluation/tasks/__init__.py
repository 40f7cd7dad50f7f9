"""What an evaluation measures: tasks by name."""

from typing import Final

from ..batch import Task
from .faithfulness_tasks import Effect, Faithfulness, Fixlip, Sanity
from .localization_tasks import Fixation, Localization, Signs
from .mosaic_tasks import GridPointing, Words
from .perturbation_task import Perturbation

_ALL: Final[tuple[Task, ...]] = (
    *(Localization(), Signs(), Effect(), Words(), GridPointing(), Perturbation()),
    *(Faithfulness(), Fixlip(), Sanity(), Fixation()),
)
TASKS: Final[dict[str, Task]] = {task.name: task for task in _ALL}
"""All tasks by name, in the order of the tables; one of your own is measured once it is in here."""

__all__ = ["TASKS", "Task"]
