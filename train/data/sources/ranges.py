"""The source of remote shards: range requests for just the members that an experiment needs, in the local order."""

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial

from common import addresses
from common.errors import ShardError, StoreError
from common.shard_set import find_shards, load_indexes, open_stores
from train.data.order import epoch_order
from train.data.sources.table import KeyframeTable, cut, neighbours, span
from train.processes.ranks import say

REQUESTS_A_KEYFRAME = 2  # at most; members that lie side by side take one


class RangeSource(KeyframeTable):
    """Random access to the keyframes of shards in stores that answer range requests.

    Args:
        shards: ShardSet, or what find_shards takes. verify_reads: compare the checksum of every member read.
        cache: Cache of what was read, or None. requests: how many begin() keeps in flight, where it is told the members.
        hold_bytes: tars that have no more bytes together are fetched whole, each in one request, and held in memory.
    Raises:
        ShardError: a missing or damaged index, besides what KeyframeTable raises.
    """

    is_stream, fetches_ahead = False, True

    def __init__(self, shards, verify_reads=False, cache=None, requests=16, hold_bytes=0):
        self.shards = shards = find_shards(shards)
        self._stores = open_stores(shards)
        for store in self._remote_stores():
            store.contact.say = partial(say, once_per="node")
        opened = load_indexes(shards, self._stores)
        super().__init__([index for index, _ in opened], verify_reads)
        self.cache, self.requests = cache, requests
        self.requests_made = 0
        self._etags = [stat.etag for _, stat in opened]
        self._places = [addresses.split(tar) for tar in shards]
        self._ahead = None
        is_small = sum(index.tar_bytes for index in self.indexes) <= hold_bytes
        self._held = _Held(self._range, [index.tar_bytes for index in self.indexes]) if is_small else None

    def order(self, windows, seed, epoch, shuffle):
        """Window numbers of an epoch: those of local shards."""
        return epoch_order(len(windows), seed, epoch, shuffle)

    def begin(self, frames, members=None):
        """An epoch, or the rest of one, starts.

        Args:
            frames: the keyframes wanted, in order, with repeats.
            members: what will be read of each of them, an iterable in the same order. With it, `requests` threads fetch
                ahead; without, as many requests are in flight as threads read.
        """
        self.close()
        if members is not None and self.requests:
            self._ahead = _Ahead(self._fetch, zip(frames, members, strict=True), self.requests)

    def read(self, number, members):
        """Bytes of the members that keyframe `number` has: dict from name to bytes-like. Safe from many threads; waits.

        Raises ShardError, naming shard and key, once every try has failed, or the object has changed.
        """
        ahead = self._ahead
        out = ahead.take(number, members) if ahead is not None else {}
        rest = [m for m in members if m not in out]
        if rest:
            out |= self._fetch(number, rest)
        return {m: out[m] for m in members if m in out}

    def interrupt(self):
        """Reads that wait for another try raise."""
        for store in self._remote_stores():
            store.stopped.set()

    def close(self):
        """Forget what was fetched ahead. The cache says how much it gave."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            self.interrupt()
            ahead.close()
        for store in self._remote_stores():
            store.stopped.clear()
        if self.cache is not None:
            self.cache.say(self.facts.get("split") or "")

    def _remote_stores(self):
        return [store for store in self._stores.values() if store.remote]

    def _fetch(self, number, members):
        shard, row = self._locate(number)
        wanted = self._wanted(shard, row, members)
        if self.cache is None:
            return self._request(shard, row, wanted)
        out = self.cache.get(self.indexes[shard], row, wanted)
        missing = [w for w in wanted if w[3] not in out]
        if missing:
            fetched = self._request(shard, row, missing)
            self.cache.put(self.indexes[shard], row, missing, fetched)
            out |= fetched
        return out

    def _request(self, shard, row, wanted):
        out = {}
        for group in neighbours(wanted, REQUESTS_A_KEYFRAME):
            for column, member, data in cut(group, self._part(shard, row, *span(group))):
                if self.verify_reads or self.cache is not None:
                    self._check(shard, row, column, data)
                out[member] = data
        return out

    def _part(self, shard, row, start, size):
        try:
            if self._held is not None:
                return self._held.tar(shard)[start : start + size]
            return self._range(shard, start, size)
        except StoreError as error:
            raise ShardError(f"{error} (sample {self.indexes[shard].keys[row]})") from None

    def _range(self, shard, start, size):
        folder, name = self._places[shard]
        data, _ = self._stores[folder].read_range(name, start, size, self._etags[shard])
        self._count(size)
        with self._counting:
            self.requests_made += 1
        return data


class _Held:
    """Tars that are fetched whole when something of them is first asked for, and kept."""

    def __init__(self, fetch, sizes):
        self._fetch, self._sizes = fetch, sizes
        self._locks = [threading.Lock() for _ in sizes]
        self._tars = {}

    def tar(self, shard):
        """Bytes of a tar; threads that want it meanwhile wait. Raises StoreError."""
        with self._locks[shard]:
            if shard not in self._tars:
                self._tars[shard] = memoryview(self._fetch(shard, 0, self._sizes[shard]))
            return self._tars[shard]


class _Ahead:
    """Fetches the next keyframes of an epoch in threads of its own; holds at most twice as many as there are threads."""

    def __init__(self, fetch, wanted, threads):
        self._fetch, self._wanted = fetch, wanted  # (keyframe, members) pairs, taken one by one
        self._pool = ThreadPoolExecutor(threads, "source")
        self._lock = threading.Lock()
        self._held = {}  # keyframe -> [(members, future)], first come first
        self._room = 2 * threads
        with self._lock:
            self._fill()

    def take(self, number, members):
        """What was fetched of a keyframe; {} where it is not among those that come next.

        A keyframe of several samples may be wanted with other members for each; threads do not always come in their order.
        """
        with self._lock:
            held = self._held.get(number)
            if not held:
                return {}
            wanted = set(members)
            place = next((i for i, (own, _) in enumerate(held) if own == wanted), 0)
            _, future = held.pop(place)
            if not held:
                del self._held[number]
            self._room += 1
            self._fill()
        try:
            return dict(future.result())
        except CancelledError:  # another thread has ended the epoch
            return {}

    def close(self):
        """End the threads; what they fetched is dropped."""
        with self._lock:
            self._room = 0
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self):
        while self._room > 0:
            number, members = next(self._wanted, (None, ()))
            if number is None:
                return
            self._room -= 1
            future = self._pool.submit(self._fetch, number, members)
            self._held.setdefault(number, []).append((set(members), future))
