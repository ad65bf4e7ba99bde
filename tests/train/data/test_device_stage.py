"""The device stage: its two ways to resample, what a batch says and computes, threads, and CUDA as far as a CPU shows it."""

import threading

import numpy as np
import pytest
import simplejpeg
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fake_cuda import Watch, fake_mode, host
from tests.train.data.test_buffers import shards_of_sizes
from tests.train.data.test_order import CONF, GRID, equal, loaders
from train.augment import crop_and_resize, resample, sampling_plan, stacked
from train.data import DataError, LabelSpec, compile_data
from train.data.config import Grid, StageConfig
from train.data.device_stage import DeviceStage
from train.data.images import DecodedImages, EncodedImages
from train.data.prefetch import Prefetch
from train.data.targets import bev_targets

LEVEL = 1 / 255


@st.composite
def crops(draw):
    """Images of one or of different sizes, with sizes to resize them to, crops and the final size."""
    count = draw(st.integers(1, 3))
    sizes = draw(st.lists(st.tuples(st.integers(6, 90), st.integers(6, 90)), min_size=count, max_size=count))
    if draw(st.booleans()):
        sizes = [sizes[0]] * count
    final_hw = draw(st.tuples(st.integers(3, 50), st.integers(3, 50)))
    resize_wh = np.array([draw(st.tuples(st.integers(2, 120), st.integers(2, 120))) for _ in range(count)])
    left_top = np.array([draw(st.tuples(st.integers(-40, 60), st.integers(-40, 60))) for _ in range(count)])
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    images = [torch.from_numpy(rng.integers(0, 256, (*size, 3)).astype(np.uint8)) for size in sizes]
    return images, resize_wh, np.concatenate([left_top, left_top + final_hw[::-1]], 1), final_hw


def one_by_one(image, resize_wh, crop_ltrb, final_hw):
    """Torch's own antialiased resize of the whole image in floating point, then the crop."""
    whole = F.interpolate(
        image.permute(2, 0, 1)[None].float(), tuple(resize_wh[::-1].tolist()), mode="bilinear", antialias=True
    )
    margin = 200
    left, top = (crop_ltrb[:2] + margin).tolist()
    return F.pad(whole, [margin] * 4)[0, :, top : top + final_hw[0], left : left + final_hw[1]] / 255


@settings(deadline=None, max_examples=50)
@given(crops())
def test_both_ways_to_resample_agree_with_the_slow_one(case):
    images, resize_wh, crop_ltrb, final_hw = case
    sizes_hw = [image.shape[:2] for image in images]
    on_cpu, _ = crop_and_resize(images, torch.eye(3).repeat(len(images), 1, 1), resize_wh, crop_ltrb, final_hw)
    plan = torch.from_numpy(sampling_plan(sizes_hw, resize_wh, crop_ltrb, final_hw, "bilinear"))
    exact = resample(stacked(images), plan, final_hw, "bilinear")
    half = resample(stacked(images), plan, final_hw, "bilinear", torch.float16)
    want = torch.stack([one_by_one(*one, final_hw) for one in zip(images, resize_wh, crop_ltrb, strict=True)])
    torch.testing.assert_close(exact, want, rtol=0, atol=0.01 * LEVEL)
    assert (half - want).abs().max() <= 0.3 * LEVEL
    # Bytes are rounded after each of the two passes.
    assert (on_cpu - exact).abs().max() <= 1.01 * LEVEL and (on_cpu - exact).abs().mean() <= 0.5 * LEVEL
    assert torch.equal(on_cpu == 0, on_cpu * (want > -1) == 0) and not on_cpu[want == 0].gt(LEVEL).any()


@settings(deadline=None, max_examples=40)
@given(crops())
def test_nearest_picks_the_same_pixels_on_every_device(case):
    images, resize_wh, crop_ltrb, final_hw = case
    on_cpu, _ = crop_and_resize(
        images, torch.eye(3).repeat(len(images), 1, 1), resize_wh, crop_ltrb, final_hw, "nearest"
    )
    plan = sampling_plan([image.shape[:2] for image in images], resize_wh, crop_ltrb, final_hw, "nearest")
    assert torch.equal(on_cpu, resample(stacked(images), torch.from_numpy(plan), final_hw, "nearest"))


def batches_of(folder, nworkers=2, **options):
    options = {"bsz": 4, "nsweeps": 2, "seed": 3, "nworkers": nworkers} | options
    return compile_data(f"{folder}/train-*.tar", None, CONF, **GRID, **options)[0]


def images_of(loader, interpolation):
    """imgs of the first batch as a GPU would make them: images decoded by the threads, resampled all at once."""
    config = StageConfig(CONF["final_dim"], "cpu", interpolation)
    stage = DeviceStage(
        config, Grid(GRID["centroid"], GRID["bounds"], GRID["res_3d"]), loader.decode.labels, loader.pools
    )
    loader.make_images = DecodedImages
    order = loader.reader.order(loader.windows, 3, 0, True)
    loaded = loader._start(None, order[:4].tolist(), 0, True)
    loaded.windows = [[wait() for wait in window] for window in loaded.windows]
    pixels = stage._sent(loaded.images)
    plan = torch.from_numpy(sampling_plan(*loaded.crops(), config.final_hw, interpolation))
    return resample(stacked(pixels), plan, config.final_hw, interpolation), loaded


@pytest.fixture(scope="module")
def mixed_shards(tmp_path_factory):
    return shards_of_sizes(tmp_path_factory.mktemp("mixed"), (72, 128), (80, 110))


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("sizes", ["one", "mixed"])
def test_a_gpu_s_images_are_those_of_the_threads(synth_shards, mixed_shards, interpolation, sizes):
    folder = synth_shards if sizes == "one" else mixed_shards
    options = {"interpolation": interpolation, "nsweeps": 1}
    batch = next(iter(batches_of(folder, 0, **options)))
    imgs, loaded = images_of(batches_of(folder, 0, **options), interpolation)
    assert loaded.indices == batch.indices
    difference = (imgs.view(batch.imgs.shape) - batch.imgs).abs().max()
    assert difference <= (1.01 * LEVEL if interpolation == "bilinear" else 0)


def test_several_labels_come_from_one_pass(synth_shards):
    specs = (
        LabelSpec("all"),
        LabelSpec("seen", protocol="min_visibility", min_visibility=2),
        LabelSpec("people", categories=("human",)),
    )
    several = batches_of(synth_shards, labels=specs)
    alone = [batches_of(synth_shards)]
    alone.append(batches_of(synth_shards, protocol="min_visibility", min_visibility=2))
    alone.append(batches_of(synth_shards, target_categories=("human",)))
    drawn = 0
    for batch, *others in zip(several, *alone, strict=True):
        equal(batch, others[0])
        assert list(batch.labels) == ["all", "seen", "people"] and batch.labels["all"][0] is batch.seg_bev
        for (seg, valid), other in zip(batch.labels.values(), others, strict=True):
            assert torch.equal(seg, other.seg_bev) and torch.equal(valid, other.valid_bev)
        drawn += batch.labels["people"][0].sum()
        assert batch.to("cpu").labels["seen"][1].shape == batch.valid_bev.shape
    assert drawn > 0


def test_labels_that_make_no_sense_are_refused(synth_shards):
    with pytest.raises(ValueError, match="simple_bev, min_visibility"):
        LabelSpec(protocol="none")
    with pytest.raises(ValueError, match="boxes"):
        LabelSpec(source="map:drivable_area")
    with pytest.raises(ValueError, match="different names"):
        batches_of(synth_shards, labels=(LabelSpec(), LabelSpec()))
    with pytest.raises(ValueError, match="auto, host, device"):
        batches_of(synth_shards, decode="gpu")


def test_facts_of_the_boxes_stand_in_the_batch(synth_shards):
    loader = batches_of(synth_shards, seqlen=2)
    batch = next(iter(loader))
    for b, row in enumerate(batch.facts):
        for t, facts in enumerate(row):
            count = int(batch.num_boxes[b, t])
            assert facts.scene == batch.scenes[b] and facts.key.startswith(facts.scene)
            assert facts.location and facts.timestamp_us > 1e15
            assert len(facts.categories) == count and all(c.startswith("vehicle") for c in facts.categories)
            assert facts.velocity.shape == (count, 3)
            assert facts.num_lidar_pts.shape == facts.num_radar_pts.shape == (count,)
            seen = torch.from_numpy((facts.visibility != 1).astype(np.float32))
            assert torch.equal(seen, batch.vislist[b, t, :count])
            assert batch.scorelist[b, t].tolist() == [1] * count + [0] * (batch.lrtlist.shape[2] - count)


def test_a_batch_tells_itself_on_a_screen(synth_shards):
    batch = next(iter(batches_of(synth_shards)))
    text = repr(batch)
    assert len(text.splitlines()) < 45 and max(map(len, text.splitlines())) < 80
    assert "imgs" in text and "(4, 1, 3, 3, 28, 50)" in text and "float32" in text and "cpu" in text
    moved = batch.to("meta")
    assert moved.imgs.is_meta and moved.size_bev.shape == batch.size_bev.shape and moved.tokens == batch.tokens
    assert batch.lidar0_data.shape[-1] == batch.num_lidar0.max() < batch.lidar_data.shape[-1]
    assert batches_of(synth_shards, use_lidar=False).batch_of([0]).lidar0_data is None


def test_chosen_samples_by_key_token_and_number(synth_shards):
    loader = batches_of(synth_shards)
    state, before = loader.state_dict(), threading.active_count()
    key, token = loader.reader.keys[5], loader.reader.tokens[2]
    chosen = loader.batch_of([key, token, 7])
    assert chosen.indices == [5, 2, 7] and chosen.facts[0][0].key == key and chosen.tokens[1] == [token]
    assert loader.state_dict() == state and threading.active_count() == before
    assert {cams[0] for cams in chosen.cams} == {"CAM_FRONT"}  # nothing is drawn: slot refcam_id
    first = next(iter(batches_of(synth_shards)))
    equal(first, batches_of(synth_shards).batch_of(first.indices, augment=True))
    with pytest.raises(ValueError, match="no sample scene-9999_0000"):
        loader.batch_of(["scene-9999_0000"])


def test_without_workers_there_is_no_thread_and_with_them_one_batch_is_ahead(synth_shards):
    before = threading.active_count()
    train, _ = loaders(synth_shards)
    for _ in train:
        assert threading.active_count() == before
    made = []

    def items():
        for number in range(5):
            made.append(number)
            yield number

    ahead = Prefetch(items(), "loader-stage")
    try:
        assert next(ahead) == 0
        deadline = threading.Event()
        for _ in range(100):
            if len(made) == 2:
                break
            deadline.wait(0.02)
        deadline.wait(0.1)
        assert made == [0, 1]
        assert list(ahead) == [1, 2, 3, 4]
    finally:
        ahead.close()
    assert threading.active_count() == before


def test_a_torchvision_without_its_decoder_is_told_with_the_remedy(synth_shards, monkeypatch):
    loader = batches_of(synth_shards, 0, decode="device")
    assert next(iter(loader)).imgs is not None
    monkeypatch.delattr("torchvision.io.decode_jpeg")
    with pytest.raises(DataError, match="^this torchvision decodes no JPEGs; use --decode host$"):
        loader.batch_of([0])


def test_errors_come_where_the_batch_is_asked_for_and_torch_keeps_its_threads(synth_shards):
    loader = batches_of(synth_shards)
    threads = torch.get_num_threads()
    stage, calls = loader.stage.ahead, []

    def fails(loaded):
        calls.append(loaded)
        if len(calls) == 3:
            raise RuntimeError("the device is gone")
        return stage(loaded)

    loader.stage.ahead = fails
    taken = 0
    with pytest.raises(RuntimeError, match="the device is gone"):
        for _ in loader:
            taken += 1
    assert taken == 2 and loader.state_dict() == {"epoch": 0, "position": 2}
    inherited = []
    other = threading.Thread(target=lambda: inherited.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert inherited == [threads] and torch.get_num_threads() == threads


def watched(piece, *arguments):
    piece(*arguments)  # constants that stay on the device are made once
    with Watch() as watch:
        piece(*arguments)
    assert watch.faults == []
    return watch.count


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_images_on_cuda_take_as_many_operations_whatever_the_batch(interpolation):
    counts = []
    for images in (6, 96):
        with fake_mode():
            pixels = torch.empty((images, 900, 1600, 3), dtype=torch.uint8, device="cuda")
            shape = (2, 4) if interpolation == "bilinear" else (448 + 800,)
            plan = torch.empty((images, *shape), device="cuda")
            out = resample(pixels, plan, (448, 800), interpolation)
            assert out.shape == (images, 3, 448, 800) and out.is_contiguous() and out.dtype == torch.float32
            counts.append(watched(resample, pixels, plan, (448, 800), interpolation))
    assert counts[0] == counts[1] <= 80


def test_decoded_images_of_one_size_are_stacked_at_once():
    with fake_mode():
        # As nvJPEG's decoder leaves it.
        image = torch.empty((3, 90, 160), dtype=torch.uint8, device="cuda").permute(1, 2, 0)
        assert [watched(stacked, [image] * count) for count in (6, 96)] == [1, 1]
        out = stacked([image] * 6)
        assert out.shape == (6, 90, 160, 3) and out.is_contiguous()


def test_targets_on_cuda_take_as_many_operations_whatever_the_batch():
    counts = []
    for batch, boxes in ((1, 3), (16, 40)):
        vox = Grid(GRID["centroid"], GRID["bounds"], GRID["res_3d"]).vox_util()
        with fake_mode():
            numbers = torch.empty((batch, 50, 50), dtype=torch.int16, device="cuda")
            valid = torch.empty((batch, 50, 50), dtype=torch.uint8, device="cuda")
            boxes_cam0 = torch.empty((batch, boxes, 19), device="cuda")
            many = torch.empty((batch,), dtype=torch.int64, device="cuda")
            counts.append(watched(bev_targets, numbers, valid, boxes_cam0, many, vox))
    assert counts[0] == counts[1] <= 80


def test_voxels_on_cuda_take_as_many_operations_whatever_the_batch():
    counts = []
    for batch, points in ((1, 100), (16, 90_000)):
        vox = Grid(GRID["centroid"], GRID["bounds"], GRID["res_3d"]).vox_util()
        with fake_mode():
            xyz, feats = (torch.empty((batch, points, n), device="cuda") for n in (3, 16))
            valid = torch.empty((batch, points), dtype=torch.bool, device="cuda")
            occupied = watched(vox.voxelize_xyz, xyz, valid)
            counts.append((occupied, watched(vox.voxelize_xyz_and_feats, xyz, feats, valid)))
    assert counts[0] == counts[1] and sum(counts[0]) <= 120


@pytest.mark.parametrize("sizes", ["one", "mixed"])
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_a_batch_reaches_cuda_in_two_copies_and_nothing_waits(synth_shards, mixed_shards, interpolation, sizes):
    """The stage as for a GPU, from page-locked pixels to the Batch; images of odd sizes go one by one.

    Fake tensors do not show whether values are right, in what order streams work, whether memory is used again too soon, nor
    the decoder on the device: tests marked gpu do.
    """
    labels = (LabelSpec(), LabelSpec("people", categories=("human",)))
    options = {"interpolation": interpolation, "labels": labels, "get_tids": True, "device": "cuda:0", "nsweeps": 1}
    folder = synth_shards if sizes == "one" else mixed_shards
    with host() as own:
        loader = batches_of(folder, 0, bsz=2, **options)
        loaded = loader._start(None, [0, 1], 0, True)
        loaded.windows = [[wait() for wait in window] for window in loaded.windows]
        parcel = loader.stage._parcel(loaded)
        with fake_mode(), Watch(own) as watch:
            batch = loader.stage._build(loaded, parcel)
    assert watch.faults == []
    assert watch.sent == 1 + (1 if sizes == "one" else sum(len(frame.sizes_hw) for frame in loaded.frames))
    assert watch.count <= 120
    assert {tensor.device for tensor in batch.tensors()} == {torch.device("cuda:0")}
    small = [t for t in batch.tensors() if t.untyped_storage()._cdata == batch.rots.untyped_storage()._cdata]
    assert any(t is batch.lidar_data for t in small) and any(t is batch.tidlist for t in small)
    on_cpu = next(iter(batches_of(folder, 0, bsz=2, **options | {"device": "cpu"})))
    for name, tensor in vars(on_cpu).items():
        if isinstance(tensor, torch.Tensor):
            other = getattr(batch, name)
            assert other.dtype == tensor.dtype and other.dim() == tensor.dim(), name
    assert batch.imgs.shape == on_cpu.imgs.shape and batch.seg_bev.shape == on_cpu.seg_bev.shape


def stage_on_cuda(**options):
    grid = Grid(GRID["centroid"], GRID["bounds"], GRID["res_3d"])
    return DeviceStage(StageConfig((28, 50), "cuda:1", **options), grid, (LabelSpec(),), None)


def test_constants_of_the_grid_are_made_once_and_every_stream_that_uses_them_waits_for_them():
    stage = stage_on_cuda()
    with host() as own, fake_mode():
        stage._share_constants()
        made, event = stage.vox_util._constants.copy(), stage._constants
        stage._share_constants()
        assert len(made) == 1 and stage.vox_util._constants == made and stage._constants is event
    cuda = torch.device("cuda:1")
    assert event.stream.device == cuda and own.calls == [("wait_event", cuda)] * 2


def test_a_device_that_decodes_is_waited_for_by_the_stage_s_stream_alone(monkeypatch):
    stage, jpeg = stage_on_cuda(decode="device"), simplejpeg.encode_jpeg(np.zeros((8, 12, 3), np.uint8))
    images = EncodedImages(None, 1, 2, stage.config)
    images.encoded, images.sizes_hw = [[jpeg, jpeg]], [[(8, 12), (8, 12)]]
    with host() as own:

        def decode(encoded, mode, device):
            own.calls.append(("decode", device))
            return [torch.zeros((3, 8, 12), dtype=torch.uint8) for _ in encoded]

        monkeypatch.setattr("torchvision.io.decode_jpeg", decode)
        monkeypatch.setattr(
            torch.cuda, "synchronize", lambda device=None: pytest.fail("the whole device is waited for")
        )
        assert [image.shape for image in stage._decode(images)] == [(8, 12, 3)] * 2
    cuda = torch.device("cuda:1")
    assert own.calls == [("synchronize", cuda), ("decode", cuda), ("synchronize", cuda)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("decode", ["host", "device"])
def test_batches_on_cuda_are_whole_behind_queued_work(synth_shards, decode):
    """The consumer's stream is kept busy and batches are accumulated: nothing may be overwritten while it waits its turn."""
    on_cpu = list(batches_of(synth_shards, 0, get_tids=True))
    for attempt in range(2):
        loader = batches_of(synth_shards, get_tids=True, device="cuda", decode=decode)
        copies = []
        for batch in loader:
            torch.cuda._sleep(200_000_000)
            copies.append((batch.imgs.clone(), batch.lidar_data.clone(), batch.seg_bev.clone(), batch.ry_bev))
            del batch
        for (imgs, lidar, seg, ry), want in zip(copies, on_cpu, strict=True):
            difference = (imgs.cpu() - want.imgs).abs()
            assert difference.mean() <= LEVEL and (decode == "device" or difference.max() <= 1.3 * LEVEL), attempt
            assert torch.equal(lidar.cpu(), want.lidar_data) and torch.equal(seg.cpu(), want.seg_bev)
            turned = torch.remainder(ry.cpu() - want.ry_bev + torch.pi, 2 * torch.pi) - torch.pi  # -pi is pi
            assert turned.abs().max() <= 1e-4
