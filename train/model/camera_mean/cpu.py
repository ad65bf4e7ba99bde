"""The camera mean on the CPU: the (voxel, camera) pairs that see each other, found once per batch, then weighted gather-sums.

About one pair in six sees: 1.1 cameras of six per voxel. Each voxel is a bag of four pixels per camera that sees it, each
with its bilinear weight over the number of those cameras, so that the mean is one `embedding_bag` over the rows of the
channels-last feature map; its gradient is another, whose bags are the pixels. Bags run Y, B, Z, X: the rows of one height are
then in memory what a convolution of that height reads, and the compressor's convolution goes height by height, so that
nobody holds the whole volume, 164 MB per sample of the benchmark in float32, or its gradient, as much again.

The buffers of the pairs have the size of all pairs, of which the pages in use alone are ever touched, and the operators
are opaque: so no shape of a compiled graph depends on what the cameras see.
"""

import torch
import torch.nn.functional as F

from common.vox import project, sampling_coordinate
from train.model.camera_mean.bilinear import corners
from train.model.camera_mean.reference import COUNT_FLOOR

CORNERS = 4
# Rows that half-precision volumes are worked at in float32 at a time: such a piece stays in the cache.
PIECE_ROWS = 16384


def cpu_mean(feats, pix_T_refs, cams_T_ref, vox_util, flips=None, lenses=None):
    """As camera_mean, for tensors on the CPU."""
    table, *pairs = _table_and_pairs(feats, pix_T_refs, cams_T_ref, vox_util, flips, lenses)
    volume = gather_bags(table, *pairs)
    return volume.view(vox_util.Y, feats.shape[0], vox_util.Z, vox_util.X, -1).permute(1, 4, 2, 0, 3)


def cpu_conv(feats, pix_T_refs, cams_T_ref, vox_util, kernels, flips=None, lenses=None):
    """As convolved_mean, for tensors on the CPU."""
    table, *pairs = _table_and_pairs(feats, pix_T_refs, cams_T_ref, vox_util, flips, lenses)
    return HeightByHeight.apply(table, kernels.to(table.dtype), *pairs, (feats.shape[0], vox_util.Z, vox_util.X))


class HeightByHeight(torch.autograd.Function):
    """Sum over heights of the convolution of each one's plane of the mean.

    No pass holds more than one plane and its gradient besides the result: the backward pass gathers each again.
    """

    @staticmethod
    def forward(ctx, table, kernels, pixels, weights, starts, shape):
        """table (N,C), kernels (Y,O,C,k,k), pairs as find_pairs gives them, shape B, Z, X -> (B,O,Z,X)."""
        ctx.save_for_backward(table, kernels, pixels, weights, starts)
        ctx.shape = shape
        total = 0
        for own, kernel in zip(_by_height(starts, kernels.shape[0]), kernels, strict=True):
            plane = _plane(gather_bags(table, pixels, weights, own), shape)
            total = F.conv2d(plane, kernel, padding=kernel.shape[-1] // 2).to(weights.dtype) + total
        # Compiled by torch 2.11, a result that is another's alias, as .to(the same dtype) is, would get no gradient.
        return total if total.dtype == table.dtype else total.to(table.dtype)

    @staticmethod
    def backward(ctx, grad):
        table, kernels, pixels, weights, starts = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        padding = [kernels.shape[-1] // 2] * 2
        of_table, of_kernels, wanted = 0, [], ctx.needs_input_grad[0]
        for own, kernel in zip(_by_height(starts, kernels.shape[0]), kernels, strict=True):
            plane = _plane(gather_bags(table, pixels, weights, own), ctx.shape)
            # Stride and dilation 1, not transposed, one group; of input and weight, not of a bias.
            of_plane, of_kernel, _ = torch.ops.aten.convolution_backward(
                grad, plane, kernel, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [wanted, True, False]
            )
            del plane
            of_kernels.append(of_kernel)
            if wanted:
                rows = of_plane.permute(0, 2, 3, 1).reshape(-1, table.shape[1])
                of_table = scatter_bags(rows, pixels, weights, own, table.shape[0]).to(weights.dtype) + of_table
        return of_table.to(table.dtype) if wanted else None, torch.stack(of_kernels), None, None, None, None


def _by_height(starts, heights):
    """The starts of each height's bags."""
    bags = (starts.shape[0] - 1) // heights
    return [starts[y * bags : (y + 1) * bags + 1] for y in range(heights)]


def _plane(rows, shape):
    """(B*Z*X,C) -> (B,C,Z,X), channels last."""
    return rows.view(*shape, -1).permute(0, 3, 1, 2)


def _table_and_pairs(feats, pix_T_refs, cams_T_ref, vox_util, flips, lenses):
    """The features (B*S*h*w,C), one pixel per row, and what find_pairs gives."""
    table = feats.permute(0, 1, 3, 4, 2).reshape(-1, feats.shape[2])
    flags = (None, None, None) if flips is None else (flips.image, flips.bev_x, flips.bev_z)
    pairs = find_pairs(
        pix_T_refs.detach(),
        cams_T_ref.detach(),
        vox_util.centers_ref(feats.device),
        *flags,
        [vox_util.Z, vox_util.Y, vox_util.X],
        list(feats.shape[-2:]),
        torch.float64 if feats.dtype == torch.float64 else torch.float32,
        None if lenses is None else lenses.detach(),
    )
    return table, *pairs


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
    lenses: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bags of weighted pixels, one a voxel.

    Args:
        pix_T_refs, cams_T_ref: (B,S,4,4). centers: (Z*Y*X,3) voxel centres in ref. image_flip: (B,S), flip_x, flip_z: (B,)
        bool, or None each. grid_shape: Z, Y, X. feat_hw: rows and columns of the feature maps. dtype: of the weights.
    Returns:
        pixels: (Y*B*Z*X*S*4,) int32 rows of the (B*S*h*w) table. weights: as many. starts: (Y*B*Z*X + 1,) int32, where each
        bag begins in them. What lies behind the last bag is not initialised.
    """
    (batch, cameras), (depth, height_y, width_x), (height, width) = pix_T_refs.shape[:2], grid_shape, feat_hw
    lenses = None if lenses is None else lenses.flatten(0, 1)
    x, y, valid = project(centers, pix_T_refs.flatten(0, 1), cams_T_ref.flatten(0, 1), feat_hw, lenses)
    # Flipped as voxels are: the order of bags is that of the flipped volume.
    valid = valid.view(batch, cameras, depth, height_y, width_x)
    valid = _flip_items(_flip_items(valid, flip_x, -1), flip_z, -3)
    pair = valid.permute(3, 0, 2, 4, 1).contiguous().view(-1).nonzero()[:, 0].int()
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
    """Numbers of (voxel, camera) pairs in the order Y,B,Z,X,S of the flipped volume -> those in the order B,S,Z,Y,X."""
    batch, cameras, depth, height_y, width_x = shape
    rest, s = pair // cameras, pair % cameras
    rest, x = rest // width_x, rest % width_x
    rest, z = rest // depth, rest % depth
    y, b = rest // batch, rest % batch
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
def _(pix_T_refs, cams_T_ref, centers, image_flip, flip_x, flip_z, grid_shape, feat_hw, dtype, lenses=None):
    bags = pix_T_refs.shape[0] * centers.shape[0]
    size = bags * pix_T_refs.shape[1] * CORNERS
    return (
        centers.new_empty(size, dtype=torch.int32),
        centers.new_empty(size, dtype=dtype),
        centers.new_empty(bags + 1, dtype=torch.int32),
    )


@torch.library.custom_op("bevshards::gather_bags", mutates_args=(), device_types="cpu")
def gather_bags(table: torch.Tensor, pixels: torch.Tensor, weights: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Weighted sums (bags,C) of rows of the table (N,C); pixels and weights as of find_pairs, starts of any run of its bags.

    Half precision is summed in float32, so that a weight is never rounded.
    """
    if table.dtype == weights.dtype:
        return _bags(table, *_run(pixels, weights, starts))
    precise = table.to(weights.dtype)
    out = table.new_empty(len(starts) - 1, table.shape[1])
    for first, piece in enumerate(out.split(PIECE_ROWS)):
        own = starts[first * PIECE_ROWS : first * PIECE_ROWS + len(piece) + 1]
        piece.copy_(_bags(precise, *_run(pixels, weights, own)))
    return out


def _run(pixels, weights, starts):
    """The bags between the first and the last of starts, which then begin at 0."""
    span = slice(int(starts[0]), int(starts[-1]))
    return pixels[span], weights[span], starts - starts[0]


@gather_bags.register_fake
def _(table, pixels, weights, starts):
    return table.new_empty(starts.shape[0] - 1, table.shape[1])


@torch.library.custom_op("bevshards::scatter_bags", mutates_args=(), device_types="cpu")
def scatter_bags(
    grad: torch.Tensor, pixels: torch.Tensor, weights: torch.Tensor, starts: torch.Tensor, rows: int
) -> torch.Tensor:
    """The gradient (rows,C) of gather_bags for its table, given that of its sums: each row gathers from its bags."""
    if grad.dtype == weights.dtype:
        return _scatter(grad, *_run(pixels, weights, starts), rows)
    total = torch.zeros(rows, grad.shape[1], dtype=weights.dtype)
    for first, piece in enumerate(grad.split(PIECE_ROWS)):
        own = starts[first * PIECE_ROWS : first * PIECE_ROWS + len(piece) + 1]
        total += _scatter(piece.to(weights.dtype), *_run(pixels, weights, own), rows)
    return total.to(grad.dtype)


def _scatter(grad, pixels, weights, starts, rows):
    bag = torch.repeat_interleave(torch.arange(len(grad), dtype=torch.int32), starts.diff(), output_size=len(pixels))
    pixels, order = torch.sort(pixels, stable=True)
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
    ctx.rows = table.shape[0]
    ctx.save_for_backward(*pairs)


def _gradient(ctx, grad):
    return scatter_bags(grad, *ctx.saved_tensors, ctx.rows), None, None, None


gather_bags.register_autograd(_gradient, setup_context=_keep)
