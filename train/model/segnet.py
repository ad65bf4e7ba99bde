"""Segnet: cameras, and radar or lidar where given, to a BEV segmentation (Harley et al., Simple-BEV, ICRA 2023)."""

import torch
import torch.nn.functional as F
from torch import nn

from common.geometry import rigid_inverse, scale_intrinsics
from train.model.bev_flips import flip_where
from train.model.camera_mean import UNPROJECTIONS, camera_mean, convolved_mean
from train.model.decoder import Decoder, pad_to_multiple
from train.model.encoders import make_encoder
from train.model.interface import Flips
from train.model.norm import InstanceNorm

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGE_MULTIPLE = 16  # of the encoders' coarsest level
METARADAR_CHANNELS = 16


class BevConv(nn.Conv2d):
    """The compressor's convolution, of camera features and of other sensors' channels apart: neither is copied to lie beside
    the other. Its weight's first channels are those of the features, all heights of a feature side by side, as the lineage's.

    Args: as Conv2d's, and features and heights.
    """

    def __init__(self, features, heights, *arguments, **options):
        super().__init__(*arguments, **options)
        self.features, self.heights = features, heights

    def of_features(self):
        """(Y,O,C,k,k): the kernels of each height."""
        weight = self.weight[:, : self.features * self.heights]
        return weight.unflatten(1, (self.features, self.heights)).permute(2, 0, 1, 3, 4)

    def of_others(self, x):
        """The part of the result that the other channels have."""
        return F.conv2d(x, self.weight[:, self.features * self.heights :], self.bias, padding=self.padding)


def _order_of(tensor):
    is_last = tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    return torch.channels_last if is_last else torch.contiguous_format


class Segnet(nn.Module):
    """The Simple-BEV network; state-dict names, shapes and order are the lineage's. Never touches the network.

    Args:
        Z, Y, X: voxels of the BEV grid.
        vox_util: not used, as in the lineage; forward takes it.
        use_radar, use_lidar, use_metaradar: voxels that forward gets besides the images.
        do_rgbcompress: False sums camera features over height instead of a convolution; cameras alone heed it.
        rand_flip: in training, flip images and features back, and BEV features and the decoder's feature back.
        latent_dim: channels of the features. encoder_type: res101, res50, effb0 or effb4.
        unprojection: "fused" or "plain", see camera_mean; an attribute that may be set at any time.
    Raises:
        ValueError: metaradar without radar, or an unknown encoder or unprojection.
    """

    decided_by = "--encoder_type, or other sensors"

    def __init__(
        self,
        Z,
        Y,
        X,
        vox_util=None,
        use_radar=False,
        use_lidar=False,
        use_metaradar=False,
        do_rgbcompress=True,
        rand_flip=False,
        latent_dim=128,
        encoder_type="res101",
        unprojection="fused",
    ):
        super().__init__()
        if use_metaradar and not use_radar:
            raise ValueError("use_metaradar needs use_radar")
        if unprojection not in UNPROJECTIONS:
            raise ValueError(f"unprojection {unprojection!r}; it is one of {', '.join(UNPROJECTIONS)}")
        self.Z, self.Y, self.X = Z, Y, X
        self.use_radar, self.use_lidar, self.use_metaradar = use_radar, use_lidar, use_metaradar
        self.rand_flip, self.latent_dim, self.encoder_type = rand_flip, latent_dim, encoder_type
        self.do_rgbcompress, self.unprojection = do_rgbcompress, unprojection
        self.encoder = make_encoder(encoder_type, latent_dim)
        compressed = latent_dim * Y + self._radar_bev_channels() + (Y if use_lidar else 0)
        self.bev_compressor = None
        if do_rgbcompress or use_radar or use_lidar:
            self.bev_compressor = nn.Sequential(
                BevConv(latent_dim, Y, compressed, latent_dim, kernel_size=3, padding=1, bias=False),
                InstanceNorm(latent_dim),
                nn.GELU(),
            )
        self.decoder = Decoder(latent_dim)
        # Log-variances that weigh the three losses; learned.
        self.ce_weight = nn.Parameter(torch.tensor(0.0))
        self.center_weight = nn.Parameter(torch.tensor(0.0))
        self.offset_weight = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def _radar_bev_channels(self):
        if not self.use_radar:
            return 0
        return METARADAR_CHANNELS * self.Y if self.use_metaradar else 1

    def forward(self, rgb_camXs, pix_T_cams, cam0_T_camXs, vox_util, rad_occ_mem0=None, *, flips=None):
        """Predict BEV maps in the reference camera's frame.

        Args:
            rgb_camXs: (B,S,3,H,W) in [-0.5, 0.5]. pix_T_cams, cam0_T_camXs: (B,S,4,4). vox_util: VoxUtil.
            rad_occ_mem0: (B,D,Z,Y,X) voxels: radar's channel (16 with metaradar), then lidar's; None for cameras only.
            flips: Flips to apply; None draws them from torch's CPU generator in training with rand_flip.
        Returns:
            raw and feat (B,latent_dim,Z,X), seg (B,1,Z,X) logits, center (B,1,Z,X) in [0,1], offset (B,2,Z,X) cells.
        Raises:
            ValueError: voxels are missing or have other channels than the sensors in use.
        """
        batch, cameras = rgb_camXs.shape[:2]
        self._check_voxels(rad_occ_mem0)
        if flips is None and self.rand_flip and self.training:
            flips = Flips.of(torch.rand(batch, 2 + cameras))
        if flips is not None:
            flips = flips.to(rgb_camXs.device)

        feats, padded_hw = self._encode(rgb_camXs.flatten(0, 1), flips)
        with torch.autocast(rgb_camXs.device.type, enabled=False):
            cams_T_cam0 = rigid_inverse(cam0_T_camXs.float())
            scale = (feats.shape[-1] / padded_hw[1], feats.shape[-2] / padded_hw[0])
            pix_T_cam0 = scale_intrinsics(pix_T_cams.float(), *scale) @ cams_T_cam0
        seen = feats.unflatten(0, (batch, cameras)), pix_T_cam0, cams_T_cam0, vox_util
        if flips is not None and rad_occ_mem0 is not None:
            rad_occ_mem0 = flip_where(flips.bev_z, flip_where(flips.bev_x, rad_occ_mem0, -1), -3)

        unflip = None
        if flips is not None:

            def unflip(x):
                return flip_where(flips.bev_x, flip_where(flips.bev_z, x, -2), -1)

        return self.decoder(self._to_bev(seen, flips, rad_occ_mem0), unflip)

    def _check_voxels(self, voxels):
        wanted = self.use_radar * (METARADAR_CHANNELS if self.use_metaradar else 1) + int(self.use_lidar)
        given = 0 if voxels is None else voxels.shape[1]
        if wanted and given != wanted:
            raise ValueError(f"rad_occ_mem0 has {given} channels, the sensors in use need {wanted}")

    def _encode(self, images, flips):
        """(B*S,3,H,W) -> features of the flipped images, and the size they stand for: H, W rounded up to multiples of 16."""
        images = (images + 0.5 - self.mean) / self.std
        # The mean colour, on the right and below, where it moves no pixel; flipped with the image, so that features flip back.
        images = pad_to_multiple(images, IMAGE_MULTIPLE)
        if flips is not None:
            images = flip_where(flips.image.flatten(), images, -1)
        return self.encoder(images), images.shape[-2:]

    def _to_bev(self, seen, flips, voxels):
        """Camera features and geometry as camera_mean takes them, voxels of other sensors -> (B,latent_dim,Z,X)."""
        if self.bev_compressor is None:
            return camera_mean(*seen, flips, self.unprojection).sum(3)
        conv, *rest = self.bev_compressor
        x = convolved_mean(*seen, conv.of_features(), flips, self.unprojection)
        # In the memory order that the rest of the network computes in.
        x = x.contiguous(memory_format=_order_of(conv.weight))
        others = self._other_channels(voxels)
        if others:
            x = x + conv.of_others(torch.cat(others, 1))
        for layer in rest:
            x = layer(x)
        return x

    def _other_channels(self, voxels):
        """The other sensors' voxels (B,D,Z,Y,X) as channels, a list of (B,n,Z,X)."""
        parts = []
        if self.use_radar:
            channels = METARADAR_CHANNELS if self.use_metaradar else 1
            radar = voxels[:, :channels]
            flat = radar.transpose(2, 3).flatten(1, 2) if self.use_metaradar else radar.sum(3).clamp(0, 1)
            parts.append(flat)
        if self.use_lidar:
            parts.append(voxels[:, -1:].transpose(2, 3).flatten(1, 2))
        return parts
