"""What an evaluation measures, one kind of task per file."""

from typing import Final

from ..method_on_batch import Task
from .faithfulness import Faithfulness, Fixlip, Sanity
from .localization import Fixation, Localization
from .mosaics import GridPointing, Words
from .perturbation import Perturbation
from .signs import Effect, Signs

_ALL: Final[tuple[Task, ...]] = (
    *(Localization(), Signs(), Effect(), Words(), GridPointing(), Perturbation()),
    *(Faithfulness(), Fixlip(), Sanity(), Fixation()),
)
TASKS: Final[dict[str, Task]] = {task.name: task for task in _ALL}
"""All tasks by name, in the order of the tables."""

__all__ = ["TASKS", "Task"]
