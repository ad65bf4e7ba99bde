"""The loader: threads that fetch and decode ahead into a ring of buffers, and batches in an exact order."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import torch

from common.record import RecordError
from common.shard_index import ShardError
from train.data.buffers import BufferPool
from train.data.draws import draw
from train.data.frame import decode_frame, decode_image
from train.data.order import num_batches, rank_batch, sample_rng
from train.errors import DataError

BATCHES_AHEAD = 2  # being decoded while one is consumed


class Loader:
    """Finite epochs of batches: len() batches each; iter() starts the next epoch.

    Order and draws are pure functions of (seed, epoch, sample). state_dict() says where the next batch is, and
    load_state_dict() continues there without reading what came before.

    Args:
        reader: a source (see train.data.sources). windows: lists of keyframe numbers.
        frame_options, augment, stage: what to load and how.
        batch_size: samples over all ranks. nworkers: threads; 0 loads in the caller's.
        is_train: augment, and drop the last partial batch; else every sample once.
    """

    def __init__(
        self,
        reader,
        windows,
        frame_options,
        augment,
        stage,
        *,
        batch_size,
        nworkers,
        is_train,
        shuffle,
        shuffle_cams,
        refcam_id,
        seed,
        rank=0,
        world_size=1,
    ):
        self.reader, self.windows = reader, windows
        self.frame_options, self.augment, self.stage = frame_options, augment, stage
        self.batch_size, self.nworkers, self.is_train = batch_size, nworkers, is_train
        self.shuffle, self.shuffle_cams, self.refcam_id, self.seed = shuffle, shuffle_cams, refcam_id, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.position = 0, 0
        self.batches_ahead = BATCHES_AHEAD
        self._running = 0
        self._buffers = BufferPool(pinned=stage.device.type == "cuda")

    def __len__(self):
        return num_batches(len(self.windows), self.batch_size, self.rank, self.world_size, drop_last=self.is_train)

    @property
    def num_global_batches(self):
        """Batches of an epoch over all ranks; len() is one less where this rank's share of the last is empty."""
        return num_batches(len(self.windows), self.batch_size, drop_last=self.is_train)

    def state_dict(self):
        """Epoch and number of the next batch. Valid for any number of workers."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state):
        """Continue where the loader that gave `state` stood; the next iter() starts there."""
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def __iter__(self):
        if self.position >= len(self):  # of an epoch's last batch, saved by a rank that has a share of it
            self.epoch, self.position = self.epoch + 1, 0
            return iter(())
        return self._batches(self.epoch, self.position)

    def _batches(self, epoch, first):
        order = self.reader.order(self.windows, self.seed, epoch, self.shuffle)
        total = len(self)
        self.reader.begin(self._frames(order, first, total))
        pool = ThreadPoolExecutor(self.nworkers, "loader") if self.nworkers else None
        pending = deque()
        number = first
        self._running += 1
        try:
            while pending or number < total:
                ahead = self.batches_ahead + 1 if pool else 1
                while number < total and len(pending) < ahead:
                    pending.append(self._start(pool, order, number, epoch))
                    number += 1
                samples, draws, jobs = pending.popleft()
                windows = [[job() for job in window] for window in jobs]
                batch = self._staged(windows, draws, samples, epoch)
                self._recycle(windows)
                self.position += 1
                if self.position == total:
                    self.epoch, self.position = epoch + 1, 0
                yield batch
        finally:
            self._running -= 1
            if not self._running or self.reader.is_stream:
                self.reader.interrupt()
            if pool:
                pool.shutdown(wait=True, cancel_futures=True)
            if not self._running:
                self.reader.close()

    def _frames(self, order, first, total):
        """Keyframes of this rank's batches from `first` on, in the order in which they will be read."""
        for number in range(first, total):
            for sample in rank_batch(order, number, self.batch_size, self.rank, self.world_size).tolist():
                yield from self.windows[sample]

    def _start(self, pool, order, number, epoch):
        """Begin loading one batch: its sample numbers, draws, and for each frame a function that waits for it."""
        samples = rank_batch(order, number, self.batch_size, self.rank, self.world_size).tolist()
        draws, jobs = [], []
        for sample in samples:
            rng = sample_rng(self.seed, epoch, sample) if self.is_train else None
            window = self.windows[sample]
            chosen = draw(rng, self.augment, len(window), self.is_train, self.shuffle_cams, self.refcam_id)
            draws.append(chosen)
            if pool:
                jobs.append([pool.submit(self._load, frame, chosen.cams).result for frame in window])
            else:
                jobs.append([lambda f=frame, c=chosen.cams: self._load(f, c) for frame in window])
        return samples, draws, jobs

    def _load(self, number, cams):
        try:
            members = self.reader.read(number, self.frame_options.members(cams))
            return decode_frame(members, cams, self.frame_options, self._buffers.take)
        except ShardError as error:
            raise DataError(str(error)) from error
        except RecordError as error:
            raise self._bad_record(number, error) from error

    def _bad_record(self, number, error):
        return DataError(f"{self.reader.where(number)}: {error}; check the shard with python -m preprocess.verify")

    def _staged(self, windows, draws, samples, epoch):
        """The batch of loaded windows. Where a device could not decode its images, find out which one it was."""
        try:
            return self.stage(windows, draws, samples, epoch)
        except RuntimeError:
            if not self.frame_options.decode_images:
                for window, chosen, sample in zip(windows, draws, samples, strict=True):
                    for frame, number in zip(window, self.windows[sample], strict=True):
                        self._check_images(frame, number, chosen.cams)
            raise

    def _check_images(self, frame, number, cams):
        for image, camera, stored_hw in zip(frame.images, cams, frame.stored_hw, strict=True):
            try:
                decode_image(image, camera, stored_hw)
            except RecordError as error:
                raise self._bad_record(number, error) from None

    def _recycle(self, windows):
        event = None
        if self.stage.device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.stage.device))
        frames = [frame for window in windows for frame in window]
        if self.frame_options.decode_images:
            self._buffers.give([image for frame in frames for image in frame.buffers], event)
        for frame in frames:
            frame.images = frame.buffers = None
