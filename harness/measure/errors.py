"""The exception of this package."""


class MeasurementError(RuntimeError):
    """A figure cannot be measured exactly. The record then holds this error, never a blank or a zero."""
