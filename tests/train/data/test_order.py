"""Order, windows, draws and resume: pure functions of seed and epoch, whatever loads the data."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.rig import NUSCENES
from train.data import compile_data
from train.data.augmentation import draw_augmentation, placed
from train.data.config import AugmentConfig
from train.data.order import (
    epoch_order,
    num_batches,
    num_stream_batches,
    rank_batch,
    sample_rng,
    stream_batches,
    stream_slots,
)
from train.data.windows import TEMPORAL_PATTERNS, past_windows, windows
from train.model import Needs
from train.model.forward import with_voxels
from train.options import Options
from train.setup import make_loaders

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


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(0, 4))
def test_windows_of_the_past_repeat_a_scene_s_first_keyframe(lengths, past):
    scene_of = np.repeat(np.arange(len(lengths)), lengths)
    found = past_windows(scene_of, past)
    assert [window[0] for window in found] == list(
        range(len(scene_of))
    )  # every keyframe is evaluated, whatever the past
    for k, window in enumerate(found):
        first = int(np.flatnonzero(scene_of == scene_of[k])[0])
        assert window == [max(k - t, first) for t in range(past + 1)]


scenes = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@given(scenes, st.integers(1, 4), st.sampled_from([1, 2, 4]), st.integers(0, 3), st.integers(0, 3))
def test_every_slot_plays_whole_scenes_in_time_order(lengths, share, world_size, seed, epoch):
    scene_of, slots = np.repeat(np.arange(len(lengths)), lengths), share * world_size
    for shuffle in (True, False):
        own = stream_slots(scene_of, slots, seed, epoch, shuffle)
        again = stream_slots(scene_of, slots, seed, epoch, shuffle)
        assert all(a.tolist() == b.tolist() for a, b in zip(own, again, strict=True))
        assert sorted(n for slot in own for n in slot.tolist()) == list(range(len(scene_of)))
        for slot in own:
            played = [list(g) for _, g in itertools.groupby(slot.tolist(), key=lambda n: scene_of[n])]
            assert all(scene == np.flatnonzero(scene_of == scene_of[scene[0]]).tolist() for scene in played)
        assert max(map(len, own)) - min(map(len, own)) <= max(lengths)
        if not shuffle:
            assert [len(slot) for slot in own] == sorted(map(len, own), reverse=True)
        for drop_last in (True, False):
            alone = stream_batches(own, drop_last=drop_last)
            ranks = [stream_batches(own, rank, world_size, drop_last) for rank in range(world_size)]
            for n, whole in enumerate(alone):
                assert sum((r[n] for r in ranks if n < len(r)), []) == whole
            for rank, found in enumerate(ranks):
                assert len(found) == num_stream_batches(own, rank, world_size, drop_last) and all(found)
        if not shuffle:  # evaluation: every sample once, and the slots that go on are the first ones
            assert sorted(sum(alone, [])) == list(range(len(scene_of)))
            assert all(len(a) >= len(b) for a, b in itertools.pairwise(alone))


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 3), st.booleans())
def test_draws_stay_in_bounds(seed, ncams, seqlen, shuffle_cams):
    conf = AugmentConfig((224, 400), (0.8, 1.2), 44, ncams=ncams, shuffle_cams=shuffle_cams, refcam_id=0)
    conf = conf.of_rig(NUSCENES)
    drawn = draw_augmentation(sample_rng(seed, 0, 0), conf, seqlen)
    assert len(set(drawn.cams)) == ncams
    assert drawn.resize_wh.shape == (seqlen, ncams, 2)
    assert (drawn.resize_wh >= [320, 179]).all() and (drawn.resize_wh <= [480, 268]).all()
    assert (drawn.crop_ltrb[..., 2:] - drawn.crop_ltrb[..., :2] == [400, 224]).all()


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(0, 3))
def test_the_present_is_drawn_alike_whatever_the_past(seed, ncams, past):
    conf = AugmentConfig((224, 400), (0.8, 1.2), 44, ncams=ncams).of_rig(NUSCENES)
    alone, drawn = (draw_augmentation(sample_rng(seed, 0, 0), conf, 1, n) for n in (0, past))
    assert drawn.cams == alone.cams and drawn.resize_wh.shape == (1 + past, ncams, 2)
    assert (drawn.resize_wh[:1] == alone.resize_wh).all() and (drawn.crop_ltrb[:1] == alone.crop_ltrb).all()


sizes = st.tuples(st.integers(20, 2000), st.integers(20, 2000))


@given(st.integers(0, 2**31), sizes, sizes, st.sampled_from(["bottom", "centre"]), st.booleans())
def test_cropped_images_keep_their_shape(seed, stored_hw, final_hw, crop, train):
    conf = AugmentConfig(final_hw, (0.8, 1.2), 10, ncams=2, refcam_id=0, crop=crop).of_rig(NUSCENES)
    drawn = draw_augmentation(sample_rng(seed, 0, 0) if train else None, conf, 1)
    sizes_hw = [stored_hw] * len(drawn.cams)
    resize_wh, crop_ltrb = placed(drawn.resize_wh[0], drawn.crop_ltrb[0], sizes_hw, conf)
    final_wh, stored_wh = np.array(final_hw[::-1]), np.array(stored_hw[::-1])
    assert (crop_ltrb[:, 2:] - crop_ltrb[:, :2] == final_wh).all()
    each = resize_wh / stored_wh  # scale along x and y, within the rounding of a pixel
    assert (np.abs(each[:, 0] - each[:, 1]) <= 0.5 / stored_wh.min() * 2).all()
    cover = max(final_wh / stored_wh)
    assert (np.abs(each.mean(1) / cover - drawn.resize_wh[0, :, 0] / final_wh[0]) < 1 / stored_wh.min() / cover).all()
    squeezed = placed(drawn.resize_wh[0], drawn.crop_ltrb[0], sizes_hw, AugmentConfig(final_hw))
    assert squeezed[0] is drawn.resize_wh[0] or (squeezed[0] == drawn.resize_wh[0]).all()
    if not train:
        assert (resize_wh >= final_wh).all() and (resize_wh == final_wh).any(1).all()
        left, top = crop_ltrb[0, :2]
        rest = resize_wh[0] - final_wh
        assert left == rest[0] // 2 and top == (rest[1] if crop == "bottom" else rest[1] // 2)


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


@pytest.mark.parametrize("nworkers", [0, 2])
@pytest.mark.parametrize("first", [0, 1])
def test_epochs_without_a_pause_are_those_of_one_iterator_after_the_other(synth_shards, nworkers, first):
    train, val = loaders(synth_shards)
    train.load_state_dict({"epoch": 0, "position": first})
    one_by_one = [(batch, train.state_dict()) for _ in range(3) for batch in train]
    fresh, _ = loaders(synth_shards, nworkers=nworkers)
    fresh.load_state_dict({"epoch": 0, "position": first})
    endless = fresh.endless()
    for (wanted, state), batch in zip(one_by_one, endless, strict=False):
        equal(wanted, batch)
        assert fresh.state_dict() == state
    endless.close()


def test_a_rank_without_a_share_of_a_batch_gets_none_in_every_epoch(synth_shards):
    ranks = [loaders(synth_shards, bsz=3, rank=r, world_size=3)[1] for r in range(3)]
    count = ranks[0].num_global_batches
    taken = [list(itertools.islice(loader.endless(), 3 * count)) for loader in ranks]
    for number in range(3 * count):
        own = [batch.indices for batches in taken if (batch := batches[number]) is not None]
        assert sum(own, []) == list(range(number % count * 3, min(number % count * 3 + 3, len(ranks[0].windows))))
    assert any(batches[count - 1] is None for batches in taken)
    ranks[2].load_state_dict({"epoch": 4, "position": count - 1})
    assert next(ranks[2].endless()) is None and ranks[2].state_dict() == {"epoch": 5, "position": 0}


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


def test_the_past_goes_before_the_present_and_changes_nothing_of_it(synth_shards):
    alone, windows = loaders(synth_shards), loaders(synth_shards, past=2)
    assert [len(loader.windows) for loader in windows] == [len(loader.windows) for loader in alone] == [20, 4]
    scene_of = windows[0].reader.scene_of
    for one, both in ((alone[0], windows[0]), (alone[1], windows[1])):
        for batch, longer in zip(one, both, strict=True):
            assert (
                longer.is_real.shape == (len(batch), 3)
                and longer.indices == batch.indices
                and longer.cams == batch.cams
            )
            for name in (
                "imgs",
                "seg_bev",
                "valid_bev",
                "center_bev",
                "offset_bev",
                "intrins",
                "egopose",
                "box_numbers",
            ):
                assert torch.equal(getattr(longer, name)[:, :1], getattr(batch, name)), name
            for b, k in enumerate(longer.indices):
                held = (k - np.flatnonzero(both.reader.scene_of == both.reader.scene_of[k])[0]).item()
                assert longer.is_real[b].tolist() == [t <= held for t in range(3)]
                assert longer.tokens[b] == [both.reader.tokens[k - min(t, held)] for t in range(3)]
                still = torch.eye(4) if held == 0 else None
                assert still is None or torch.allclose(longer.ego_T_now[b], still.expand(3, 4, 4), atol=1e-6)
    assert scene_of is not None


def test_only_the_keyframes_that_are_asked_for_are_decoded(synth_shards):
    options = Options(
        shards=(f"{synth_shards}/train-*.tar",), seqlen=3, batch_size=4, nworkers=0, nworkers_val=0, res_scale=0.25, nsweeps=1,
        Z=24, Y=2, X=24, device="cpu",
    )  # fmt: skip
    train, val, _ = make_loaders(options, "cpu")
    whole = compile_data(
        options.shards, None, options.data_aug_conf(), None, options.bounds, (24, 2, 24), 4, 0, seqlen=3, use_lidar=False,
        use_radar=False,
    )[0]  # fmt: skip
    read, plain = [], train.reader.read
    train.reader.read = lambda number, members: read.append(number) or plain(number, members)
    for batch, long in zip(train, whole, strict=True):
        assert batch.tokens == [window[:1] for window in long.tokens] and long.imgs.shape[1] == 3
        assert torch.equal(batch.imgs, long.imgs[:, :1]) and torch.equal(batch.seg_bev, long.seg_bev[:, :1])
    assert len(read) == 4 * len(train) == 8
    assert len(val.windows) == len(val.reader.keys)  # though the last of a scene begin no window of three
    with pytest.raises(ValueError, match="seqlen's windows run into the future"):
        make_loaders(dataclasses.replace(options, past=1), "cpu")


def test_sensors_of_training_alone_are_not_read_in_evaluation(synth_shards):
    options = Options(
        shards=(f"{synth_shards}/train-*.tar",), use_lidar=True, batch_size=4, nworkers=0, nworkers_val=0, res_scale=0.25,
        nsweeps=1, Z=24, Y=2, X=24, device="cpu",
    )  # fmt: skip
    train, val, grid = make_loaders(options, "cpu", needs=Needs(lidar="voxels", train_only=("lidar",), track_ids=True))
    batch, other = next(iter(train)), next(iter(val))
    assert batch.lidar_data is not None and other.lidar_data is None and other.imgs is not None
    assert batch.tidlist is not None and with_voxels(other, Needs(lidar="voxels"), grid).lidar_voxels is None


def test_streams_are_the_same_on_any_world_size_and_resume(synth_shards):
    options = {"order": "streams", "nsweeps": 1, "use_lidar": False, "use_radar": False}
    train, val = loaders(synth_shards, **options)
    straight = [b for _ in range(2) for b in train]
    first = straight[: len(straight) // 2]
    assert len(straight) == 8  # of five scenes of four keyframes, four slots play four whole ones
    for slot in range(4):
        own = [batch.indices[slot] for batch in first]
        assert own == list(range(own[0], own[0] + 4)) and own[0] % 4 == 0
        assert [batch.starts[slot].item() for batch in first] == [True, False, False, False]
    assert first[0].indices != straight[4].indices
    ranks = [loaders(synth_shards, rank=r, world_size=2, **options)[0] for r in range(2)]
    for whole, left, right in zip(first, *ranks, strict=True):
        assert left.indices + right.indices == whole.indices and torch.equal(
            torch.cat([left.imgs, right.imgs]), whole.imgs
        )
    fresh, _ = loaders(synth_shards, nworkers=2, **options)
    fresh.load_state_dict({"epoch": 0, "position": 2})
    rest = [b for _ in range(2) for b in fresh]
    for a, b in zip(straight[2:], rest, strict=True):
        assert a.indices == b.indices and torch.equal(a.imgs, b.imgs) and torch.equal(a.starts, b.starts)
    # The val split has one scene: one slot plays it, the others have nothing.
    assert [batch.indices for batch in val] == [[0], [1], [2], [3]] and len(val) == 4
    other = loaders(synth_shards, rank=1, world_size=2, **options)[1]
    assert list(other) == [] and other.num_global_batches == 4
    with pytest.raises(ValueError, match="5 training scenes are fewer than the 6 slots"):
        loaders(synth_shards, bsz=6, **options)
    with pytest.raises(ValueError, match="read from front to back"):
        loaders(synth_shards, reader="stream", **options)
    with pytest.raises(ValueError, match="keyframe by keyframe"):
        loaders(synth_shards, seqlen=2, **options)


def test_image_sizes_are_options(synth_shards):
    options = Options(image_size="256x704")
    options.validate()
    assert options.image_hw == (256, 704) and options.data_aug_conf()["crop"] == "bottom"
    assert Options().data_aug_conf() == {
        "final_dim": (448, 800), "resize_lim": [0.8, 1.2], "crop_offset": 89, "ncams": 0, "crop": "",
    }  # fmt: skip
    for wrong, told in (
        (dict(image_size="256"), "height x width"),
        (dict(image_size="256x704", res_scale=1.0), "leave one out"),
        (dict(crop="top"), "bottom or centre"),
        (dict(order="random"), "shuffled or streams"),
    ):
        with pytest.raises(ValueError, match=told):
            Options(**wrong).validate()
    conf = {**CONF, "final_dim": (20, 50)}
    grid, options = list(GRID.values()), {"use_lidar": False, "use_radar": False, "nworkers_val": 0}
    batches = {}
    for crop in ("", "bottom", "centre"):
        val = compile_data(None, f"{synth_shards}/val-*.tar", {**conf, "crop": crop}, *grid, 1, 0, **options)[1]
        batches[crop] = next(iter(val))
        assert batches[crop].imgs.shape[-2:] == (20, 50)
    # A point of the world lies where it did before, less what was cut off above: the stored images are of 16:9.
    squeezed, bottom, centre = (batches[crop].intrins[0, 0] for crop in ("", "bottom", "centre"))
    assert torch.allclose(squeezed[:, 0, 0] / squeezed[:, 1, 1], torch.tensor(50 / 20 * 9 / 16), rtol=0.01)
    assert torch.allclose(bottom[:, 0, 0], bottom[:, 1, 1], rtol=0.01) and torch.equal(bottom[:, :, 0], centre[:, :, 0])
    assert torch.allclose(centre[:, 1, 2] - bottom[:, 1, 2], torch.tensor(4.0))
