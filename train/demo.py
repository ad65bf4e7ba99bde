"""python -m train.demo: a small training on given shards, its IoU before and after, and one picture."""

from dataclasses import replace
from pathlib import Path

import click

from common.spelling import EITHER, Command, spelled
from train.command import fail_in_one_line
from train.options import Options
from train.paths import check_paths


def options_of(shards, out, steps):
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


@click.command(cls=Command, context_settings=EITHER)
@click.option("--shards", required=True)
@click.option("--out", default="demo", show_default=True, help="folder of logs and checkpoints")
@click.option("--picture", default="demo.png", show_default=True)
@click.option("--steps", default=240, show_default=True, type=click.IntRange(1))
@click.option("--precision", default="fp32", show_default=True, help="bf16 or fp32")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
def main(shards, out, picture, steps, precision, seed):
    """Train for some minutes on the CPU, evaluate, draw one sample of the val shards, and make the page of the run."""
    options = replace(options_of(shards, out, steps), precision=precision, seed=seed)
    fail_in_one_line(lambda: check_paths(options))
    from train import demo_run  # loads torch, which takes seconds

    fail_in_one_line(lambda: demo_run.run(options, picture, Path(out)))


if __name__ == "__main__":
    main(prog_name=spelled("train.demo"))
