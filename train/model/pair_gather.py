"""The camera mean on the CPU: the (voxel, camera) pairs that see each other, found once a batch, then weighted gather-sums.

About one pair in six sees: 1.1 cameras a voxel of six. Each voxel is a bag of four pixels a camera that sees it, each
with its bilinear weight over the number of those cameras, so that the mean is one `embedding_bag` over the rows of the
channels-last feature map; its gradient is another, whose bags are the pixels. Bags run Z, X, Y: their rows are then in memory
what the convolution of the BEV compressor reads.

The buffers of the pairs have the size of all pairs, of which the pages in use alone are ever touched, and the operators
are opaque: so no shape of a compiled graph depends on what the cameras see.
"""

import torch
import torch.nn.functional as F

from common.vox import project, sampling_coordinate
from train.model.bilinear import corners
from train.model.plain_mean import COUNT_FLOOR

CORNERS = 4
# Rows that half-precision volumes are worked at in float32 at a time: such a piece stays in the cache.
PIECE_ROWS = 16384


def pair_mean(feats, pix_T_refs, cams_T_ref, vox_util, flips=None):
    """As camera_mean, for tensors on the CPU."""
    batch, _, channels, height, width = feats.shape
    table = feats.permute(0, 1, 3, 4, 2).reshape(-1, channels)
    flags = (None, None, None) if flips is None else (flips.image, flips.bev_x, flips.bev_z)
    pixels, weights, starts = find_pairs(
        pix_T_refs.detach(),
        cams_T_ref.detach(),
        vox_util.centers_ref(feats.device),
        *flags,
        [vox_util.Z, vox_util.Y, vox_util.X],
        [height, width],
        torch.float64 if feats.dtype == torch.float64 else torch.float32,
    )
    volume = gather_bags(table, pixels, weights, starts)
    return volume.view(batch, vox_util.Z, vox_util.X, vox_util.Y, channels).permute(0, 4, 1, 3, 2)


@torch.library.custom_op("bevshards::find_pairs", mutates_args=(), device_types="cpu")
def find_pairs(
    pix_T_refs: torch.Tensor,
    cams_T_ref: torch.Tensor,
    centers: torch.Tensor,
    image_flip: torch.Tensor | None,
    flip_x: torch.Tensor | None,
    flip_z: torch.Tensor | None,
    grid_shape: list[int],
    feat_hw: list[int],
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bags of weighted pixels, one a voxel.

    Args:
        pix_T_refs, cams_T_ref: (B,S,4,4). centers: (Z*Y*X,3) voxel centres in ref. image_flip: (B,S), flip_x, flip_z: (B,)
        bool, or None each. grid_shape: Z, Y, X. feat_hw: rows and columns of the feature maps. dtype: of the weights.
    Returns:
        pixels: (B*Z*X*Y*S*4,) int32 rows of the (B*S*h*w) table. weights: as many. starts: (B*Z*X*Y + 1,) int32, where each
        bag begins in them. What lies behind the last bag is not initialised.
    """
    (batch, cameras), (depth, height_y, width_x), (height, width) = pix_T_refs.shape[:2], grid_shape, feat_hw
    x, y, valid = project(centers, pix_T_refs.flatten(0, 1), cams_T_ref.flatten(0, 1), feat_hw)
    # Flipped as voxels are: the order of bags is that of the flipped volume.
    valid = valid.view(batch, cameras, depth, height_y, width_x)
    valid = _flip_items(_flip_items(valid, flip_x, -1), flip_z, -3)
    pair = valid.permute(0, 2, 4, 3, 1).contiguous().view(-1).nonzero()[:, 0].int()
    bag = pair // cameras
    source = _source(pair, (batch, cameras, depth, height_y, width_x), flip_x, flip_z)
    image = source // (depth * height_y * width_x)
    x, y = (v.reshape(-1).index_select(0, source) for v in (x, y))
    columns, rows, weights = corners(
        sampling_coordinate(x, width).to(dtype), sampling_coordinate(y, height).to(dtype), feat_hw
    )
    if image_flip is not None:
        columns = torch.where(image_flip.reshape(-1)[image.long(), None], width - 1 - columns, columns)
    pixels = ((image[:, None] * height + rows)[:, :, None] * width + columns[:, None, :]).flatten(1)
    weights = weights.flatten(1)
    counts = (weights != 0).any(1)
    if not bool(counts.all()):  # on the very edge of an image: valid, yet of no weight
        pixels, weights, bag = pixels[counts], weights[counts], bag[counts]
    return _pack(pixels, weights, bag, batch * depth * height_y * width_x, cameras)


def _source(pair, shape, flip_x, flip_z):
    """Numbers of (voxel, camera) pairs in the order B,Z,X,Y,S of the flipped volume -> those in the order B,S,Z,Y,X."""
    batch, cameras, depth, height_y, width_x = shape
    rest, s = pair // cameras, pair % cameras
    rest, y = rest // height_y, rest % height_y
    rest, x = rest // width_x, rest % width_x
    b, z = rest // depth, rest % depth
    if flip_x is not None:
        x = torch.where(flip_x[b.long()], width_x - 1 - x, x)
    if flip_z is not None:
        z = torch.where(flip_z[b.long()], depth - 1 - z, z)
    return (((b * cameras + s) * depth + z) * height_y + y) * width_x + x


def _pack(pixels, weights, bag, bags, cameras):
    """Pairs (n,4) in the order of their bags (n,) -> the buffers that find_pairs returns."""
    sees = torch.bincount(bag, minlength=bags)
    weights = weights / (sees.to(weights.dtype) + COUNT_FLOOR).index_select(0, bag)[:, None]
    starts = torch.zeros(bags + 1, dtype=torch.int32)
    torch.cumsum(sees * CORNERS, 0, dtype=torch.int32, out=starts[1:])
    buffers = []
    for part in (pixels, weights):
        buffers.append(torch.empty(bags * cameras * CORNERS, dtype=part.dtype))
        buffers[-1][: part.numel()] = part.view(-1)
    return *buffers, starts


def _flip_items(x, which, dim):
    return x if which is None else torch.where(which.view(-1, *(1,) * (x.dim() - 1)), x.flip(dim), x)


@find_pairs.register_fake
def _(pix_T_refs, cams_T_ref, centers, image_flip, flip_x, flip_z, grid_shape, feat_hw, dtype):
    bags = pix_T_refs.shape[0] * centers.shape[0]
    size = bags * pix_T_refs.shape[1] * CORNERS
    return (
        centers.new_empty(size, dtype=torch.int32),
        centers.new_empty(size, dtype=dtype),
        centers.new_empty(bags + 1, dtype=torch.int32),
    )


@torch.library.custom_op("bevshards::gather_bags", mutates_args=(), device_types="cpu")
def gather_bags(table: torch.Tensor, pixels: torch.Tensor, weights: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Weighted sums (bags,C) of rows of the table (N,C); pixels, weights and starts as find_pairs gives them.

    Half precision is summed in float32, so that a weight is never rounded.
    """
    if table.dtype == weights.dtype:
        used = int(starts[-1])
        return _bags(table, pixels[:used], weights[:used], starts)
    precise = table.to(weights.dtype)
    out = table.new_empty(len(starts) - 1, table.shape[1])
    for first, piece in enumerate(out.split(PIECE_ROWS)):
        own = starts[first * PIECE_ROWS : first * PIECE_ROWS + len(piece) + 1]
        span = slice(int(own[0]), int(own[-1]))
        piece.copy_(_bags(precise, pixels[span], weights[span], own - own[0]))
    return out


@gather_bags.register_fake
def _(table, pixels, weights, starts):
    return table.new_empty(starts.shape[0] - 1, table.shape[1])


@torch.library.custom_op("bevshards::scatter_bags", mutates_args=(), device_types="cpu")
def scatter_bags(
    grad: torch.Tensor, pixels: torch.Tensor, weights: torch.Tensor, starts: torch.Tensor, rows: int
) -> torch.Tensor:
    """The gradient (rows,C) of gather_bags for its table, given that of its sums: each row gathers from its bags."""
    if grad.dtype == weights.dtype:
        return _scatter(grad, pixels, weights, starts, rows)
    total = torch.zeros(rows, grad.shape[1], dtype=weights.dtype)
    for first, piece in enumerate(grad.split(PIECE_ROWS)):
        own = starts[first * PIECE_ROWS : first * PIECE_ROWS + len(piece) + 1]
        span = slice(int(own[0]), int(own[-1]))
        total += _scatter(piece.to(weights.dtype), pixels[span], weights[span], own - own[0], rows)
    return total.to(grad.dtype)


def _scatter(grad, pixels, weights, starts, rows):
    used = int(starts[-1])
    bag = torch.repeat_interleave(torch.arange(len(grad), dtype=torch.int32), starts.diff(), output_size=used)
    pixels, order = torch.sort(pixels[:used], stable=True)
    own = torch.searchsorted(pixels, torch.arange(rows + 1, dtype=torch.int32), out_int32=True)
    return _bags(grad, bag[order], weights[order], own)


@scatter_bags.register_fake
def _(grad, pixels, weights, starts, rows):
    return grad.new_empty(rows, grad.shape[1])


def _bags(table, rows, weights, starts):
    return F.embedding_bag(
        rows, table.contiguous(), starts, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def _keep(ctx, inputs, output):
    table, *pairs = inputs
    ctx.rows = len(table)
    ctx.save_for_backward(*pairs)


def _gradient(ctx, grad):
    return scatter_bags(grad, *ctx.saved_tensors, ctx.rows), None, None, None


gather_bags.register_autograd(_gradient, setup_context=_keep)
