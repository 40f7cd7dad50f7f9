# The public names, for type checkers and for `__init__.py`, which imports each when it is used.
from ..look import Look as Look
from .charts import matches as matches
from .charts import sentences as sentences
from .colors import HEAT as HEAT
from .colors import NEGATIVE as NEGATIVE
from .colors import POSITIVE as POSITIVE
from .grid import save_figure as save_figure
from .overlays import average as average
from .overlays import contact_sheet as contact_sheet
from .overlays import overlay as overlay
from .overlays import signs as signs
