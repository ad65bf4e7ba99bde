"""Simple-BEV as a network of the interface: Segnet on batches, with its learned weights of the losses."""

from dataclasses import dataclass, field
from typing import Literal

import torch

from train.loss import benchmark_terms
from train.model.backbone import load_backbone
from train.model.camera_mean import UNPROJECTIONS
from train.model.encoders import begin
from train.model.interface import Needs
from train.model.memory import METHODS
from train.model.past import Memory, Past, past_of_window, unflipped_features
from train.model.points import ref_T_cams
from train.model.segnet import Geometry, Segnet

LOG_VARIANCES = ("ce_weight", "center_weight", "offset_weight")


class SimpleBev(Segnet):
    """Segnet whose forward takes a Batch; constructor and state-dict names are Segnet's.

    With past keyframes it takes them from windows, or, of a batch of single keyframes, from its memory of streams.
    """

    def __init__(self, *args, past=0, **kwargs):
        super().__init__(*args, past=past, **kwargs)
        radar = ("metaradar" if self.use_metaradar else "voxels") if self.use_radar else False
        lidar = "voxels" if self.use_lidar else False
        self.needs = Needs(lidar=lidar, radar=radar, lenses=True, past=past, past_points=past == 0, remembers=past > 0)
        self.past = past
        if past:
            self.memory = Memory(past)
            for name in METHODS:
                setattr(self, name, getattr(self.memory, name))
        # No loss reaches this head, as in Simple-BEV. It keeps its weights, for checkpoints; said so, several processes need
        # not search for it.
        self.decoder.gives_feat = False
        self.decoder.feat_head.requires_grad_(False)

    def inference_inputs(self, batch, grid):
        """What infer takes of a Batch that has its voxels: {name: tensor}, geometry float32 whatever the autocast."""
        with torch.autocast(batch.rots.device.type, enabled=False):
            tensors = {
                "images": batch.imgs[:, 0],
                "pix_T_cams": batch.intrins[:, 0],
                "ref_T_cams": ref_T_cams(batch),
            }
        if getattr(batch, "lenses", None) is not None:
            tensors["lenses"] = batch.lenses[:, 0]
        past = self._past(batch).named() if self.past else {}
        return tensors | self.others(batch, grid) | past

    def others(self, batch, grid):
        """What infer takes besides cameras and past: {name: tensor}."""
        voxels = {"radar_voxels": batch.radar_voxels, "lidar_voxels": batch.lidar_voxels}
        return {name: value[:, 0] for name, value in voxels.items() if value is not None}

    def _past(self, batch):
        images = batch.imgs
        if images.shape[1] > 1:
            return past_of_window(batch, self.past, lambda own: self.encode(own - 0.5))
        return self.memory.past(batch, (images.shape[2], self.latent_dim, *self.features_hw(images.shape[-2:])))

    def infer(
        self,
        images,
        pix_T_cams,
        ref_T_cams,
        radar_voxels=None,
        lidar_voxels=None,
        lenses=None,
        *,
        grid=None,
        flips=None,
        **past,
    ):
        """Tensors alone -> maps of the present: what is exported, with a past as a step whose memory goes in and out.

        Args:
            images: (B,S,3,H,W) in [0,1]. pix_T_cams, ref_T_cams: (B,S,4,4), pixels and the grid's frame from the cameras.
            radar_voxels: (B,1 or 16,Z,Y,X). lidar_voxels: (B,1,Z,Y,X). lenses: (B,S,16), see common.lens; None for
                pinholes. grid: VoxUtil; without it the one it was built for.
            flips: Flips. past: past_features, past_pix_T_cams, past_ref_T_cams, past_age_s, past_is_real and, where there are
                lenses, past_lenses: the fields of Past.
        Returns:
            dict of seg, center and offset, as Segnet gives them; with a past also features (B,S,C,h,w), not flipped, which
            become the newest of the next keyframe's past_features.
        """
        voxels = [v for v in (radar_voxels, lidar_voxels) if v is not None]
        voxels = torch.cat(voxels, 1) if voxels else None
        self._check_voxels(voxels)
        return self._maps(images, Geometry(pix_T_cams, ref_T_cams, lenses), grid, flips, past, voxels=voxels)

    def _maps(self, images, geometry, grid, flips, past, **others):
        """What infer returns. past: its arguments of that name. others: what bev takes of other sensors."""
        flips, grid = self._flips(flips, images), self.vox_util if grid is None else grid
        features = self.encode(images - 0.5, flips)
        past = Past.of(past) if self.past else None
        bev = self.bev(features, geometry, grid, flips, past=past, **others)
        _, _, seg, center, offset = self.decode(bev, flips)
        maps = {"seg": seg, "center": center, "offset": offset}
        return maps | ({"features": unflipped_features(features, flips)} if self.past else {})

    def forward(self, batch, grid, flips=None):
        """seg, center and offset of the present, as Segnet gives them."""
        tensors = self.inference_inputs(batch, grid)
        outputs = self.infer(**tensors, grid=grid, flips=flips)
        if self.past:
            features = outputs.pop("features")
            if batch.imgs.shape[1] == 1:
                self.memory.keep(batch, features, tensors["past_is_real"])
        return outputs

    def loss(self, outputs, batch, normaliser):
        """The benchmark's sum; may be negative, since each term carries half its learned log-variance.

        Terms are weighed, without their log-variances, which are curves of their own.
        """
        each = benchmark_terms(outputs, batch, normaliser)
        ce = each["ce_loss"] * torch.exp(-self.ce_weight)
        center = each["center_loss"] / (2 * torch.exp(self.center_weight))
        offset = each["offset_loss"] / (2 * torch.exp(self.offset_weight))
        total = ce + center + offset + 0.5 * (self.ce_weight + self.center_weight + self.offset_weight)
        terms = {"ce_loss": ce, "center_loss": center, "offset_loss": offset}
        return total, terms | {name: getattr(self, name) for name in LOG_VARIANCES}

    def load_pretrained(self, options):
        """ImageNet weights for the encoder, unless --no_pretrained."""
        load_backbone(self.encoder, options)


@dataclass(frozen=True)
class OwnOptions:
    """What --model_args may say; the rest are options of the command line."""

    unprojection: Literal[UNPROJECTIONS] = field(
        default="fused", metadata={"help": "plain: sample each camera's whole volume, not what it sees alone"}
    )


def build(options, grid):
    """SimpleBev of the options, weights from torch's generator."""
    network = SimpleBev(
        grid.Z,
        grid.Y,
        grid.X,
        grid,
        use_radar=options.use_radar,
        use_lidar=options.use_lidar,
        use_metaradar=options.use_metaradar,
        do_rgbcompress=options.do_rgbcompress,
        rand_flip=options.rand_flip,
        latent_dim=options.latent_dim,
        encoder_type=options.encoder_type,
        unprojection=options.model_args.unprojection,
        classes=len(options.classes) or 1,
        past=options.past,
    )
    begin(network.encoder, options)
    return network


build.options_class = OwnOptions
