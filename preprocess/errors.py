"""The one exception for bad input; its message names the file and sample and what to do."""


class SourceError(ValueError):
    """Something in the nuScenes folder cannot be used."""
