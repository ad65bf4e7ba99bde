"""Frames on the CPU -> one Batch on the device: upload, crop and resize, label maps, padding."""

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_jpeg

from train.augment import crop_and_resize
from train.data.batch import Batch
from train.targets import bev_targets


class DeviceStage:
    """Turns the decoded frames of B windows into a Batch.

    Args:
        device: where batches live. final_hw: network image size. interpolation: as in crop_and_resize.
        vox_util: the BEV grid. get_tids: whether to number tracks.
    """

    def __init__(self, device, final_hw, interpolation, vox_util, get_tids):
        self.device = torch.device(device)
        self.final_hw = tuple(final_hw)
        self.interpolation = interpolation
        self.vox_util = vox_util
        self.get_tids = get_tids

    def __call__(self, windows, draws, indices, epoch):
        """The batch of B windows, each T frames; draws: their Draw. Geometry is float32 whatever the autocast."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return self._build(windows, draws, indices, epoch)

    def _build(self, windows, draws, indices, epoch):
        frames = [frame for window in windows for frame in window]
        shape = (len(windows), len(windows[0]))
        imgs, intrins = self._images(windows, draws)
        ego_T_cam = self._stack([f.ego_T_cam for f in frames], shape)
        lrt, num_boxes = self._pad([f.lrt.T for f in frames], shape, 0.0)
        lrt = lrt.transpose(-1, -2).contiguous()
        visible, _ = self._pad([f.visible[None] for f in frames], shape, 0.0)
        targets = self._targets(frames, ego_T_cam[:, :, 0].flatten(0, 1), lrt.flatten(0, 1), num_boxes)
        maps = {f"{k}_bev": v.unflatten(0, shape) for k, v in vars(targets).items()}
        scores = torch.arange(lrt.shape[2], device=self.device) < num_boxes[..., None]
        return Batch(
            imgs=imgs,
            intrins=intrins,
            rots=ego_T_cam[..., :3, :3].contiguous(),
            trans=ego_T_cam[..., :3, 3].contiguous(),
            lrtlist=lrt,
            vislist=visible[:, :, 0],
            tidlist=self._track_ids(windows, lrt.shape[2]) if self.get_tids else None,
            scorelist=scores.float(),
            egopose=self._stack([f.global_T_ego for f in frames], shape),
            num_boxes=num_boxes,
            tokens=[[f.token for f in window] for window in windows],
            scenes=[window[0].scene for window in windows],
            cams=[list(d.cams) for d in draws],
            indices=list(indices),
            epoch=epoch,
            **maps,
            **self._points(frames, shape),
        )

    def _upload(self, array):
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _stack(self, arrays, shape):
        return self._upload(np.stack(arrays)).unflatten(0, shape)

    def _pad(self, arrays, shape, value):
        """(C, n) arrays -> (B,T,C,longest) tensor and (B,T) counts."""
        counts = np.array([a.shape[-1] for a in arrays])
        out = np.full((len(arrays), arrays[0].shape[0], max(counts.max(), 1)), value, np.float32)
        for row, array in zip(out, arrays, strict=True):
            row[:, : array.shape[-1]] = array
        return self._upload(out).unflatten(0, shape), self._upload(counts).unflatten(0, shape)

    def _images(self, windows, draws):
        shape = (len(windows), len(windows[0]))
        frames = [frame for window in windows for frame in window]
        places = [(draw, t) for draw in draws for t in range(shape[1])]
        imgs, intrins = [], []
        for pixels, frame, (draw, t) in zip(self._pixels(frames), frames, places, strict=True):
            image, matrix = crop_and_resize(
                pixels,
                self._upload(frame.intrinsics),
                draw.resize_wh[t],
                draw.crop_ltrb[t],
                self.final_hw,
                self.interpolation,
            )
            imgs.append(image)
            intrins.append(matrix)
        return torch.stack(imgs).unflatten(0, shape), torch.stack(intrins).unflatten(0, shape)

    def _pixels(self, frames):
        """(S,H,W,3) uint8 of each frame, or S images: decoded ones are uploaded, encoded ones go to nvJPEG in one call."""
        if not isinstance(frames[0].images[0], np.ndarray):
            return self._decode(frames)
        return [
            torch.from_numpy(f.images).to(self.device, non_blocking=True)
            if isinstance(f.images, np.ndarray)
            else [torch.from_numpy(i).to(self.device, non_blocking=True) for i in f.images]
            for f in frames
        ]

    def _decode(self, frames):
        """Encoded JPEGs of all frames -> lists of (H,W,3) uint8 images on the device, a list a frame.

        Raises RuntimeError, which does not say which one, for an image that is damaged or not of the size recorded.
        """
        buffers = [torch.frombuffer(bytearray(image), dtype=torch.uint8) for frame in frames for image in frame.images]
        decoded = iter(decode_jpeg(buffers, mode=ImageReadMode.RGB, device=self.device))
        images = [[next(decoded).permute(1, 2, 0) for _ in frame.images] for frame in frames]
        if any(
            [image.shape[:2] for image in own] != frame.stored_hw for own, frame in zip(images, frames, strict=True)
        ):
            raise RuntimeError("an image is not of the size that its record says")
        return images

    def _targets(self, frames, ego_T_cam0, lrt, num_boxes):
        cam0_T_ego, _ = torch.linalg.inv_ex(ego_T_cam0)  # inv would wait for the GPU to say whether it worked
        lrt_cam = lrt.clone()
        lrt_cam[..., 3:] = (cam0_T_ego[:, None] @ lrt[..., 3:].unflatten(-1, (4, 4))).flatten(-2)
        numbers = self._upload(np.stack([f.numbers for f in frames]))
        valid = self._upload(np.stack([f.valid for f in frames]))
        return bev_targets(numbers, valid, lrt_cam, num_boxes.flatten(), self.vox_util)

    def _points(self, frames, shape):
        out = dict.fromkeys(("lidar0_data", "lidar0_extra", "num_lidar0", "lidar_data", "lidar_extra", "num_lidar"))
        out |= dict.fromkeys(("radar_data", "num_radar"))
        if frames[0].lidar is not None:
            first = [f.lidar[:, : f.num_lidar0] for f in frames]
            points, out["num_lidar0"] = self._pad(first, shape, 0.0)
            out["lidar0_data"], out["lidar0_extra"] = points[:, :, :3], points[:, :, 3:]
            points, counts = self._pad([f.lidar for f in frames], shape, 0.0)
            is_padding = torch.arange(points.shape[-1], device=self.device) >= counts[..., None, None]
            out["lidar_data"], out["num_lidar"] = points[:, :, :3], counts
            out["lidar_extra"] = torch.where(is_padding, -1.0, points[:, :, 3:])
        if frames[0].radar is not None:
            out["radar_data"], out["num_radar"] = self._pad([f.radar for f in frames], shape, 0.0)
        return out

    def _track_ids(self, windows, longest):
        ids = np.full((len(windows), len(windows[0]), longest), -1, np.int64)
        for b, window in enumerate(windows):
            seen = {}
            for t, frame in enumerate(window):
                for n, instance in enumerate(frame.instances):
                    ids[b, t, n] = seen.setdefault(instance, len(seen))
        return self._upload(ids)
