"""A network of two past keyframes, the ego's frame, three classes and options of its own, through the interface alone."""

import dataclasses
import json
from dataclasses import dataclass, field

import pytest
import torch
from click.testing import CliRunner

from common.geometry import scale_intrinsics, similarity_inverse
from tests.conftest import call_module
from train import checkpoint, show
from train.classes import ClassSpec
from train.model import Needs
from train.model.points import lidar_points, ref_T_cams
from train.options import Options
from train.run import train

CLASSES = (
    ClassSpec("car", ("vehicle.car",)),
    ClassSpec("large", ("vehicle.truck", "vehicle.bus", "vehicle.trailer"), 2.0),
    ClassSpec("person", ("human",)),
)


@dataclass(frozen=True)
class Own:
    width: int = field(default=4, metadata={"help": "channels of the features"})
    share: float = 0.5


class Past(torch.nn.Module):
    """Camera features of three keyframes, each unprojected where its cameras were and moved to where the car is now."""

    options_class = Own

    def __init__(self, options, grid):
        super().__init__()
        own = options.model_args
        self.needs = Needs(lidar="points", radar=False, sweeps=1, past=2, train_only=("lidar",))
        self.image = torch.nn.Conv2d(3, own.width, 7, 8, 3)
        self.bev = torch.nn.Conv2d(3 * own.width * grid.Y, 1 + 3, 3, 1, 1)
        self.share, self.heights = own.share, []

    def forward(self, batch, grid):
        assert batch.class_names == ("car", "large", "person") and batch.is_real[:, 0].all()
        assert (batch.lidar_data is not None) is self.training
        seen = torch.cat([self._seen(batch, t, grid) for t in range(3)], 1)
        maps = self.bev(seen.transpose(2, 3).flatten(1, 2))
        return {"seg": maps[:, :3], "center": maps[:, 3:].sigmoid()}

    def _seen(self, batch, t, grid):
        """(B,width,Z,Y,X) of the keyframe t before now, in the grid's frame of now; nothing where there is no such keyframe."""
        images = batch.imgs[:, t]
        feats = self.image(images.flatten(0, 1) - 0.5)
        scale = feats.shape[-1] / images.shape[-1], feats.shape[-2] / images.shape[-2]
        with torch.autocast(feats.device.type, enabled=False):
            # The grid at t from the grid now: both are the egos' in other axes.
            then_T_now = batch.ref_T_ego[:, t] @ batch.ego_T_now[:, t] @ similarity_inverse(batch.ref_T_ego[:, 0])
            cam_T_ref = similarity_inverse(ref_T_cams(batch, t)) @ then_T_now[:, None]
            pix_T_ref = scale_intrinsics(batch.intrins[:, t], *scale) @ cam_T_ref
            volume = grid.unproject_image_to_mem(feats.float(), pix_T_ref.flatten(0, 1), cam_T_ref.flatten(0, 1))
        return volume.unflatten(0, images.shape[:2]).mean(1) * batch.is_real[:, t].view(-1, 1, 1, 1, 1)

    def loss(self, outputs, batch, normaliser):
        """Cross-entropy of all classes, and of the heights of lidar points, which training alone sees."""
        seg, valid = batch.seg_bev[:, 0], batch.valid_bev[:, 0]
        each = torch.nn.functional.binary_cross_entropy_with_logits(outputs["seg"], seg, reduction="none")
        loss = (each * valid).sum() / normaliser(valid.sum())
        height = loss.new_zeros(())
        if self.training:
            points = lidar_points(batch)
            height = (points.xyz[..., 1] * points.valid).mean()
        return loss + self.share * height.clamp(-1, 1), {"all_classes": loss}


def options_of(shards, out, **more):
    options = Options(
        shards=(f"{shards}/train-*.tar",), classes=CLASSES, frame="ego", true_times=True, batch_size=2, grad_acc=1,
        max_iters=2, res_scale=0.25, nworkers=1, Z=24, Y=2, X=24, bounds=(-24, 24, -2, 2, -24, 24), device="cpu",
        model_args=json.dumps({"share": 0.25}), log_dir=str(out / "logs"), ckpt_dir=str(out), run_name="run", log_freq=2,
    )  # fmt: skip
    return dataclasses.replace(options, **more)


def check_evaluated_and_shown(shards, run, out):
    """The run is evaluated on every val keyframe, class by class, and shown, by the commands."""
    text = call_module("train.evaluate", run, "--device", "cpu", "--pictures", 1).stdout
    assert "3 samples" in text
    written = json.loads((run / "eval" / "eval.json").read_text())
    assert all(name in json.dumps(written) for name in ("car", "large", "person"))
    result = CliRunner().invoke(
        show.main,
        [str(shards), "0", "--run", str(run), "--out", str(out / "p.png"), "--width", "800", "--device", "cpu"],
    )
    assert result.exit_code == 0, result.output


def test_it_trains_resumes_evaluates_and_is_shown(small_shards, tmp_path):
    path = train(options_of(small_shards, tmp_path), build=Past)
    recorded = checkpoint.read(path)["options"]
    assert (
        recorded["past"] == 2
        and recorded["frame"] == "ego"
        and [c["name"] for c in recorded["classes"]] == [one.name for one in CLASSES]
    )
    call_module("train.run", "--resume", path.parent, "--max_iters", 3)
    assert (path.parent / "model-000000003.pth").is_file()
    check_evaluated_and_shown(small_shards, path.parent, tmp_path)
    with pytest.raises(ValueError, match="no option of this network"):
        train(options_of(small_shards, tmp_path, model_args='{"depth": 3}', run_name="other"), build=Past)


@pytest.mark.slow
def test_it_resumes_on_two_processes(small_shards, tmp_path):
    path = train(options_of(small_shards, tmp_path), build=Past)
    train(
        options_of(
            small_shards, tmp_path, resume=str(path.parent), device_ids=(0, 1), max_iters=4,
            model=checkpoint.read(path)["options"]["model"],
        )
    )  # fmt: skip
    assert checkpoint.read(path.parent)["step"] == 4
    check_evaluated_and_shown(small_shards, path.parent, tmp_path)
