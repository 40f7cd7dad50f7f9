"""The program ``captum-clip``, which is also ``python -m captum_clip``."""

import gc
import signal
import sys

__all__ = ["main"]

try:
    from . import cli
except KeyboardInterrupt:
    # Ctrl-C may come during the import, before anything else can handle it.
    raise SystemExit(130) from None


def main() -> int:
    """Run the command of this process; SIGTERM ends it with 143, and leaves no half-written file.

    Returns:
        The exit code.
    """
    # The imported modules stay, and it takes the collector a second to go through them repeatedly.
    gc.set_threshold(20_000)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return cli.main()


if __name__ == "__main__":
    raise SystemExit(main())
