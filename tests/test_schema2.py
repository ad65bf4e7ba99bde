"""Shards of schema 2, made before there was a schema 3 and kept under tests/data, stay what they were.

They hold the generated world's scenes 1 to 3 of seed 7 at 90x160 pixels, three keyframes each, with every 24th lidar point. The
losses were recorded with the code that wrote the shards.
"""

import hashlib
import io
import json
import tarfile

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.conditions import conditions_of
from common.record import encode_json
from common.rig import rig_of
from common.shard_index import build_index, dump_index
from preprocess.verify import verify
from tests.conftest import REPOSITORY, call_module
from tests.index_files import index_path
from train.data import compile_data
from train.data.label_spec import labels_side_by_side
from train.evaluation.evaluator import evaluate
from train.evaluation.files import as_json
from train.model import Needs
from train.options import Options
from train.processes.distributed import World

SCHEMA_2 = REPOSITORY / "tests" / "data" / "schema2"
TRAINING = (
    "--encoder_type effb0 --no_pretrained --nworkers 1 --batch_size 2 --grad_acc 1 --res_scale 0.25 --latent_dim 8 --use_radar "
    "--use_lidar --nsweeps 2 --bounds -25,25,-5,5,-25,25 --Z 24 --Y 2 --X 24 --max_iters 3 --val_freq 3 --nworkers_val 1 "
    "--device cpu --precision fp32 --seed 3"
).split()
TRAIN_LOSSES = (10.824446678161621, 11.100364685058594, 11.013059616088867)
VAL_LOSSES = (10.755309104919434, 11.065752029418945)
EVALUATION = (57473, "d74086f3a4843a078fae4afa28a6bc936b3cc84c31a75144962ae2fd458f3e81")  # bytes and SHA-256
TOLERANCES = (1e-6, 1e-4, 1e-4)  # relative, update by update


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a small training on the shards, in one thread: sums differ with the number of threads."""
    out, before = tmp_path_factory.mktemp("schema2"), torch.get_num_threads()
    where = ["--shards", f"{SCHEMA_2}/train-*.tar", "--log_dir", out / "logs", "--ckpt_dir", out / "ckpt"]
    torch.set_num_threads(1)
    try:
        call_module("train.run", *where, *TRAINING)
    finally:
        torch.set_num_threads(before)
    return out


def losses(run, part):
    """Values of a run's curve of the loss: t of training, v of validation."""
    [folder] = (run / "logs").iterdir()
    events = EventAccumulator(str(folder / part)).Reload()
    return [event.value for event in events.Scalars("stats/total_loss")]


def test_reads_and_verifies():
    problems, keyframes, shards = verify(SCHEMA_2)
    assert (problems, keyframes, shards) == ([], 9, 2)


def test_trains_to_the_losses_it_had(run):
    for part, wanted, tolerances in (("t", TRAIN_LOSSES, TOLERANCES), ("v", VAL_LOSSES, TOLERANCES[1:])):
        assert losses(run, part) == [pytest.approx(w, rel=t) for w, t in zip(wanted, tolerances, strict=True)]


def as_schema_3(tar, out):
    """A copy of a shard of schema 2 as schema 3, in the folder `out`, with its index."""
    with tarfile.open(tar) as old, tarfile.open(out / tar.name, "w", format=tarfile.USTAR_FORMAT) as new:
        for member in old:
            data = old.extractfile(member).read()
            if member.name.endswith("sample.json"):
                sample = json.loads(data)
                sample["facts"]["rig"] = rig_of(sample["facts"], 2).as_dict()
                sample |= {"schema": 3, "conditions": conditions_of(sample["scene"]["description"])}
                data = encode_json(sample)
                member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    index_path(out / tar.name).write_bytes(dump_index(build_index(out / tar.name)))


def test_evaluates_to_the_figures_of_schema_3(run, tmp_path):
    (tmp_path / "shards").mkdir()
    as_schema_3(SCHEMA_2 / "val-000.tar", tmp_path / "shards")
    bodies = []
    [folder] = (run / "ckpt").iterdir()
    for name, shards in (("2", SCHEMA_2), ("3", tmp_path / "shards")):
        options = ["--device", "cpu", "--nworkers", "0", "--pictures", "0", "--out", tmp_path / name]
        call_module("train.evaluate", folder, "--shards", f"{shards}/val-*.tar", *options)
        body = json.loads((tmp_path / name / "eval.json").read_bytes())
        bodies.append({key: value for key, value in body.items() if key not in ("schema", "about")})
    assert bodies[0] == bodies[1] and bodies[0]


class Returns(torch.nn.Module):
    """A network without weights: a vehicle is where lidar returns something."""

    needs = Needs(cameras=False, lidar="voxels", radar=False)

    def forward(self, batch, grid):
        return {"seg": batch.lidar_voxels[:, 0].sum(3) - 0.5}


def test_an_evaluation_of_one_class_is_what_it_was_to_the_byte():
    """eval.json without schema and about, as the code before there were several classes wrote it."""
    options = Options(
        bounds=(-50.0, 50.0, -5.0, 5.0, -50.0, 50.0), Z=50, Y=4, X=50, nsweeps=1, use_lidar=True, device="cpu"
    )
    chosen = dict(labels=labels_side_by_side(options), use_cameras=False, use_radar=False)
    place = (None, options.bounds, (options.Z, options.Y, options.X), 2, 0)
    _, val = compile_data(None, f"{SCHEMA_2}/val-000.tar", options.data_aug_conf(), *place, **chosen)
    content = as_json(evaluate(Returns(), val, val.stage.vox_util, World(0, 1, torch.device("cpu"))))
    del content["schema"], content["about"]
    text = json.dumps(content, indent=1, allow_nan=False)
    assert (len(text), hashlib.sha256(text.encode()).hexdigest()) == EVALUATION
