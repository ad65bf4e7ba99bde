"""python -m train.demo: a small training on given shards, its IoU before and after, and one picture."""

from pathlib import Path

import click
import cv2
import numpy as np
import torch
from PIL import Image

from common.geometry import apply_4x4, merge_rt, rigid_inverse
from train.command import fail_in_one_line
from train.distributed import pick_device
from train.evaluate import evaluate
from train.forward import run_network
from train.metrics import iou
from train.options import Options
from train.run import train
from train.setup import make_loaders, make_network

_EDGES = ((0, 1), (1, 3), (3, 2), (2, 0), (4, 5), (5, 7), (7, 6), (6, 4), (0, 4), (1, 5), (2, 6), (3, 7))
_CORNERS = torch.tensor([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])


def _options(shards, out, steps):
    return Options(
        exp_name="demo",
        shards=(f"{shards}/train-*.tar",),
        val_shards=(f"{shards}/val-*.tar",),
        log_dir=f"{out}/logs",
        ckpt_dir=f"{out}/checkpoints",
        max_iters=steps,
        save_freq=steps,
        val_freq=20,
        batch_size=2,
        grad_acc=1,
        lr=1e-3,
        nworkers=2,
        res_scale=0.5,
        use_lidar=True,
        nsweeps=1,
        encoder_type="effb0",
        no_pretrained=True,
        latent_dim=64,
        bounds=(-25.6, 25.6, -5.0, 5.0, -25.6, 25.6),
        Z=64,
        Y=4,
        X=64,
    )


@click.command()
@click.option("--shards", required=True)
@click.option("--out", default="demo", show_default=True, help="folder of logs and checkpoints")
@click.option("--picture", default="demo.png", show_default=True)
@click.option("--steps", default=240, show_default=True, type=click.IntRange(1))
def main(shards, out, picture, steps):
    """Train for some minutes on the CPU, evaluate, and draw one sample of the val shards."""
    fail_in_one_line(lambda: _run(_options(shards, out, steps), picture))


def _run(options, picture):
    device = pick_device(options.device)
    model, options = make_network(options, device=device)
    _, loader, vox_util = make_loaders(options, device)
    before = iou(evaluate(model, loader, vox_util))
    path = train(options)
    model.load_state_dict(torch.load(path, map_location=device, weights_only=True)["model_state_dict"])
    after = iou(evaluate(model, loader, vox_util))
    guess = torch.zeros(2, dtype=torch.float64)
    best = None
    for batch in loader:
        seg, valid = batch.seg_bev, batch.valid_bev
        guess += torch.stack([(seg * valid).sum(), valid.sum()]).double().cpu()
        if best is None or seg[0].sum() > best.seg_bev[0].sum():
            best = batch
    draw(best, model, vox_util, picture)
    click.echo(f"picture: {picture}")
    click.echo(f"val IoU: {before:.3f} before, {after:.3f} after (all-vehicle guess {iou(guess):.3f})")


def draw(batch, model, vox_util, path):
    """Write a PNG: the six cameras of the first sample with its boxes, BEV truth beside BEV prediction."""
    model.eval()
    with torch.no_grad():
        predicted = run_network(model, batch, vox_util)["seg"].sigmoid()[0, 0]
    images = [_with_boxes(batch, s) for s in range(batch.imgs.shape[2])]
    order = np.argsort(
        [("FRONT_LEFT", "FRONT", "FRONT_RIGHT").index(n[4:]) if "FRONT" in n else 9 for n in batch.cams[0]]
    )
    rows = [np.concatenate([images[i] for i in group], 1) for group in (order[:3], order[3:])]
    cameras = np.concatenate(rows)
    valid = batch.valid_bev[0, 0, 0]
    maps = [_map(batch.seg_bev[0, 0, 0], valid), _map(predicted, valid)]
    size = cameras.shape[1] // 2
    maps = [np.asarray(Image.fromarray(m).resize((size, size), Image.Resampling.NEAREST)) for m in maps]
    bottom = np.concatenate(maps, 1)
    bottom = np.pad(bottom, ((0, 0), (0, cameras.shape[1] - bottom.shape[1]), (0, 0)))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([cameras, bottom])).save(path)


def _map(values, valid):
    """(Z, X) in [0, 1] -> (Z, X, 3) uint8, forward up; masked cells are tinted."""
    gray = (values * 255).byte()
    image = torch.stack([gray, gray, torch.where(valid > 0, gray, torch.full_like(gray, 120))], -1)
    return image.flip(0).cpu().numpy()


def _with_boxes(batch, slot):
    """(H, W, 3) uint8 image of one camera with the boxes in front of it."""
    image = (batch.imgs[0, 0, slot].permute(1, 2, 0) * 255).byte().cpu().numpy().copy()
    cam_T_ego = rigid_inverse(merge_rt(batch.rots[0, 0, slot], batch.trans[0, 0, slot]))
    for box in batch.lrtlist[0, 0, : int(batch.num_boxes[0, 0])]:
        corners = apply_4x4(cam_T_ego @ box[3:].view(4, 4), _CORNERS.to(box.device) * box[:3])
        if corners[:, 2].min() < 0.5:
            continue
        pixels = corners @ batch.intrins[0, 0, slot, :3, :3].T
        pixels = (pixels[:, :2] / pixels[:, 2:]).round().int().tolist()
        for a, b in _EDGES:
            cv2.line(image, pixels[a], pixels[b], (0, 255, 0), 1)
    return image


if __name__ == "__main__":
    main()
