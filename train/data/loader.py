"""The loader: threads that fetch and decode, a stage that finishes batches one ahead of its caller, and an exact order."""

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Thread

import numpy as np
import torch

from common.errors import InputError
from common.record import RecordError
from common.shard_index import ShardError
from common.spelling import spelled
from train.data.augmentation import augmented, draw_augmentation, drawn_cams, placed
from train.data.buffers import Pools
from train.data.categories import check_met
from train.data.decode import decode_frame
from train.data.device_stage import DeviceStage, Loaded
from train.data.frames import are_real
from train.data.images import EncodedImages, encoded_images, images_of
from train.data.order import num_batches, num_stream_batches, rank_batch, sample_rng, stream_batches, stream_slots
from train.data.prefetch import Prefetch
from train.data.windows import windows_of
from train.errors import DataError

BATCHES_AHEAD = 2  # being decoded while one is finished
# Of epochs in a row, at least: a pause of a few batches at the end of that many is not felt.
BATCHES_WITHOUT_PAUSE = 1000


class Loader:
    """Finite epochs of batches: len() batches each; iter() starts the next epoch.

    Order and augmentation are pure functions of (seed, epoch, sample). state_dict() says where the next batch is, and
    load_state_dict() continues there without reading what came before. There is one place and so one live iterator: a new one
    ends the last, whose next batch raises RuntimeError.

    Args:
        reader: a source of keyframes' bytes, see train.data.sources. order, decode, augment, stage: what to load and how, see
            train.data.config; augment is a tuple of one of each part of a MixedSource.
        nworkers: threads that fetch and decode; with any, the device stage has one too. 0 does everything in the caller's.
    """

    def __init__(self, reader, order, decode, augment, stage, nworkers):
        self.reader, self.order, self.decode = reader, order, decode
        self.augments = augment if isinstance(augment, tuple) else (augment,)
        self.augment = self.augments[0]
        self.nworkers = nworkers
        self.windows = windows_of(reader, order)
        self._scene_of = np.array([reader.whole_scene_of[window[0]] for window in self.windows], np.int64)
        self._played = None  # (epoch, its slots) of streams
        self.batches_ahead = BATCHES_AHEAD
        self.pools = Pools(BATCHES_AHEAD + 4, pinned=stage.on_cuda)
        self.stage = DeviceStage(stage, decode.grid, decode.labels, self.pools)
        self.make_images = images_of(stage, decode.use_cameras)
        self.epoch, self.position = 0, 0
        self.memory = {}  # what a network remembers of the scenes at hand, while it is busy with other samples
        self._live = None  # what makes the batches of the iterator that was begun last, as long as it is not run out
        self._met = None  # categories of a stream's first whole epoch, while that is read
        self._looks = reader.is_stream and (order.is_train or order.world_size == 1)

    def __len__(self):
        return self._num_batches(self.order.rank, self.order.world_size)

    @property
    def num_global_batches(self):
        """Batches of an epoch over all ranks; len() is less where this rank's share of the last ones is empty."""
        return self._num_batches(0, 1)

    def _num_batches(self, rank, world_size):
        drop_last = self.order.is_train
        if self.order.order == "streams":
            return num_stream_batches(self._slots(self.epoch), rank, world_size, drop_last)
        return num_batches(len(self.windows), self.order.batch_size, rank, world_size, drop_last)

    def _slots(self, epoch):
        """The slots of an epoch of streams; the last epoch's are kept."""
        if self._played is None or self._played[0] != epoch:
            order = self.order
            self._played = epoch, stream_slots(self._scene_of, order.batch_size, order.seed, epoch, order.shuffle)
        return self._played[1]

    def state_dict(self):
        """Epoch and number of the next batch. Valid for any number of workers."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state):
        """Continue where the loader that gave `state` stood; the next iter() starts there."""
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._met = None

    def batch_of(self, samples, augment=False):
        """The batch of chosen samples, loaded in the caller's thread; the epoch stays where it is.

        Args:
            samples: window numbers, or keys or tokens of the windows' first keyframes. augment: draw as this epoch of training
                does; else as in evaluation.
        Raises:
            ValueError: no such sample, or shards that can only be read from front to back.
        """
        self._check_single()
        numbers = [self._number(sample) for sample in samples]
        return self.stage(self._finished(self._start(None, numbers, self.epoch, augment)))

    def draw(self, sample, epoch, augment=True):
        """The Augmentation of a sample in an epoch of training, or without `augment` of evaluation."""
        rng = sample_rng(self.order.seed, epoch, sample) if augment else None
        conf = self.augment_of(self.window_of(sample)[0])
        drawn = draw_augmentation(rng, conf, self.order.seqlen, self.order.past)
        if not augment:
            return drawn
        return augmented(drawn, conf, lambda stream: sample_rng(self.order.seed, epoch, sample, stream))

    def window_of(self, sample):
        """The window of a sample; of mixed sets one may come again within an epoch, under a number of its own."""
        return self.windows[sample % len(self.windows)]

    def augment_of(self, frame):
        """The AugmentConfig of the set that a keyframe is of."""
        return self.augments[self.reader.part_of(frame)] if len(self.augments) > 1 else self.augment

    def _check_single(self):
        if self.reader.is_stream:
            raise InputError("a pipe: is read from front to back and has no single samples; give shards that are files")

    def _number(self, sample):
        if isinstance(sample, str):
            for number, window in enumerate(self.windows):
                if sample in (self.reader.keys[window[0]], self.reader.tokens[window[0]]):
                    return number
        elif 0 <= sample < len(self.windows):
            return int(sample)
        raise InputError(f"no sample {sample}; there are {len(self.windows)}, {self.reader.keys[0]} is the first")

    def __iter__(self):
        if self.position >= len(self):  # of an epoch's last batch, saved by a rank that has a share of it
            self.epoch, self.position = self.epoch + 1, 0
            return iter(())
        return self._batches(self.epoch, self.position)

    def batches_of(self, samples):
        """The batches of chosen samples in their order, as evaluation has them, loaded ahead in threads.

        samples: window numbers. The epoch stays where it is, but its live iterator ends. Raises ValueError for shards that can
        only be read from front to back.
        """
        self._check_single()
        size, samples = self.order.batch_size // self.order.world_size, [self._number(sample) for sample in samples]
        return self._loaded([(self.epoch, samples[n : n + size]) for n in range(0, len(samples), size)], augment=False)

    def endless(self):
        """Batches of this epoch and of all after it; None where this rank has no share of one of an epoch's last batches.

        Small epochs of files follow one another without a pause: the next one's first batches are loaded during the last ones
        of this. What is fetched from a store is not, since processes that share a cache would fetch it twice.
        """
        while True:
            count, missing = len(self), self.num_global_batches - max(len(self), self.position)
            if self.position >= count:  # of an epoch's last batch, saved by a rank that has a share of it
                self.epoch, self.position = self.epoch + 1, 0
                yield from [None] * missing
                continue
            epochs = 1
            if not self.reader.fetches_ahead and self.order.order != "streams":
                epochs = math.ceil(BATCHES_WITHOUT_PAUSE / count)
            for batch in self._batches(self.epoch, self.position, epochs):
                yield batch
                if self.position == 0:
                    yield from [None] * missing

    def _batches(self, epoch, first, epochs=1):
        self._end()
        if first == 0 and self._looks:
            self._met = set()
        count = len(self)
        work = [(number, share) for number in range(epoch, epoch + epochs) for share in self._shares(number)]
        with closing(self._loaded(work[first:], self.order.is_train)) as loaded:
            for batch in loaded:
                self.position += 1
                if self.position == count:
                    self.epoch, self.position = self.epoch + 1, 0
                yield batch

    def _loaded(self, work, augment):
        """The batch of each (epoch, list of samples), in order; later ones are loaded ahead."""
        self._end()
        samples = [(epoch, sample) for epoch, share in work for sample in share]
        frames = [frame for _, sample in samples for frame in self.window_of(sample)]
        self.reader.begin(frames, self._members_ahead(samples, augment) if self.nworkers else None)
        made = self._finish(work, augment)
        if self.nworkers:
            made = Prefetch(made, "loader-stage")
        self._live = made
        try:
            for batch, event in made:
                yield self.stage.hand_over(batch, event)
                if self._live is not made:
                    raise RuntimeError(
                        "this loader was iterated anew, which ended this iterator; use a loader for each"
                    )
        finally:
            if self._live is made:
                self._end()

    def _end(self):
        """Give back what the live iterator holds, if there is one."""
        made, self._live = self._live, None
        if made is not None:
            self.reader.interrupt()
            made.close()
            self.reader.close()

    def _members_ahead(self, samples, augment):
        """The members that will be read of each keyframe of these (epoch, sample), in order: those of the cameras drawn."""
        for epoch, sample in samples:
            rng = sample_rng(self.order.seed, epoch, sample) if augment else None
            window = self.window_of(sample)
            cams = drawn_cams(rng, self.augment_of(window[0]))
            yield from (self._decode_of(t).members(cams) for t in range(len(window)))

    def _shares(self, epoch):
        """The samples that this rank loads, of each batch of an epoch."""
        order = self.order
        if order.order == "streams":
            return stream_batches(self._slots(epoch), order.rank, order.world_size, order.is_train)
        numbers = self.reader.order(self.windows, order.seed, epoch, order.shuffle)
        place = (order.batch_size, order.rank, order.world_size)
        return [rank_batch(numbers, n, *place).tolist() for n in range(len(self))]

    def _begins(self, sample):
        """Whether a network with a memory is to forget before this sample: where a scene starts, or nothing is played."""
        return self.order.order != "streams" or sample == 0 or self._scene_of[sample] != self._scene_of[sample - 1]

    def _finish(self, work, augment):
        """(batch, event) of each (epoch, samples), in order, later ones being decoded meanwhile; see DeviceStage.ahead."""
        pool = _threads(self.nworkers) if self.nworkers else None
        pending, waiting = deque(), deque(work)
        try:
            while pending or waiting:
                while waiting and len(pending) <= (self.batches_ahead if pool else 0):
                    epoch, samples = waiting.popleft()
                    pending.append(self._start(pool, samples, epoch, augment))
                loaded = self._finished(pending.popleft())
                if self._met is not None:
                    self._met.update(name for window in loaded.windows for frame in window for name in frame.categories)
                yield self._staged(loaded, pool is not None)
            self._check_categories()
        except Exception:
            self.reader.interrupt()  # what later batches still wait for would keep the error back
            raise
        finally:
            if pool:
                pool.shutdown(wait=True, cancel_futures=True)

    def _check_categories(self):
        """At the end of a stream's first whole epoch, raise ValueError where target categories matched nothing in it.

        Of several ranks each has seen its share alone, in which one of several categories is enough.
        """
        if self._met is not None:
            each = self.order.is_train and self.order.world_size == 1
            check_met(self._met, self.decode.categories, each, "the epoch's keyframes")
            self._met, self._looks = None, False

    def _start(self, pool, samples, epoch, augment):
        """Begin loading one batch: a Loaded whose frames are functions that wait for them."""
        augmentations, jobs, images = [], [], None
        for sample in samples:
            window = self.window_of(sample)
            chosen = self.draw(sample, epoch, augment)
            if images is None:
                images = self.make_images(self.pools, len(samples) * len(window), len(chosen.cams), self.stage.config)
            own = []
            for t, number in enumerate(window):
                arguments = (images, len(jobs) * len(window) + t, number, chosen, t)
                own.append(pool.submit(self._load, *arguments).result if pool else lambda a=arguments: self._load(*a))
            augmentations.append(chosen)
            jobs.append(own)
        return Loaded(jobs, augmentations, images, samples, epoch, starts=[self._begins(sample) for sample in samples])

    def _load(self, images, place, number, chosen, t):
        """Keyframe `number`, at `t` of its window and `place` of its batch: a Frame; its images go to `images`."""
        cams, decode = chosen.cams, self._decode_of(t)
        try:
            members = self.reader.read(number, decode.members(cams))
            frame = decode_frame(members, self.reader.keys[number], cams, decode, chosen.moved_T_ref)
            drawn = chosen.resize_wh[t], chosen.crop_ltrb[t]
            frame.resize_wh, frame.crop_ltrb = placed(*drawn, frame.sizes_hw, self.augment_of(number))
            if self.decode.use_cameras:
                encoded = encoded_images(members, cams)
                images.add(place, encoded, cams, frame.sizes_hw, frame.resize_wh, frame.crop_ltrb)
            return frame
        except ShardError as error:
            raise DataError(str(error)) from error
        except RecordError as error:
            raise self._bad_record(number, error) from error

    def _decode_of(self, t):
        """DecodeConfig of the keyframe at t of its window."""
        return self.decode.of_past if t and self.order.past else self.decode

    def _bad_record(self, number, error):
        return DataError(f"{self.reader.where(number)}: {error}; check the shard with {spelled('preprocess.verify')}")

    def _finished(self, loaded):
        """The Loaded once its frames are there. Raises what loading one of them did."""
        loaded.windows = [[wait() for wait in window] for window in loaded.windows]
        times = [[frame.facts.timestamp_us for frame in window] for window in loaded.windows]
        rigs = [window[0].facts.rig for window in loaded.windows]
        loaded.is_real = [are_real(own, rig.keyframe_interval_s) for own, rig in zip(times, rigs, strict=True)]
        return loaded

    def _staged(self, loaded, ahead):
        """The batch. Where a device could not decode its images, find out which one it was."""
        try:
            return self.stage.ahead(loaded) if ahead else (self.stage(loaded), None)
        except RuntimeError:
            if isinstance(loaded.images, EncodedImages):
                numbers = [number for sample in loaded.indices for number in self.window_of(sample)]
                for place, number in enumerate(numbers):
                    try:
                        loaded.images.check(place)
                    except RecordError as error:
                        raise self._bad_record(number, error) from None
            raise


def _threads(count):
    """Pool of `count` threads whose tensor operations each take one thread: the pool is the parallelism.

    What torch is told in a thread, threads that start later inherit, and this must stay within the pool: each of its
    threads puts the caller's number back through a thread that ends at once.
    """
    number = torch.get_num_threads()

    def begin():
        torch.set_num_threads(1)
        restore = Thread(target=torch.set_num_threads, args=(number,))
        restore.start()
        restore.join()

    return ThreadPoolExecutor(count, "loader", begin)
