"""What was asked for and cannot be done; the messages are one line, and name the file or the option and the remedy."""


class InputError(ValueError):
    """What a user gave cannot be used. Raised on purpose, by this project alone: any other ValueError is a fault."""


class ShardError(InputError):
    """A shard, index, manifest or sample that cannot be used."""


class StoreError(ShardError):
    """A store, or something in one, that cannot be reached, read or written."""


class Missing(StoreError):
    """There is nothing of this name."""


class CannotList(StoreError):
    """The store does not say what it holds: plain http servers, buckets without the right to list."""


class Refused(StoreError):
    """The store does not let us. S3 says so, too, of what is not there, to whoever may not list."""
