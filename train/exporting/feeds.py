"""Samples of a loader as tensors that an exported network takes, and what stands in its graph before the network."""

from functools import cached_property

import numpy as np
import torch

from common.errors import InputError
from common.record import CAMERAS_MEMBER, SAMPLE, decode_cameras, image_member, parse_sample
from train.augment import pix_T_stored
from train.data.augmentation import placed
from train.data.images import decode_jpeg
from train.exporting.graph import CALIBRATION, ImagesStage, VoxelStage
from train.exporting.images import StoredImages
from train.exporting.pillars import sorted_by_cell
from train.model.forward import with_voxels

MOST = 10  # samples that numbers are compared on


class Feeds:
    """Tensors of a loader's samples in a Form.

    Args:
        network: see graph.check_exportable. loader: Loader of evaluation, in batches of one. grid: VoxUtil. form: Form.
    """

    def __init__(self, network, loader, grid, form):
        self.network, self.loader, self.grid, self.form = network, loader, grid, form
        self.makes_voxels = False  # inside the graph, as the first sample shows
        self.numbers = {loader.reader.keys[window[0]]: n for n, window in enumerate(loader.windows)}

    def spread(self, count=MOST):
        """Numbers of `count` samples, spread over all; of all where there are fewer."""
        last = len(self.loader.windows) - 1
        return sorted({round(n) for n in np.linspace(0, last, min(count, last + 1))})

    def __call__(self, numbers):
        """Yield (Batch of one, its tensors) of samples by number."""
        for batch in self.loader.batches_of(numbers):
            yield batch, self.of(batch)

    def of(self, batch):
        """{name: tensor} of a Batch."""
        tensors = dict(self.network.inference_inputs(with_voxels(batch, self.network.needs, self.grid), self.grid))
        if self._takes_stored(tensors):
            each = [self._stored(facts.key, cams) for (facts, *_), cams in zip(batch.facts, batch.cams, strict=True)]
            tensors["images"] = torch.stack([images for images, _ in each])
            if "pix_T_cams" in tensors:
                tensors["pix_T_cams"] = torch.stack([intrinsics for _, intrinsics in each])
            if "past_pix_T_cams" in tensors:
                past = [
                    [self._intrinsics(f.key, cams) for f in own[1:]]
                    for own, cams in zip(batch.facts, batch.cams, strict=True)
                ]
                tensors["past_pix_T_cams"] = torch.stack([torch.stack(own) for own in past])
        if self.form.points == "points":
            self._take_points(tensors, batch)
        return sorted_by_cell(tensors)

    def constants(self, tensors):
        """{name: (1,…) tensor} of inputs that are constant: the calibration of the keyframe that the form names, if any, and
        the cameras' lenses, which are the rig's. tensors: of any sample. Raises ValueError.
        """
        own = {name: tensors[name] for name in ("lenses", "past_lenses") if name in tensors}
        if not self.form.calibration:
            return own
        if self.form.calibration not in self.numbers:
            raise InputError(
                f"--calibration {self.form.calibration}: no key of these {len(self.numbers)} samples; the first is "
                f"{next(iter(self.numbers))}"
            )
        [(_, tensors)] = self([self.numbers[self.form.calibration]])
        return own | {name: tensors[name] for name in CALIBRATION if name in tensors}

    def stages(self, tensors):
        """Modules before the network, for tensors of a sample."""
        out = []
        if self._takes_stored(tensors):
            out.append(ImagesStage(self._resize()))
        if self.makes_voxels:
            out.append(VoxelStage(self.network.needs, self.grid))
        return out

    def _takes_stored(self, tensors):
        return self.form.images == "stored" and "images" in tensors

    def _take_points(self, tensors, batch):
        for sensor, rows in (("lidar", 3), ("radar", 19)):
            if tensors.pop(f"{sensor}_voxels", None) is not None:
                points = getattr(batch, f"{sensor}_data")[:, 0, :rows]
                tensors[f"{sensor}_points"] = points.transpose(1, 2).contiguous()
                tensors[f"{sensor}_count"] = getattr(batch, f"num_{sensor}")[:, 0]
                tensors["ref_T_ego"] = batch.ref_T_ego[:, 0]
                self.makes_voxels = True

    def _members(self, key, members):
        return self.loader.reader.read(self.loader.windows[self.numbers[key]][0], members)

    def _cameras(self, key, cams):
        """Rows of cameras.npy.zst of these cameras, in their order."""
        members = self._members(key, (SAMPLE, CAMERAS_MEMBER))
        sample = parse_sample(members[SAMPLE])
        rows = decode_cameras(members[CAMERAS_MEMBER], sample)
        channels = [camera["channel"] for camera in sample["cameras"]]
        return rows[[channels.index(name) for name in cams]]

    def _stored(self, key, cams):
        """Images (S,H,W,3) uint8 and intrinsics (S,4,4) of stored pixels."""
        images = self._members(key, list(map(image_member, cams)))
        pixels = [torch.from_numpy(decode_jpeg(images[image_member(name)], name)) for name in cams]
        return torch.stack(pixels), self._intrinsics(key, cams)

    def _intrinsics(self, key, cams):
        """(S,4,4) of stored pixels."""
        intrinsics = torch.eye(4).repeat(len(cams), 1, 1)
        intrinsics[:, :3, :3] = torch.from_numpy(self._cameras(key, cams)["intrinsics"].astype(np.float32))
        return intrinsics

    def resize_facts(self):
        """What is done to stored images: their sizes, resize_wh (S,2), crop_ltrb (S,4), and pix_T_stored (S,3,3), as lists."""
        facts = {"stored_hw": self._placed[0], "resize_wh": self._placed[1], "crop_ltrb": self._placed[2]}
        return {name: value.tolist() for name, value in facts.items()} | {
            "pix_T_stored": pix_T_stored(*self._placed).tolist()
        }

    @cached_property
    def cams(self):
        """Cameras in slot order."""
        return self.loader.draw(0, 0, augment=False).cams

    @cached_property
    def _placed(self):
        """(sizes_hw, resize_wh, crop_ltrb) of the first sample's images: evaluation does the same to all."""
        drawn, rows = self.loader.draw(0, 0, augment=False), self._cameras(next(iter(self.numbers)), self.cams)
        sizes_hw = np.stack([rows["height"], rows["width"]], 1)
        return sizes_hw, *placed(drawn.resize_wh[0], drawn.crop_ltrb[0], sizes_hw, self.loader.augment)

    def _resize(self):
        stage = self.loader.stage.config
        return StoredImages(*self._placed, stage.final_hw, stage.interpolation)
