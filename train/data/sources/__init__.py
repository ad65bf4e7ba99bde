"""Sources: bytes of these members of keyframe n, from local files, remote stores or commands.

A source has shards (a ShardSet), keys, tokens, scene_of, whole_scene_of, scene_names, facts, rig, bytes_read, samples_sha256,
cams, identity (see KeyframeTable), is_stream, fetches_ahead (whether begin makes it read what may not be wanted) and

    order(windows, seed, epoch, shuffle)   window numbers of an epoch, the same from every source that is no stream
    begin(frames, members=None)            an epoch starts: `frames` come in this order; with an iterable of what will be
                                           read of each (and nothing else) they may be fetched ahead, in threads; without,
                                           there is none
    read(number, members)                  dict from member to bytes-like; from many threads; waits; raises ShardError
    interrupt()  close()                   waiting reads raise; everything is given back, a later begin starts anew

A member is named by a string, or by (layer, name), the shard itself being the layer "".
"""

from dataclasses import dataclass, field, replace

from common import addresses
from common.errors import InputError
from common.shard_set import find_shards
from common.stores.retries import Retry
from train.data.sources.cache import Cache
from train.data.sources.local import LocalSource
from train.data.sources.ranges import RangeSource
from train.data.sources.stream import PipeSource
from train.processes.ranks import say

__all__ = ["READERS", "LocalSource", "PipeSource", "RangeSource", "SourceConfig", "open_source"]

READERS = ("auto", "indexed", "stream")


@dataclass(frozen=True)
class SourceConfig:
    """How shards are read.

    Attributes:
        reader: indexed (local files and stores that answer range requests), stream (from front to back), or auto: by
            what the shards are.
        verify_reads: compare the checksum of every member.
        cache_dir, cache_gb: where a node keeps what was read by range requests, and at most how much; None keeps nothing.
        store_options: of the stores, see common.stores.open_store; never printed.
        requests: in flight at once where the members are known ahead.
        hold_bytes: remote tars that have no more bytes together are fetched whole, once, and held in memory.
        attempts, pause_s, stall_s, retry_minutes: see common.stores.retries.Retry.
    """

    reader: str = "auto"
    verify_reads: bool = False
    cache_dir: str | None = None
    cache_gb: float = 100.0
    store_options: dict | None = field(default=None, repr=False)
    requests: int = 16
    hold_bytes: int = 0
    attempts: int = 5
    pause_s: float = 0.5
    stall_s: float = 30.0
    retry_minutes: float = 15.0

    def __post_init__(self):
        if self.reader not in READERS:
            raise InputError(f"reader {self.reader!r}; it is one of {', '.join(READERS)}")
        if self.cache_gb < 0 or self.requests < 0:
            raise InputError(f"cache_gb {self.cache_gb} and requests {self.requests} must not be negative")
        if self.store_options is not None and not isinstance(self.store_options, dict):
            raise InputError(
                f"store_options is a {type(self.store_options).__name__}; it is a mapping, such as {{'endpoint': 'https://…'}}"
            )

    @property
    def retry(self):
        """Retry of remote reads."""
        return Retry(self.attempts, self.pause_s, self.stall_s, self.retry_minutes)


def open_source(patterns, config=None, split=None):
    """The source of the shards that patterns name, or of a ShardSet.

    Args:
        patterns, split: see common.shard_set.find_shards. config: SourceConfig; without it a ShardSet keeps its own Retry.
    Raises:
        ValueError (ShardError for a shard or store): what is wrong and the remedy.
    """
    given, config = config, config or SourceConfig()
    shards = find_shards(patterns, split, config.store_options, config.retry)
    if shards is not patterns:
        for note in shards.notes:
            say(f"note: {note}")
    elif given is not None:
        shards = replace(shards, retry=config.retry)
    commands = [tar for tar in shards if addresses.is_pipe(tar)]
    if config.reader == "indexed" and commands:
        raise InputError(f"{commands[0]} can only be streamed; give reader stream or auto")
    if commands or config.reader == "stream":
        if config.cache_dir:
            raise InputError("cache_dir keeps what range requests fetch; it does nothing for pipe: or reader stream")
        return PipeSource(shards, config.verify_reads)
    if not any(addresses.is_remote(tar) for tar in shards):
        return LocalSource(shards, config.verify_reads)
    cache = Cache(config.cache_dir, int(config.cache_gb * 1e9)) if config.cache_dir else None
    return RangeSource(shards, config.verify_reads, cache, config.requests, config.hold_bytes)
