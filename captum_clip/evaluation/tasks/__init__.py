"""What an evaluation measures, one task per file."""

from typing import Final

from .base import Task
from .effect import Effect
from .faithfulness import Faithfulness
from .fixation import Fixation
from .fixlip import Fixlip
from .grid import GridPointing
from .localization import Localization
from .perturbation import Perturbation
from .points import Points
from .sanity import Sanity
from .signs import Signs
from .words import Words

_ALL: Final[tuple[Task, ...]] = (
    *(Localization(), Points(), Signs(), Effect(), Words(), GridPointing(), Perturbation()),
    *(Faithfulness(), Fixlip(), Sanity(), Fixation()),
)
TASKS: Final[dict[str, Task]] = {task.name: task for task in _ALL}
"""All tasks by name, in the order of the tables."""

__all__ = ["TASKS", "Task"]
