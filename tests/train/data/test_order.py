"""Order, windows, draws and resume: pure functions of seed and epoch, whatever loads the data."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.rig import NUSCENES
from train.data import compile_data
from train.data.augmentation import draw_augmentation
from train.data.config import AugmentConfig
from train.data.order import epoch_order, num_batches, rank_batch, sample_rng
from train.data.windows import TEMPORAL_PATTERNS, windows

counts = st.integers(1, 200)


@given(counts, st.integers(0, 5), st.integers(0, 5))
def test_every_epoch_is_a_permutation(count, seed, epoch):
    order = epoch_order(count, seed, epoch, shuffle=True)
    assert sorted(order.tolist()) == list(range(count))
    if count > 20:
        assert order.tolist() != epoch_order(count, seed, epoch + 1, shuffle=True).tolist()
    assert epoch_order(count, seed, epoch, shuffle=False).tolist() == list(range(count))


@given(counts, st.integers(1, 6), st.sampled_from([1, 2, 4]), st.booleans())
def test_ranks_together_see_what_one_sees(count, share, world_size, drop_last):
    batch = share * world_size
    order = epoch_order(count, 0, 0, shuffle=True)

    def seen(rank, size):
        return [
            rank_batch(order, number, batch, rank, size).tolist()
            for number in range(num_batches(count, batch, rank, size, drop_last))
        ]

    alone = seen(0, 1)
    ranks = [seen(rank, world_size) for rank in range(world_size)]
    for number, whole in enumerate(alone):
        assert sum((r[number] for r in ranks if number < len(r)), []) == whole
    if not drop_last:
        assert sum(alone, []) == order.tolist()
    assert all(all(r) for r in ranks)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.sampled_from([1, 2, 3, 5]), st.booleans())
def test_windows_stay_in_a_scene_and_in_order(lengths, seqlen, temporal_aug):
    scene_of = np.repeat(np.arange(len(lengths)), lengths)
    found = windows(scene_of, seqlen, temporal_aug)
    patterns = TEMPORAL_PATTERNS[seqlen] if temporal_aug else [list(range(seqlen))]
    want = sum(max(0, n - pattern[-1]) for n in lengths for pattern in patterns)
    assert len(found) == want
    for window in found:
        assert len({scene_of[i] for i in window}) == 1 and window == sorted(set(window))


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 3), st.booleans())
def test_draws_stay_in_bounds(seed, ncams, seqlen, shuffle_cams):
    conf = AugmentConfig((224, 400), (0.8, 1.2), 44, ncams=ncams, shuffle_cams=shuffle_cams, refcam_id=0)
    conf = conf.of_rig(NUSCENES)
    drawn = draw_augmentation(sample_rng(seed, 0, 0), conf, seqlen)
    assert len(set(drawn.cams)) == ncams
    assert drawn.resize_wh.shape == (seqlen, ncams, 2)
    assert (drawn.resize_wh >= [320, 179]).all() and (drawn.resize_wh <= [480, 268]).all()
    assert (drawn.crop_ltrb[..., 2:] - drawn.crop_ltrb[..., :2] == [400, 224]).all()


def test_reference_camera_never_comes_from_slot_0():
    conf = AugmentConfig((224, 400)).of_rig(NUSCENES)
    seen = {draw_augmentation(sample_rng(0, 0, i), conf, 1).cams[0] for i in range(200)}
    assert seen == set(conf.cams[1:])


CONF = {"final_dim": (28, 50), "resize_lim": [0.8, 1.2], "crop_offset": 5, "ncams": 3}
GRID = dict(centroid=(0, 1, 0), bounds=(-50, 50, -5, 5, -50, 50), res_3d=(50, 2, 50))


def loaders(folder, **options):
    options = {"bsz": 4, "nworkers": 0, "nworkers_val": 0, "nsweeps": 2, "seed": 3} | options
    return compile_data(f"{folder}/train-*.tar", f"{folder}/val-*.tar", CONF, **GRID, **options)


def equal(a, b):
    assert a.indices == b.indices and a.tokens == b.tokens and a.cams == b.cams
    for name in ("imgs", "intrins", "lidar_data", "radar_data", "seg_bev", "valid_bev", "center_bev", "offset_bev"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.fixture(scope="module")
def straight(synth_shards):
    train, _ = loaders(synth_shards)
    return [b for _ in range(2) for b in train]


@pytest.mark.parametrize("nworkers", [1, 3])
def test_worker_count_changes_nothing(synth_shards, straight, nworkers):
    train, _ = loaders(synth_shards, nworkers=nworkers)
    again = [b for _ in range(2) for b in train]
    assert len(again) == len(straight) == 10
    for a, b in zip(straight, again, strict=True):
        equal(a, b)
    assert [b.indices for b in straight[:5]] != [b.indices for b in straight[5:]]


def test_two_ranks_share_each_batch(synth_shards, straight):
    ranks = [loaders(synth_shards, rank=r, world_size=2)[0] for r in range(2)]
    for whole, left, right in zip(straight[:5], *ranks, strict=True):
        assert left.indices + right.indices == whole.indices
        assert torch.equal(torch.cat([left.imgs, right.imgs]), whole.imgs)


@pytest.mark.parametrize("stop", [1, 5, 7])
def test_resume_continues_exactly_and_reads_nothing_again(synth_shards, straight, stop):
    train, _ = loaders(synth_shards)
    taken = []
    while len(taken) < stop:
        for batch in train:
            taken.append(batch)
            if len(taken) == stop:
                break
    fresh, _ = loaders(synth_shards, nworkers=2)
    fresh.load_state_dict(train.state_dict())
    before = fresh.reader.bytes_read
    rest = []
    while len(rest) < len(straight) - stop:
        rest += list(fresh)
    for a, b in zip(straight[stop:], rest, strict=True):
        equal(a, b)
    whole, _ = loaders(synth_shards)
    for _ in range(2):
        list(whole)
    assert fresh.reader.bytes_read - before < whole.reader.bytes_read


@settings(deadline=None, max_examples=8)
@given(bsz=st.sampled_from([2, 4, 6]), world_size=st.sampled_from([1, 2]))
def test_evaluation_sees_every_sample_once(synth_shards, bsz, world_size):
    seen = []
    for rank in range(world_size):
        _, val = loaders(synth_shards, bsz=bsz, rank=rank, world_size=world_size)
        seen += [t for b in val for (t,) in b.tokens]
        assert sum(1 for _ in val) == len(val)
    assert sorted(seen) == sorted(val.reader.tokens)


def test_only_the_needed_members_are_read(synth_shards):
    def size(**options):
        train, _ = loaders(synth_shards, **options)
        list(train)
        return train.reader.bytes_read

    everything = size(nsweeps=3)
    one_sweep = size(nsweeps=1)
    camera_only = size(use_lidar=False, use_radar=False)
    assert camera_only < one_sweep < everything


def test_more_sweeps_than_held_is_an_error_that_says_how_many(synth_shards):
    with pytest.raises(ValueError, match="the shards hold 3"):
        loaders(synth_shards, nsweeps=4)
