"""Shards of schema 2, made before there was a schema 3 and kept under tests/data, stay what they were.

They hold the generated world's scenes 1 to 3 of seed 7 at 90x160 pixels, three keyframes each, with every 24th lidar point. The
losses were recorded with the code that wrote the shards.
"""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from preprocess.verify import verify
from tests.conftest import REPOSITORY, call_module

SCHEMA_2 = REPOSITORY / "tests" / "data" / "schema2"
TRAINING = (
    "--encoder_type effb0 --no_pretrained --nworkers 1 --batch_size 2 --grad_acc 1 --res_scale 0.25 --latent_dim 8 --use_radar "
    "--use_lidar --nsweeps 2 --bounds -25,25,-5,5,-25,25 --Z 24 --Y 2 --X 24 --max_iters 3 --val_freq 3 --nworkers_val 1 "
    "--device cpu --precision fp32 --seed 3"
).split()
TRAIN_LOSSES = (10.824446678161621, 11.100364685058594, 11.013059616088867)
VAL_LOSSES = (10.755309104919434, 11.065752029418945)
TOLERANCES = (1e-6, 1e-4, 1e-4)  # relative, update by update


@pytest.fixture
def one_thread():
    """Sums differ with the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def losses_of(shards, out):
    """[losses of the first three updates, losses of the validation batches] of a small training."""
    where = ["--shards", f"{shards}/train-*.tar", "--log_dir", out / "logs", "--ckpt_dir", out / "ckpt"]
    call_module("train.run", *where, *TRAINING)
    [run] = (out / "logs").iterdir()
    both = []
    for part in "tv":
        events = EventAccumulator(str(run / part)).Reload()
        both.append([event.value for event in events.Scalars("stats/total_loss")])
    return both


def test_reads_and_verifies():
    problems, keyframes, shards = verify(SCHEMA_2)
    assert (problems, keyframes, shards) == ([], 9, 2)


def test_trains_to_the_losses_it_had(one_thread, tmp_path):
    train, val = losses_of(SCHEMA_2, tmp_path)
    assert train == [pytest.approx(want, rel=t) for want, t in zip(TRAIN_LOSSES, TOLERANCES, strict=True)]
    assert val == [pytest.approx(want, rel=t) for want, t in zip(VAL_LOSSES, TOLERANCES[1:], strict=True)]
