"""Thumbnails of samples: what they show, how small they are, and that a file gives them back."""

import cv2
import numpy as np
import pytest

from tests.train.evaluation.test_evaluate_command import CONF, GRID
from train.data import compile_data
from train.evaluation.files import read_thumbnails, write_thumbnails
from train.pictures.maps import ERROR_COLOURS, IS_FALSE, IS_HIT, IS_MASKED, IS_MISSED, NOTHING
from train.pictures.thumbnails import _cameras, _errors, thumbnails_of
from train.pictures.view import Maps


def test_one_pixel_shows_the_worst_of_its_cells_forward_up():
    truth, prediction, valid = np.zeros((200, 200)), np.zeros((200, 200)), np.ones((200, 200))
    truth[198:, 0], prediction[198, 0] = 1, 1  # hit and missed, furthest ahead on the left
    prediction[0, 198] = 1  # a false one, behind on the right
    valid[100:, 100:] = 0
    found = _errors(Maps((-50, -50), (50, 50), np.eye(4), truth, valid, prediction))
    want = np.full((100, 100), NOTHING)
    want[0, 0], want[99, 99], want[:50, 50:] = IS_MISSED, IS_FALSE, IS_MASKED
    assert np.array_equal(found, ERROR_COLOURS[want]) and IS_HIT not in want


def test_cameras_lie_three_to_a_row_in_the_order_of_the_rig():
    images = np.stack([np.full((4, 8, 3), n, np.uint8) for n in range(4)])
    picture = _cameras(images, ("D", "C", "B", "A"), ("A", "B", "X", "C", "D"))
    assert picture.shape == (10, 28, 3)
    assert [picture[2, 4, 0], picture[2, 14, 0], picture[2, 24, 0], picture[8, 4, 0]] == [3, 2, 1, 0]


def test_every_sample_has_its_own_and_a_file_gives_them_back(synth_shards, tmp_path):
    options = {"bsz": 2, "nworkers": 0, "nworkers_val": 0, "use_radar": False, "use_lidar": False}
    loader = compile_data(None, f"{synth_shards}/val-*.tar", CONF, **GRID, **options)[1]
    batch, grid = next(iter(loader)), loader.stage.vox_util
    logits = batch.seg_bev[:, 0] - 0.5
    made = thumbnails_of(batch, {"seg": logits}, grid)
    assert set(made) == {facts.key for facts, *_ in batch.facts}
    for pictures in made.values():
        assert set(pictures) == {"errors", "cameras"}
        assert all(cv2.imdecode(np.frombuffer(data, np.uint8), 1) is not None for data in pictures.values())
    write_thumbnails(tmp_path / "thumbnails.zip", made)
    assert read_thumbnails(tmp_path / "thumbnails.zip") == made and read_thumbnails(tmp_path / "none.zip") == {}
    batch.imgs = None
    assert all(list(pictures) == ["errors"] for pictures in thumbnails_of(batch, {"seg": logits}, grid).values())
    (tmp_path / "thumbnails.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="thumbnails.zip: .* evaluate again"):
        read_thumbnails(tmp_path / "thumbnails.zip")
