"""What goes wrong with shards and with the stores that hold them; the messages name the file and the remedy."""


class ShardError(ValueError):
    """A shard, index, manifest or sample that cannot be used."""


class StoreError(ShardError):
    """A store, or something in one, that cannot be reached, read or written."""


class Missing(StoreError):
    """There is nothing of this name."""


class CannotList(StoreError):
    """The store does not say what it holds: plain http servers, buckets without the right to list."""


class Refused(StoreError):
    """The store does not let us. S3 says so, too, of what is not there, to whoever may not list."""
