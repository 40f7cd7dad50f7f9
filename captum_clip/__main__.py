"""``python -m captum_clip`` is ``captum-clip``."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
