"""A planted shortcut: a model whose nouns a small tag decides, and scenes that show it.

It is also the worked example of a model and of data sets of one's own: see `data_sets.py`.
"""

from pathlib import Path
from typing import Final

MODEL: Final = Path(__file__).with_name("model")
"""The folder of the model, which :func:`captum_clip.load_clip` opens like any other."""
