"""The one exception for bad input; its message names the file and sample and what to do."""


class SourceError(ValueError):
    """Something in the nuScenes folder cannot be used.

    of_samples: whether only some samples need it, which --on-error skip leaves out.
    """

    of_samples = False


def sample_error(text):
    """The SourceError of what only some samples need."""
    error = SourceError(text)
    error.of_samples = True  # an instance's own, so that it comes along from other processes
    return error
