"""The camera mean on CUDA: one Triton program for a block of voxels and channels, which goes through the cameras.

Each program projects its voxels itself, in float32 and voxel by voxel, so nothing of the volume's size but the result is
ever in memory, and nothing waits for the device as a list of pairs would. A camera that sees none of a block's voxels costs
the projection only. Voxels run Z, X, Y, and channels last, as the convolution of the BEV compressor reads them.

The forward pass has one owner for each output. The backward pass adds to the pixels with float32 atomics, whose order is not
fixed: its last bits differ from run to run. Where torch is asked for deterministic algorithms, camera_mean takes
portable_mean instead.
"""

import torch
import triton
import triton.language as tl

from common.vox import DEPTH_FLOOR_M
from train.model.camera_mean.reference import COUNT_FLOOR

# Measured on an H100, a batch of eight with 128 channels: the gather takes 2.11, 1.32 and 1.11 ms with 8, 16 and 32 voxels, the
# scatter 3.33, 2.50 and 2.35, although with 8 twice as many of a multiprocessor's warps are in flight as with 16.
BLOCK_VOXELS = 32
BLOCK_CHANNELS = 128
NUM_WARPS = 4
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEPTH_FLOOR = tl.constexpr(DEPTH_FLOOR_M)
FLOOR = tl.constexpr(COUNT_FLOOR)


@triton.jit
def _centers(block, flip_x, flip_z, b, affine, Z: tl.constexpr, Y: tl.constexpr, X: tl.constexpr, BLOCK: tl.constexpr):
    """Voxels of the block, whether they are in the grid, and the ref coordinates that flips give them."""
    voxel = block * BLOCK + tl.arange(0, BLOCK)
    y = voxel % Y
    x = (voxel // Y) % X
    z = voxel // (Y * X)
    x = tl.where(tl.load(flip_x + b) != 0, X - 1 - x, x)
    z = tl.where(tl.load(flip_z + b) != 0, Z - 1 - z, z)
    # scale x, y, z, then shift x, y, z, of mem = ref * scale + shift
    x_ref = (x.to(tl.float32) - tl.load(affine + 3)) / tl.load(affine)
    y_ref = (y.to(tl.float32) - tl.load(affine + 4)) / tl.load(affine + 1)
    z_ref = (z.to(tl.float32) - tl.load(affine + 5)) / tl.load(affine + 2)
    return voxel, voxel < Z * Y * X, x_ref, y_ref, z_ref


@triton.jit
def _row(matrix, row: tl.constexpr, x, y, z):
    """One row of a 4x4 matrix times (x, y, z, 1)."""
    product = x * tl.load(matrix + 4 * row) + y * tl.load(matrix + 4 * row + 1) + z * tl.load(matrix + 4 * row + 2)
    return product + tl.load(matrix + 4 * row + 3)


@triton.jit
def _axis(pixel, size: tl.constexpr):
    """The first of the two pixels beside a coordinate, and the weights of both, 0 outside the image."""
    span: tl.constexpr = size - 1 if size > 1 else 1
    grid = tl.minimum(tl.maximum(2.0 * pixel / span - 1.0, -2.0), 2.0)
    sample = ((grid + 1.0) * size - 1.0) / 2.0
    first = tl.floor(sample)
    part = sample - first
    index = first.to(tl.int32)
    low = tl.where((index >= 0) & (index < size), 1.0 - part, 0.0)
    high = tl.where((index >= -1) & (index < size - 1), part, 0.0)
    return index, low, high


@triton.jit
def _taps(pix, cam, inside, x_ref, y_ref, z_ref, H: tl.constexpr, W: tl.constexpr):
    """First column and row of each voxel's four pixels, the weights of both columns and both rows, and whether it is seen."""
    depth = tl.maximum(_row(pix, 2, x_ref, y_ref, z_ref), DEPTH_FLOOR)
    x = _row(pix, 0, x_ref, y_ref, z_ref) / depth
    y = _row(pix, 1, x_ref, y_ref, z_ref) / depth
    seen = inside & (x > -0.5) & (x < W - 0.5) & (y > -0.5) & (y < H - 0.5) & (_row(cam, 2, x_ref, y_ref, z_ref) > 0)
    column, left, right = _axis(x, W)
    row, top, bottom = _axis(y, H)
    # As the four products are: a weight may round to nothing where neither factor does.
    weight = tl.maximum(tl.maximum(left * top, right * top), tl.maximum(left * bottom, right * bottom))
    return column, row, left, right, top, bottom, seen & (weight != 0)


@triton.jit
def _tap(columns, rows, dx: tl.constexpr, dy: tl.constexpr, flip, H: tl.constexpr, W: tl.constexpr):
    """The number, within its image, of one of the four pixels, on the nearest one where it is outside."""
    column = tl.minimum(tl.maximum(columns + dx, 0), W - 1)
    row = tl.minimum(tl.maximum(rows + dy, 0), H - 1)
    return row * W + tl.where(flip, W - 1 - column, column)


@triton.jit
def gather_kernel(
    feats, pix, cam, affine, flip_image, flip_x, flip_z, out,
    S: tl.constexpr, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    Z: tl.constexpr, Y: tl.constexpr, X: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """feats (B,S,H,W,C), pix and cam (B,S,4,4) float32, flips uint8 (B,S), (B,), (B,) -> out (B,Z,X,Y,C)."""
    b = tl.program_id(2)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    own = channels < C
    voxel, inside, x_ref, y_ref, z_ref = _centers(tl.program_id(0), flip_x, flip_z, b, affine, Z, Y, X, BLOCK_V)
    total = tl.zeros((BLOCK_V, BLOCK_C), tl.float32)
    count = tl.zeros((BLOCK_V,), tl.float32)
    for s in range(S):
        image = b * S + s
        column, row, left, right, top, bottom, seen = _taps(
            pix + image * 16, cam + image * 16, inside, x_ref, y_ref, z_ref, H, W
        )
        if tl.max(seen.to(tl.int32), 0) > 0:
            count += seen.to(tl.float32)
            flip = tl.load(flip_image + image) != 0
            base = feats + image.to(tl.int64) * (H * W * C)
            for corner in tl.static_range(4):
                weight = (right if corner % 2 else left) * (bottom if corner // 2 else top)
                pixel = _tap(column, row, corner % 2, corner // 2, flip, H, W)
                take = (seen & (weight != 0))[:, None] & own[None, :]
                values = tl.load(base + pixel[:, None] * C + channels[None, :], mask=take, other=0.0)
                total += weight[:, None] * values.to(tl.float32)
    total = total / (count + FLOOR)[:, None]
    place = out + b.to(tl.int64) * (Z * Y * X * C) + voxel[:, None] * C + channels[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=inside[:, None] & own[None, :])


@triton.jit
def scatter_kernel(
    grad, pix, cam, affine, flip_image, flip_x, flip_z, out,
    S: tl.constexpr, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    Z: tl.constexpr, Y: tl.constexpr, X: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """grad (B,Z,X,Y,C) of gather_kernel's out, and its other arguments -> added to out (B,S,H,W,C) float32."""
    b = tl.program_id(2)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    own = channels < C
    voxel, inside, x_ref, y_ref, z_ref = _centers(tl.program_id(0), flip_x, flip_z, b, affine, Z, Y, X, BLOCK_V)
    count = tl.zeros((BLOCK_V,), tl.float32)
    for s in range(S):
        image = b * S + s
        taps = _taps(pix + image * 16, cam + image * 16, inside, x_ref, y_ref, z_ref, H, W)
        count += taps[6].to(tl.float32)
    place = grad + b.to(tl.int64) * (Z * Y * X * C) + voxel[:, None] * C + channels[None, :]
    mine = tl.load(place, mask=(inside & (count > 0))[:, None] & own[None, :], other=0.0)
    count += FLOOR
    for s in range(S):
        image = b * S + s
        column, row, left, right, top, bottom, seen = _taps(
            pix + image * 16, cam + image * 16, inside, x_ref, y_ref, z_ref, H, W
        )
        if tl.max(seen.to(tl.int32), 0) > 0:
            flip = tl.load(flip_image + image) != 0
            base = out + image.to(tl.int64) * (H * W * C)
            for corner in tl.static_range(4):
                weight = (right if corner % 2 else left) * (bottom if corner // 2 else top) / count
                pixel = _tap(column, row, corner % 2, corner // 2, flip, H, W)
                give = (seen & (weight != 0))[:, None] & own[None, :]
                values = weight[:, None] * mine.to(tl.float32)
                tl.atomic_add(base + pixel[:, None] * C + channels[None, :], values, mask=give, sem="relaxed")


def triton_mean(feats, pix_T_refs, cams_T_ref, vox_util, flips=None):
    """As camera_mean, for float32, bfloat16 or float16 features on a CUDA device."""
    batch, cameras = feats.shape[:2]
    if flips is None:
        image, flip_x, flip_z = (
            feats.new_zeros(shape, dtype=torch.uint8) for shape in ((batch, cameras), (batch,), (batch,))
        )
    else:
        image, flip_x, flip_z = (v.to(torch.uint8) for v in (flips.image, flips.bev_x, flips.bev_z))
    volume = gather_voxels(
        feats.permute(0, 1, 3, 4, 2).contiguous(),
        pix_T_refs.detach().float().contiguous(),
        cams_T_ref.detach().float().contiguous(),
        vox_util.affine(feats.device),
        image.contiguous(),
        flip_x,
        flip_z,
        [vox_util.Z, vox_util.Y, vox_util.X],
    )
    return volume.permute(0, 4, 1, 3, 2)


@torch.library.custom_op("bevshards::gather_voxels", mutates_args=())
def gather_voxels(
    feats: torch.Tensor,
    pix: torch.Tensor,
    cam: torch.Tensor,
    affine: torch.Tensor,
    flip_image: torch.Tensor,
    flip_x: torch.Tensor,
    flip_z: torch.Tensor,
    grid_shape: list[int],
) -> torch.Tensor:
    """gather_kernel on all voxels; (B,Z,X,Y,C) in the features' dtype. All tensors are contiguous."""
    out = feats.new_empty(_volume_shape(feats, grid_shape))
    tensors = (feats, pix, cam, affine, flip_image, flip_x, flip_z, out)
    _launch(gather_kernel, feats, tensors, feats.shape, grid_shape)
    return out


@gather_voxels.register_fake
def _(feats, pix, cam, affine, flip_image, flip_x, flip_z, grid_shape):
    return feats.new_empty(_volume_shape(feats, grid_shape))


@torch.library.custom_op("bevshards::scatter_voxels", mutates_args=())
def scatter_voxels(
    grad: torch.Tensor,
    pix: torch.Tensor,
    cam: torch.Tensor,
    affine: torch.Tensor,
    flip_image: torch.Tensor,
    flip_x: torch.Tensor,
    flip_z: torch.Tensor,
    grid_shape: list[int],
    feats_shape: list[int],
) -> torch.Tensor:
    """scatter_kernel on all voxels: the gradient of gather_voxels for its features, in the dtype of grad."""
    out = grad.new_zeros(feats_shape, dtype=torch.float32)
    tensors = (grad, pix, cam, affine, flip_image, flip_x, flip_z, out)
    _launch(scatter_kernel, grad, tensors, feats_shape, grid_shape)
    return out.to(grad.dtype)


@scatter_voxels.register_fake
def _(grad, pix, cam, affine, flip_image, flip_x, flip_z, grid_shape, feats_shape):
    return grad.new_empty(feats_shape)


def _volume_shape(feats, grid_shape):
    depth, height, width = grid_shape
    return feats.shape[0], depth, width, height, feats.shape[4]


def _launch(kernel, on, tensors, feats_shape, grid_shape):
    batch, cameras, height, width, channels = feats_shape
    block = min(BLOCK_CHANNELS, triton.next_power_of_2(channels))
    voxels = grid_shape[0] * grid_shape[1] * grid_shape[2]
    blocks = (triton.cdiv(voxels, BLOCK_VOXELS), triton.cdiv(channels, block), batch)
    with torch.cuda.device(on.device) if on.is_cuda else torch.no_grad():  # on the CPU under Triton's interpreter
        sizes = (cameras, channels, height, width, *grid_shape, BLOCK_VOXELS, block)
        kernel[blocks](*tensors, *sizes, num_warps=NUM_WARPS, enable_fp_fusion=True)


def _keep(ctx, inputs, output):
    feats, *geometry, grid_shape = inputs
    ctx.grid_shape, ctx.feats_shape = grid_shape, list(feats.shape)
    ctx.save_for_backward(*geometry)


def _gradient(ctx, grad):
    out = scatter_voxels(grad.contiguous(), *ctx.saved_tensors, ctx.grid_shape, ctx.feats_shape)
    return out, *(None,) * 7


gather_voxels.register_autograd(_gradient, setup_context=_keep)
