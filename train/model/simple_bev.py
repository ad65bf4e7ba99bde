"""Simple-BEV as a network of the interface: Segnet on batches, with its learned weights of the losses."""

import torch

from common.geometry import cam0_T_cams, merge_rt
from train.loss import benchmark_terms
from train.model.backbone import load_backbone
from train.model.interface import Needs
from train.model.segnet import Segnet

LOG_VARIANCES = ("ce_weight", "center_weight", "offset_weight")


class SimpleBev(Segnet):
    """Segnet whose forward takes a Batch; constructor and state-dict names are Segnet's."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        radar = ("metaradar" if self.use_metaradar else "voxels") if self.use_radar else False
        self.needs = Needs(lidar="voxels" if self.use_lidar else False, radar=radar)
        # No loss reaches this head, as in the lineage. It keeps its weights, for checkpoints; said so, several processes need
        # not search for it.
        self.decoder.gives_feat = False
        self.decoder.feat_head.requires_grad_(False)

    def forward(self, batch, grid, flips=None):
        """seg, center and offset of the first keyframe, as Segnet gives them."""
        with torch.autocast(batch.rots.device.type, enabled=False):
            cam0_T_cam = cam0_T_cams(merge_rt(batch.rots[:, 0], batch.trans[:, 0]))
        voxels = [v[:, 0] for v in (batch.radar_voxels, batch.lidar_voxels) if v is not None]
        voxels = torch.cat(voxels, 1) if voxels else None
        images = batch.imgs[:, 0] - 0.5
        _, _, seg, center, offset = super().forward(images, batch.intrins[:, 0], cam0_T_cam, grid, voxels, flips=flips)
        return {"seg": seg, "center": center, "offset": offset}

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
        load_backbone(self, options)


def build(options, grid):
    """SimpleBev of the options, weights from torch's generator.

    --model_args '{"unprojection": "plain"}' samples every camera's whole volume instead of gathering what cameras see.
    Raises ValueError for other arguments.
    """
    arguments = dict(options.model_args or {})
    unprojection = arguments.pop("unprojection", "fused")
    if arguments:
        raise ValueError(f"--model_args {', '.join(arguments)}: simple_bev knows unprojection; the rest are options")
    return SimpleBev(
        grid.Z,
        grid.Y,
        grid.X,
        use_radar=options.use_radar,
        use_lidar=options.use_lidar,
        use_metaradar=options.use_metaradar,
        do_rgbcompress=options.do_rgbcompress,
        rand_flip=options.rand_flip,
        latent_dim=options.latent_dim,
        encoder_type=options.encoder_type,
        unprojection=unprojection,
    )
