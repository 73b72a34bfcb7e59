"""The one exception of this package."""


class MeasurementError(RuntimeError):
    """A figure cannot be had exactly; it goes into the record as this error, never as a blank or a zero."""
