"""Errors of captum_clip; each names what was given, what was expected and what to do."""


class CaptumClipError(Exception):
    """Base of every error that captum_clip raises itself."""


class UnsupportedModelError(CaptumClipError, TypeError):
    """A model, a tower or a combination of method and tower that is not supported."""


class TargetError(CaptumClipError, ValueError):
    """A target that means nothing: an empty text, an unknown word, an index out of range."""


class InputError(CaptumClipError, ValueError):
    """An image, a file, an option or a state of the model that cannot be worked with."""


class CaptureError(CaptumClipError, RuntimeError):
    """A forward function that did not run the tower in the way a recording needs."""
