# The public names, for type checkers and for `__init__.py`, which imports each when it is used.
from .adapter import ClipAdapter as ClipAdapter
from .adapter import Family as Family
from .adapter import ImageLike as ImageLike
from .attentions import Attention as Attention
from .attentions import AttentionLayer as AttentionLayer
from .attentions import PoolingHead as PoolingHead
from .families import find_tower as find_tower
from .families import register_family as register_family
from .families import tower_of as tower_of
from .identity import differing_parts as differing_parts
from .loading import load_clip as load_clip
from .published import AvailableModel as AvailableModel
from .published import available as available
from .towers import ResNetTower as ResNetTower
from .towers import TextTower as TextTower
from .towers import Tower as Tower
from .towers import ViTTower as ViTTower
