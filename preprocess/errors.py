"""The one exception for bad input; its message names the file and sample and what to do."""


class SourceError(ValueError):
    """Something in the nuScenes folder cannot be used."""


class SampleError(SourceError):
    """What cannot be used is needed by some samples alone, which --on-error skip leaves out."""
