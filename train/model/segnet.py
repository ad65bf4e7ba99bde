"""Segnet: cameras, and radar or lidar where given, to a BEV segmentation (Harley et al., Simple-BEV, ICRA 2023)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from common.errors import InputError
from train.model.bev_flips import flip_where, unflipped
from train.model.camera_mean import UNPROJECTIONS, camera_mean, convolved_mean
from train.model.decoder import Decoder, pad_to_multiple
from train.model.encoder_types import make_encoder
from train.model.interface import Flips
from train.model.norm import InstanceNorm
from train.model.past import PastConv
from train.model.points import pixels_of_ref

METARADAR_CHANNELS = 16


class Geometry(NamedTuple):
    """Where cameras are: pix_T_cams (B,S,4,4), pixels of the images from each; ref_T_cams (B,S,4,4), the grid's frame.

    The latter may scale all axes alike, where the grid is augmented. lenses: (B,S,LENS_SIZE) rows of common.lens; None for
    pinholes.
    """

    pix_T_cams: torch.Tensor
    ref_T_cams: torch.Tensor
    lenses: torch.Tensor | None = None


class BevConv(nn.Conv2d):
    """The compressor's convolution, of camera features and of other sensors' channels apart: neither is copied to lie beside
    the other. Its weight's first channels are those of the features, all heights of a feature side by side, as Simple-BEV's.

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
    """The Simple-BEV network; state-dict names, shapes and order are Simple-BEV's. Never touches the network.

    Args:
        Z, Y, X: voxels of the BEV grid.
        vox_util: VoxUtil that infer of a network of the interface works with; forward takes its own, as in Simple-BEV.
        use_radar, use_lidar, use_metaradar: voxels that forward gets besides the images.
        do_rgbcompress: False sums camera features over height instead of a convolution; cameras alone heed it.
        rand_flip: in training, flip images and features back, and BEV features and the decoder's feature back.
        latent_dim: channels of the features. encoder_type: see encoder_types.
        unprojection: "fused" or "plain", see camera_mean; an attribute that may be set at any time.
        classes: K, maps of seg. past: keyframes before the present whose features bev gets, see train.model.past.
        beside: channels of the maps that bev gets besides.
    Raises:
        ValueError: metaradar without radar, an unknown encoder or unprojection, or a past without do_rgbcompress.
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
        classes=1,
        past=0,
        beside=0,
    ):
        super().__init__()
        if use_metaradar and not use_radar:
            raise InputError("use_metaradar needs use_radar")
        if unprojection not in UNPROJECTIONS:
            raise InputError(f"unprojection {unprojection!r}; it is one of {', '.join(UNPROJECTIONS)}")
        self.Z, self.Y, self.X, self.vox_util = Z, Y, X, vox_util
        self.use_radar, self.use_lidar, self.use_metaradar = use_radar, use_lidar, use_metaradar
        self.rand_flip, self.latent_dim, self.encoder_type = rand_flip, latent_dim, encoder_type
        self.do_rgbcompress, self.unprojection = do_rgbcompress, unprojection
        self.encoder = make_encoder(encoder_type, latent_dim)
        compressed = latent_dim * Y + self._radar_bev_channels() + (Y if use_lidar else 0) + beside
        self.bev_compressor = self.past_conv = None
        if do_rgbcompress or use_radar or use_lidar or beside:
            self.bev_compressor = nn.Sequential(
                BevConv(latent_dim, Y, compressed, latent_dim, kernel_size=3, padding=1, bias=False),
                InstanceNorm(latent_dim),
                nn.GELU(),
            )
        if past:
            if self.bev_compressor is None:
                raise InputError("past features go through the compressor: leave out do_rgbcompress False")
            self.past_conv = PastConv(past, latent_dim, Y, latent_dim)
        self.decoder = Decoder(latent_dim, classes)
        # Log-variances that weigh the three losses; learned.
        self.ce_weight = nn.Parameter(torch.tensor(0.0))
        self.center_weight = nn.Parameter(torch.tensor(0.0))
        self.offset_weight = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("mean", torch.tensor(self.encoder.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.encoder.std).view(1, 3, 1, 1), persistent=False)

    def _radar_bev_channels(self):
        if not self.use_radar:
            return 0
        return METARADAR_CHANNELS * self.Y if self.use_metaradar else 1

    def forward(self, rgb_camXs, pix_T_cams, cam0_T_camXs, vox_util, rad_occ_mem0=None, *, flips=None, lenses=None):
        """Predict BEV maps in the reference camera's frame, or in whatever frame cam0_T_camXs lead to: encode, bev and decode.

        Args:
            rgb_camXs: (B,S,3,H,W) in [-0.5, 0.5]. pix_T_cams, cam0_T_camXs: (B,S,4,4). vox_util: VoxUtil.
            rad_occ_mem0: (B,D,Z,Y,X) voxels: radar's channel (16 with metaradar), then lidar's; None for cameras only.
            lenses: (B,S,LENS_SIZE) rows of common.lens; None for pinholes.
            flips: Flips to apply; None draws them from torch's CPU generator in training with rand_flip.
        Returns:
            raw and feat (B,latent_dim,Z,X), seg (B,K,Z,X) logits, center (B,1,Z,X) in [0,1], offset (B,2,Z,X) cells.
        Raises:
            ValueError: voxels are missing or have other channels than the sensors in use.
        """
        self._check_voxels(rad_occ_mem0)
        flips = self._flips(flips, rgb_camXs)
        features = self.encode(rgb_camXs, flips)
        bev = self.bev(features, Geometry(pix_T_cams, cam0_T_camXs, lenses), vox_util, flips, rad_occ_mem0)
        return self.decode(bev, flips)

    def _flips(self, flips, images):
        """Flips on the images' device: those given, or drawn in training with rand_flip; else None."""
        if flips is None and self.rand_flip and self.training:
            flips = Flips.of(torch.rand(images.shape[0], 2 + images.shape[1]))
        return None if flips is None else flips.to(images.device)

    def encode(self, images, flips=None):
        """Features of images, of those flipped that `flips` (on their device) flips, which they stay.

        Args:
            images: (B,S,3,H,W) in [-0.5, 0.5], of any size.
        Returns:
            (B,S,C,h,w); pixel (0, 0) lies over the image's upper left corner, or upper right one where it is flipped, and is
            as many pixels wide and high as the encoder's first stride.
        Raises:
            ValueError: the encoder gives features of another size than it says.
        """
        x = (images.flatten(0, 1) + 0.5 - self.mean) / self.std
        # The mean colour, on the right and below, where it moves no pixel; flipped with the image, so that features flip back.
        x = pad_to_multiple(x, self._multiple)
        if flips is not None:
            x = flip_where(flips.image.flatten(), x, -1)
        return self._of_image(self.encoder(x), x.shape[-2:]).unflatten(0, images.shape[:2])

    @property
    def _multiple(self):
        return math.lcm(self.encoder.multiple, self.encoder.strides[0])

    def features_hw(self, image_hw):
        """(h, w) of the features of images of that size."""
        return tuple(-(-n // self._multiple) * self._multiple // self.encoder.strides[0] for n in image_hw)

    def _of_image(self, features, image_hw):
        """Features (N,C,h,w) without those of what the encoder itself added to the image, on the right and below."""
        fine, coarse = self.encoder.strides[0], max(self.encoder.strides)
        own = tuple(n // fine for n in image_hw)
        padded = tuple(-(-n // coarse) * coarse // fine for n in image_hw)
        given = tuple(features.shape[-2:])
        if given == own:
            return features
        if any(n not in sizes for n, sizes in zip(given, zip(own, padded, strict=True), strict=True)):
            raise InputError(
                f"{type(self.encoder).__name__} gives features of {given} for images of {tuple(image_hw)}; at its stride of "
                f"{fine} they are {own}; mend its strides or its multiple"
            )
        return features[..., : own[0], : own[1]]

    def bev(self, features, geometry, grid, flips=None, voxels=None, past=None, maps=None):
        """Features of cameras, and what there is of other sensors and of the past, seen from above, flipped as `flips` say.

        Args:
            features: (B,S,C,h,w) of encode with the same flips. geometry: Geometry of the images. grid: VoxUtil.
            voxels: (B,D,Z,Y,X) not flipped: radar's channels, then lidar's; None for cameras only. past: Past, of a network
            that was built for one. maps: (B,beside,Z,X) not flipped.
        Returns:
            (B,latent_dim,Z,X).
        """
        *where, bent = pixels_of_ref(*geometry[:2], self.encoder.strides[0], geometry.lenses)
        if flips is not None:
            voxels, maps = (
                v if v is None else flip_where(flips.bev_z, flip_where(flips.bev_x, v, -1), dim)
                for v, dim in ((voxels, -3), (maps, -2))
            )
        seen = features, *where, grid
        if self.bev_compressor is None:
            return camera_mean(*seen, flips, self.unprojection, **bent).sum(3)
        conv, *rest = self.bev_compressor
        x = convolved_mean(*seen, conv.of_features(), flips, self.unprojection, **bent)
        # In the memory order that the rest of the network computes in.
        x = x.contiguous(memory_format=_order_of(conv.weight))
        if past is not None:
            x = x + self.past_conv(past, self.encoder.strides[0], grid, flips, self.unprojection)
        others = self._other_channels(voxels) + ([] if maps is None else [maps])
        if others:
            x = x + conv.of_others(torch.cat(others, 1))
        for layer in rest:
            x = layer(x)
        return x

    def decode(self, bev, flips=None):
        """(B,latent_dim,Z,X) of `bev` with the same flips -> what forward returns, flipped back."""
        return self.decoder(bev, None if flips is None else lambda x: unflipped(x, flips))

    def _check_voxels(self, voxels):
        wanted = self.use_radar * (METARADAR_CHANNELS if self.use_metaradar else 1) + int(self.use_lidar)
        given = 0 if voxels is None else voxels.shape[1]
        if wanted and given != wanted:
            raise InputError(f"rad_occ_mem0 has {given} channels, the sensors in use need {wanted}")

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
