"""Lift-Splat-Shoot as a network of the interface: in whatever frame the grid lies, with depths that lidar may teach."""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F

from common.errors import InputError
from train.loss import benchmark_terms
from train.model.backbone import load_efficientnet
from train.model.bev_flips import flip_where, unflipped
from train.model.decoder import pad_to_multiple
from train.model.encoders import IMAGENET_MEAN, IMAGENET_STD, follow, freeze
from train.model.interface import Needs
from train.model.lidar_depth import DEPTH_LAYER, depth_maps
from train.model.lift_splat.shoot import MULTIPLE, LiftSplatShoot, lifted
from train.model.points import ref_T_cams

# x forward, y left, z up, as published, of the grid's X right, Y down, Z forward.
_OWN_T_REF = ((0.0, 0.0, 1.0, 0.0), (-1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))


SOURCES = ("none", "lidar", "layer")  # of what teaches depths


@dataclass(frozen=True)
class OwnOptions:
    """What --model_args may say; lengths in metres."""

    depth: Literal[SOURCES] = field(
        default="none", metadata={"help": "what teaches depths: lidar, layer (depth), or the labels alone"}
    )
    depth_weight: float = field(default=1.0, metadata={"help": "of the depths' cross-entropy in the loss"})
    depth_m: tuple[float, ...] = field(default=(4.0, 45.0, 1.0), metadata={"help": "first depth, end, step"})
    height_m: tuple[float, ...] = field(default=(-10.0, 10.0), metadata={"help": "of points that count, upwards"})

    def __post_init__(self):
        if len(self.depth_m) != 3 or not (0 < self.depth_m[0] < self.depth_m[1] and self.depth_m[2] > 0):
            raise InputError(f"depth_m {self.depth_m}: it is a first depth, an end beyond it, and a step")
        if len(self.height_m) != 2 or not self.height_m[0] < self.height_m[1]:
            raise InputError(f"height_m {self.height_m}: it is a lower and a higher number")


class LiftSplat(LiftSplatShoot):
    """LiftSplatShoot whose forward takes a Batch; constructor and state-dict names are LiftSplatShoot's.

    Args:
        depth: what teaches depths, of SOURCES. depth_weight: of that in the loss. The others: LiftSplatShoot's.
    """

    def __init__(self, grid_conf, data_aug_conf, outC, depth="none", depth_weight=1.0):
        super().__init__(grid_conf, data_aug_conf, outC)
        self.depth, self.depth_weight = depth, depth_weight
        self.needs = Needs(
            lidar="points" if depth == "lidar" else False,
            radar=False,
            sweeps=1 if depth == "lidar" else None,
            layers=DEPTH_LAYER if depth == "layer" else {},
            train_only=("lidar",) if depth == "lidar" else ("layers",) if depth == "layer" else (),
        )
        for name, value in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(value).view(3, 1, 1), persistent=False)
        self.pooling = None  # of (depth, context), for one calibration: what an export has in the place of splat
        self.register_buffer("own_T_ref", torch.tensor(_OWN_T_REF), persistent=False)

    def inference_inputs(self, batch, grid):
        """What infer takes of a Batch: {name: tensor}, geometry float32 whatever the autocast."""
        with torch.autocast(batch.rots.device.type, enabled=False):
            return {
                "images": batch.imgs[:, 0],
                "pix_T_cams": batch.intrins[:, 0],
                "ref_T_cams": ref_T_cams(batch),
            }

    def infer(self, images, pix_T_cams, ref_T_cams, *, flips=None):
        """Tensors alone -> maps of the present: what is exported.

        Args:
            images: (B,S,3,H,W) in [0,1], of image_hw. pix_T_cams, ref_T_cams: (B,S,4,4), pixels and the grid's frame from the
                cameras. flips: Flips on their device.
        Returns:
            {"seg": (B,K,Z,X) logits}.
        """
        return {"seg": self._maps(images, pix_T_cams, ref_T_cams, flips)[0]}

    def _maps(self, images, pix_T_cams, ref_T_cams, flips):
        """(seg, logits of the depths)."""
        depth, context = self.encode(images, flips)
        bev = self.bev(depth.softmax(2), context, self.geometry(pix_T_cams, ref_T_cams))
        return self.decode(bev, flips), depth

    def encode(self, images, flips=None):
        """depth_and_context of images (B,S,3,H,W) in [0,1]; what `flips` flips is seen mirrored, and comes back as it lay.

        Raises:
            ValueError: images of another size than image_hw.
        """
        if images.shape[-2:] != self.image_hw:
            raise InputError(f"images are {tuple(images.shape[-2:])}, the network was built for {self.image_hw}")
        x = pad_to_multiple((images - self.mean) / self.std, MULTIPLE)
        if flips is None:
            return self.depth_and_context(x)
        return tuple(flip_where(flips.image, y, -1) for y in self.depth_and_context(flip_where(flips.image, x, -1)))

    def geometry(self, pix_T_cams, ref_T_cams):
        """(B,S,D,h,w,3) metres, of `lifted`, in float32."""
        with torch.autocast(pix_T_cams.device.type, enabled=False):
            own_T_cams = self.own_T_ref @ ref_T_cams.float()
            rots, trans = own_T_cams[..., :3, :3], own_T_cams[..., :3, 3]
            return lifted(self.frustum, rots, trans, pix_T_cams[..., :3, :3].float())

    def bev(self, depth, context, geometry):
        """(B,64,Z,X): splat, with its columns, which run to the left, turned to the grid's."""
        pooled = self.splat(depth, context, geometry) if self.pooling is None else self.pooling(depth, context)
        return pooled.flip(-1)

    def decode(self, bev, flips=None):
        """(B,K,Z,X) logits of what `bev` gave, mirrored as `flips` say and turned back."""
        if flips is not None:
            bev = flip_where(flips.bev_z, flip_where(flips.bev_x, bev, -1), -2)
        # As published, columns run along y, to the left.
        maps = self.bevencode(bev.flip(-1)).flip(-1)
        return maps if flips is None else unflipped(maps, flips)

    def forward(self, batch, grid, flips=None):
        """seg of the present; in training, where lidar teaches them, also the depths' logits (B,S,D,h,w)."""
        seg, depth = self._maps(**self.inference_inputs(batch, grid), flips=flips)
        return {"seg": seg} | ({"depth": depth} if self._learns_depth() else {})

    def _learns_depth(self):
        return self.training and self.depth != "none"

    def loss(self, outputs, batch, normaliser):
        """The benchmark's cross-entropy of seg, whose weights are those of the paper, and in training the depths'."""
        terms = benchmark_terms({"seg": outputs["seg"]}, batch, normaliser)
        if self._learns_depth():
            bins = self._bins(batch)
            each = F.cross_entropy(outputs["depth"].flatten(0, 1), bins.flatten(0, 1), ignore_index=-1, reduction="sum")
            terms["depth_loss"] = self.depth_weight * each / normaliser((bins >= 0).sum().to(each.dtype))
        return sum(terms.values()), terms

    def _bins(self, batch):
        """(B,S,h,w) int64: the nearest of the frustum's depths to what lidar measured, -1 beyond all and without."""
        hw, depths = self.frustum.shape[1:3], self.frustum[:, 0, 0, 2]
        metres = depth_maps(batch, hw, of_lidar=self.depth == "lidar", size=self.padded_hw)
        bins = torch.round((metres - depths[0]) / (depths[1] - depths[0]))
        return torch.where((metres > 0) & (bins >= 0) & (bins < len(depths)), bins, -1.0).long()

    def load_pretrained(self, options):
        """ImageNet weights for the image encoder's trunk, unless --no_pretrained."""
        load_efficientnet(self.camencode.trunk, "effb0", options)


def build(options, grid):
    """LiftSplat of the options, weights from torch's generator."""
    own = options.model_args
    (x0, _, z0), (x1, _, z1), (dx, _, dz) = grid.low_m.tolist(), grid.high_m.tolist(), grid.voxel_m.tolist()
    grid_conf = {
        "xbound": (z0, z1, dz),
        "ybound": (-x1, -x0, dx),
        "zbound": (*own.height_m, own.height_m[1] - own.height_m[0]),
        "dbound": own.depth_m,
    }
    image = {"final_dim": options.image_hw}
    network = LiftSplat(grid_conf, image, len(options.classes) or 1, own.depth, own.depth_weight)
    follow(network.camencode.trunk, options.bn_momentum)
    if options.freeze_encoder:
        freeze(network.camencode.trunk)
    return network


build.options_class = OwnOptions
