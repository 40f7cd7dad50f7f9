"""``python -m captum_clip`` is ``captum-clip``."""

__all__ = ["main"]

try:
    from .cli import main
except KeyboardInterrupt:  # Ctrl-C while it is imported
    raise SystemExit(130) from None

if __name__ == "__main__":
    raise SystemExit(main())
