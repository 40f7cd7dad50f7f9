"""``captum-clip evaluate`` that knows the data sets of the planted shortcut as well.

python docs/experiments/evaluate_shortcut.py --model docs/experiments/shortcut/model \
        --data shortcut --task localization --images 150 --slow-images 50 -o shortcut-tag
"""

from __future__ import annotations

import sys

from captum_clip.bench.data import DATA_SETS
from captum_clip.cli import main
from shortcut.data_sets import SETS

DATA_SETS.update({kind.name: kind for kind in SETS})  # here, so that workers know them as well

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
