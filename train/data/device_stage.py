"""Frames on the CPU -> one Batch on the device: one upload, images resampled, label maps."""

from dataclasses import dataclass

import numpy as np
import torch

from common.lens import LENS_SIZE
from train.augment import moved_intrinsics, pix_T_stored, resample, resample_into, sampling_plan, stacked
from train.data.augmentation import UNSEEN_PX, colours_of
from train.data.batch import Batch
from train.data.buffers import passed
from train.data.colours import recoloured
from train.data.frames import ages_s, ego_T_nows
from train.data.images import EncodedImages, NoImages, ResampledImages
from train.data.layer_members import batched
from train.data.targets import bev_targets
from train.data.upload import Parcel
from train.errors import DataError

# What every batch takes as it was sent.
AS_SENT = (
    *(
        "rots",
        "trans",
        "intrins",
        "pix_T_stored",
        "egopose",
        "ref_T_ego",
        "ego_T_camego",
        "ego_T_now",
        "age_s",
        "is_real",
    ),
    *("num_boxes", "lrtlist", "lrtlist_ref", "vislist", "box_class", "box_velocity", "box_numbers"),
)


@dataclass
class Loaded:
    """What the loader's threads made of one batch.

    windows: B lists of T Frames. augmentations: theirs. images: see images.py. is_real: B arrays (T,), see frames.py.
    starts: B bools, whether a scene starts.
    """

    windows: list
    augmentations: list
    images: object
    indices: list
    epoch: int
    is_real: list | None = None
    starts: list | None = None

    @property
    def frames(self):
        return [frame for window in self.windows for frame in window]

    @property
    def shape(self):
        """B, T."""
        return len(self.windows), len(self.windows[0])

    def crops(self):
        """Of all images, frame by frame: stored sizes (n,2), resize_wh (n,2) and crop_ltrb (n,4)."""
        sizes_hw = np.array([size for frame in self.frames for size in frame.sizes_hw])
        return sizes_hw, *(np.concatenate([getattr(f, n) for f in self.frames]) for n in ("resize_wh", "crop_ltrb"))


class DeviceStage:
    """Makes a Batch of a Loaded.

    Args:
        config: StageConfig. grid: Grid. labels: LabelSpecs of the frames' maps. pools: Pools.
    """

    def __init__(self, config, grid, labels, pools):
        self.config, self.labels, self.pools = config, labels, pools
        self.device = config.device
        if config.on_cuda and self.device.index is None:  # the stage's thread has a current device of its own
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.vox_util = grid.vox_util()
        self._stream = self._constants = None

    def __call__(self, loaded):
        """The batch. Geometry is float32 whatever the autocast. Raises RuntimeError where the device cannot decode."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return self._build(loaded, self._parcel(loaded))

    def ahead(self, loaded):
        """The batch, made on a stream of the stage's own, and the event that passes when it is there (CUDA)."""
        if not self.config.on_cuda:
            return self(loaded), None
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._stream):
            return self(loaded), passed(self.device)

    def hand_over(self, batch, event):
        """The batch of `ahead`, for the caller's stream: which waits for it, and whose use of its memory is made known."""
        if event is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(event)
            for tensor in batch.tensors():
                tensor.record_stream(stream)
        return batch

    def _share_constants(self):
        """The VoxUtil's constants, made on the first stream that a batch is made on, are there for the stream at hand too."""
        if self._constants is None:
            self.vox_util.to(self.device)
            self._constants = passed(self.device)
        torch.cuda.current_stream(self.device).wait_event(self._constants)

    def _build(self, loaded, parcel):
        """The batch of what the host has prepared; nothing here makes it wait for a GPU but a GPU's own JPEG decoder."""
        if self.config.on_cuda:
            self._share_constants()
        sent = parcel.upload(self.device, self.pools.parcels)
        imgs = None
        if not isinstance(loaded.images, NoImages):
            imgs = self._images(loaded.images, loaded, sent.pop("plan", None))
            if "colours" in sent:
                imgs = recoloured(imgs.flatten(0, 1), sent.pop("colours").flatten(0, 1)).view(imgs.shape)
            imgs = imgs.unflatten(0, loaded.shape)
        drawn, counts = sent.pop("drawn", sent["lrtlist_ref"]), sent.pop("num_drawn", sent["num_boxes"])
        seg = sent.pop("seg", None)
        numbers = sent.pop("numbers", sent["box_numbers"])
        targets = bev_targets(numbers, sent.pop("valid"), drawn, counts, self.vox_util, seg)
        starts = sent.pop("starts")
        sent = {name: value.unflatten(0, loaded.shape) for name, value in sent.items()}
        maps = {f"{name}_bev": value.unflatten(0, loaded.shape) for name, value in vars(targets).items()}
        return Batch(
            imgs=imgs,
            **{name: sent[name] for name in AS_SENT},
            tidlist=sent.get("tidlist"),
            lenses=sent.get("lenses"),
            labels=self._labels(maps, sent),
            class_names=self.labels[0].class_names,
            class_weights=tuple(spec.weight for spec in self.labels[0].classes),
            class_positives=tuple(spec.positives for spec in self.labels[0].classes),
            true_times=self.config.true_times,
            starts=starts,
            layers=batched([f.layers for f in loaded.frames], loaded.shape, self.device),
            tokens=[[f.token for f in window] for window in loaded.windows],
            scenes=[window[0].facts.scene for window in loaded.windows],
            cams=[list(d.cams) for d in loaded.augmentations],
            facts=[[f.facts for f in window] for window in loaded.windows],
            indices=loaded.indices,
            epoch=loaded.epoch,
            **maps,
            **_points(loaded.frames, sent),
        )

    def _parcel(self, loaded):
        """Everything but the images, ready to be sent."""
        frames, parcel = loaded.frames, Parcel()
        crops = loaded.crops()
        intrins = moved_intrinsics(torch.from_numpy(np.concatenate([f.intrinsics for f in frames])), *crops)
        intrins = intrins.numpy().reshape(*loaded.shape, -1, 4, 4)
        moved = pix_T_stored(*crops).reshape(*loaded.shape, -1, 3, 3)
        for b, drawn in enumerate(loaded.augmentations):
            if drawn.dropped is not None:
                intrins[b, :, drawn.dropped, :2, 2] = moved[b, :, drawn.dropped, :2, 2] = UNSEEN_PX
        parcel.copy("intrins", list(intrins.reshape(len(frames), -1, 4, 4)))
        parcel.copy("pix_T_stored", list(moved.reshape(len(frames), -1, 3, 3)))
        parcel.copy("rots", [f.ego_T_cam[:, :3, :3] for f in frames])
        parcel.copy("trans", [f.ego_T_cam[:, :3, 3] for f in frames])
        parcel.copy("egopose", [f.global_T_ego.astype(np.float32) for f in frames])
        parcel.copy("ref_T_ego", [f.ref_T_ego for f in frames])
        parcel.copy("ego_T_camego", [f.ego_T_camego for f in frames])
        nows = [ego_T_nows(np.stack([f.global_T_ego for f in window])) for window in loaded.windows]
        parcel.copy("ego_T_now", list(np.concatenate(nows)))
        times = [[f.facts.timestamp_us for f in window] for window in loaded.windows]
        parcel.copy("age_s", list(np.concatenate([ages_s(own) for own in times])))
        real = loaded.is_real or [np.ones(len(window), bool) for window in loaded.windows]
        parcel.copy("is_real", list(np.concatenate(real)))
        starts = loaded.starts or [True] * len(loaded.windows)
        parcel.copy("starts", [np.bool_(own) for own in starts])
        if any(f.lenses is not None for f in frames):
            parcel.copy("lenses", [_pinholes(f) if f.lenses is None else f.lenses for f in frames])
        self._add_boxes(parcel, loaded)
        self._add_maps(parcel, frames)
        _fill_past(frames)
        if frames[0].lidar is not None:
            parcel.copy("num_lidar0", [np.array(f.num_lidar0) for f in frames])
            parcel.copy("num_lidar", [np.array(f.lidar.shape[1]) for f in frames])
            parcel.pad("lidar_data", [f.lidar[:3] for f in frames], axis=1)
            parcel.pad("lidar_extra", [f.lidar[3:] for f in frames], -1, axis=1)
            if any(f.lidar_index is not None for f in frames):  # of mixed sets some may have one lidar
                indices = [
                    np.zeros(f.lidar.shape[1], np.int16) if f.lidar_index is None else f.lidar_index for f in frames
                ]
                parcel.pad("lidar_index", indices, -1)
        if frames[0].radar is not None:
            parcel.copy("num_radar", [np.array(f.radar.shape[1]) for f in frames])
            parcel.pad("radar_data", [f.radar for f in frames], axis=1)
        if self.config.on_cuda and not isinstance(loaded.images, NoImages):
            parcel.copy("plan", list(sampling_plan(*crops, self.config.final_hw, self.config.interpolation)))
        if not isinstance(loaded.images, NoImages):
            self._add_colours(parcel, loaded)
        return parcel

    def _add_colours(self, parcel, loaded):
        """Where training changes colours or leaves cameras out, whose images are then black."""
        colours = [colours_of(drawn) for drawn in loaded.augmentations]
        if any(own is not None for own in colours):
            parcel.copy("colours", list(np.concatenate(colours)))

    def _add_boxes(self, parcel, loaded):
        boxes = [frame.boxes for frame in loaded.frames]
        parcel.copy("num_boxes", [np.array(len(b.lrt)) for b in boxes])
        parcel.pad("lrtlist", [b.lrt for b in boxes])
        parcel.pad("lrtlist_ref", [b.lrt_ref for b in boxes])
        parcel.pad("vislist", [b.visible for b in boxes])
        parcel.pad("box_class", [b.classes for b in boxes], -1)
        parcel.pad("box_velocity", [b.velocity for b in boxes])
        if self.config.get_tids:
            parcel.pad("tidlist", _track_ids(loaded.windows), -1)

    def _add_maps(self, parcel, frames):
        """Label maps of all labels; where boxes are others than those drawn, also these, for what the losses make of them."""
        parcel.copy("box_numbers", [f.box_numbers for f in frames])
        parcel.copy("valid", [f.maps[0].valid for f in frames])
        if frames[0].drawn is not None:
            parcel.copy("numbers", [f.maps[0].numbers for f in frames])
            parcel.copy("num_drawn", [np.array(len(f.drawn)) for f in frames])
            parcel.pad("drawn", [f.drawn for f in frames])
        if len(self.labels[0].classes) > 1 or self.labels[0].has_maps:
            parcel.copy("seg", [f.maps[0].seg for f in frames])
        for spec, maps in zip(self.labels[1:], zip(*(f.maps[1:] for f in frames), strict=True), strict=True):
            parcel.copy(f"seg of {spec.name}", [own.seg for own in maps])
            parcel.copy(f"valid of {spec.name}", [own.valid for own in maps])

    def _images(self, images, loaded, plan):
        """(frames,S,3,h,w) float32 in [0,1] of any of the three forms."""
        if isinstance(images, ResampledImages):
            return images.tensor
        pixels = self._decode(images) if isinstance(images, EncodedImages) else self._sent(images)
        shape, final_hw = (len(loaded.frames), -1), self.config.final_hw
        if self.config.on_cuda:
            return resample(stacked(pixels), plan, final_hw, self.config.interpolation).unflatten(0, shape)
        out = torch.empty((len(pixels), 3, *final_hw))
        _, resize_wh, crop_ltrb = loaded.crops()
        for place, image, wh, ltrb in zip(out, pixels, resize_wh, crop_ltrb, strict=True):
            resample_into(place, image, wh, ltrb, self.config.interpolation)
        return out.unflatten(0, shape)

    def _sent(self, images):
        """Decoded images on the device: (frames*S,H,W,3) uint8, or a list of (H,W,3) where sizes differ."""
        if images.whole is not None:
            sent = torch.from_numpy(images.whole).to(self.device, non_blocking=True).flatten(0, 1)
        else:
            sent = [torch.from_numpy(i).to(self.device, non_blocking=True) for own in images.images for i in own]
        images.give_back(passed(self.device))
        return sent

    def _decode(self, images):
        """Encoded JPEGs of all frames -> list of (H,W,3) uint8 images on the device.

        torchvision's decoder on CUDA works on a stream of its own, which does not wait for the caller's: the memory that it is
        given may still be read by what was queued there before. The caller's stream does wait for it in the end. So the host
        waits for this stage's own stream, before and, since the encoded bytes must stay until they are read, after: that costs
        this thread alone, which is a batch ahead, while the training's stream goes on.

        Raises RuntimeError, which does not say which one, for an image that is damaged or not of the size recorded, and
        DataError where torchvision has no decoder any more.
        """
        try:
            from torchvision.io import ImageReadMode, decode_jpeg  # deprecated there, so nothing else may need it
        except ImportError:
            raise DataError("this torchvision decodes no JPEGs; use --decode host") from None
        encoded = [torch.frombuffer(bytearray(image), dtype=torch.uint8) for own in images.encoded for image in own]
        sizes_hw = [size for own in images.sizes_hw for size in own]
        if self.config.on_cuda:
            torch.cuda.current_stream(self.device).synchronize()
        decoded = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=self.device)
        if self.config.on_cuda:
            torch.cuda.current_stream(self.device).synchronize()
        if [tuple(image.shape[1:]) for image in decoded] != sizes_hw:
            raise RuntimeError("an image is not of the size that its record says")
        return [image.permute(1, 2, 0) for image in decoded]

    def _labels(self, maps, sent):
        """(seg, valid) of each LabelSpec; the first's are the batch's own."""
        labels = {self.labels[0].name: (maps["seg_bev"], maps["valid_bev"])}
        for spec in self.labels[1:]:
            labels[spec.name] = tuple(sent[f"{what} of {spec.name}"].float() for what in ("seg", "valid"))
        return labels


def _pinholes(frame):
    """Lenses of a frame whose cameras are all pinholes, beside others whose are not."""
    return np.zeros((len(frame.sizes_hw), LENS_SIZE), np.float32)


def _fill_past(frames):
    """No points in place of those of past keyframes that were not read. The first frame is a present."""
    for name in ("lidar", "lidar_index", "radar"):
        own = getattr(frames[0], name)
        for frame in frames if own is not None else ():
            if getattr(frame, name) is None:
                setattr(frame, name, own[..., :0])


def _points(frames, sent):
    names = ("lidar_data", "lidar_extra", "lidar_index", "num_lidar0", "num_lidar", "radar_data", "num_radar")
    longest = max(max(f.num_lidar0 for f in frames), 1)
    return {name: sent.get(name) for name in names} | {"longest_lidar0": longest}


def _track_ids(windows):
    """By frame, (n,) int64: one number a track over its window, in order of appearance."""
    ids = []
    for window in windows:
        seen = {}
        ids += [np.array([seen.setdefault(i, len(seen)) for i in frame.boxes.instances], np.int64) for frame in window]
    return ids
