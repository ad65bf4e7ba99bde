"""Several sets in one training: which samples make an epoch, batches of different rigs, resuming, worlds of several ranks."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from tests.conftest import call_module
from tests.train.test_resume import SMALL, assert_same, run_folder
from train import checkpoint
from train.data import make_mixed_loader
from train.data.config import DataConfig, Wanted
from train.data.order import epoch_order
from train.data.sources import open_source
from train.data.sources.mixed import mixed_order, shares
from train.mix import parse_mix, recordable_mix
from train.options import Options

WEIGHTS = st.lists(st.floats(0.05, 20), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), weights=WEIGHTS, seed=st.integers(0, 99), epoch=st.integers(0, 30))
def test_an_epoch_gives_each_set_its_share_from_its_own_permutations(data, weights, seed, epoch):
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=len(weights), max_size=len(weights)))
    total, starts = sum(sizes), np.cumsum([0, *sizes])
    counts = shares(total, weights)
    numbers = mixed_order(sizes, weights, seed, epoch)
    assert (
        sum(counts) == total == len(numbers) == len(set(numbers.tolist()))
    )  # a sample that comes again has another number
    for i, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        assert abs(count - total * weights[i] / sum(weights)) <= 0.5 * len(sizes)
        own = numbers[(numbers % total >= starts[i]) & (numbers % total < starts[i + 1])] % total - starts[i]
        assert len(own) == count
        first = epoch * count  # the walk: one permutation of the set after another
        walk = [epoch_order(size, seed, n, True) for n in range(first // size, (first + count) // size + 1)]
        begin = first - first // size * size
        assert Counter(own.tolist()) == Counter(np.concatenate(walk)[begin : begin + count].tolist())


def test_all_epochs_together_go_through_every_set_evenly():
    sizes, weights = (7, 5), (1.0, 2.0)
    seen = Counter(n % 12 for epoch in range(35) for n in mixed_order(sizes, weights, 3, epoch).tolist())
    assert shares(12, weights) == [4, 8]
    assert set(seen[n] for n in range(7)) == {20} and set(seen[n] for n in range(7, 12)) == {56}


def test_what_mix_may_say(tmp_path):
    (tmp_path / "m.json").write_text(
        '[{"shards": "a.tar"}, {"shards": ["s3://u:p@b/c.tar"], "weight": 2, "cams": ["x"]}]'
    )
    first, second = parse_mix(str(tmp_path / "m.json"))
    assert (first.shards, first.weight, second.weight, second.cams) == (("a.tar",), 1.0, 2.0, ("x",))
    assert "u:p" not in recordable_mix(str(tmp_path / "m.json"))
    assert json.loads(Options(mix=str(tmp_path / "m.json")).mix)[1]["weight"] == 2
    for text, why in (
        ("nowhere.json", "neither a JSON list nor a file"),
        ("[]", "is no list of sets"),
        ('[{"weight": 1}]', "set 1 is no object such as"),
        ('[{"shards": "a", "weigth": 1}]', "it knows shards, val_shards, weight, cams"),
        ('[{"shards": "a", "weight": 0}]', "weight 0 is no positive number"),
        ('[{"shards": [1]}]', "is no text or list of texts"),
        ('[{"shards": "pipe:cat a.tar"}]', "a pipe: is read from front to back"),
    ):
        with pytest.raises(InputError, match=why):
            parse_mix(text)
    with pytest.raises(InputError, match="leave out --order streams"):
        Options(mix='[{"shards": "a"}]', order="streams")


def mixed(folders, weights=(1, 1), cams=((), ()), **options):
    options = Options(res_scale=0.25, Z=24, Y=2, X=24, batch_size=4, nsweeps=1, use_lidar=True, **options)
    config = DataConfig.of(options, "cpu", wanted=Wanted(frames=1))
    readers = [open_source(f"{folder}/train-*.tar") for folder in folders]
    return make_mixed_loader(readers, weights, cams, config, 2)


def test_sets_of_different_rigs_make_batches_together(small_shards, yard):
    chosen = (("CAM_FRONT", "CAM_BACK", "CAM_FRONT_LEFT"), ())
    loader = mixed((small_shards, yard / "shards/yard"), (1, 2), chosen)
    assert len(loader.windows) == 15 and len(loader) == 3
    batches = list(loader)
    sets = Counter(facts.rig.dataset for batch in batches for [facts] in batch.facts)
    assert set(sets) == {"nuScenes", "our yard"}
    batch = next(b for b in batches if len({f.rig.dataset for [f] in b.facts}) == 2)
    assert batch.imgs.shape[2] == 3 and batch.lidar_index is not None
    for names, [facts] in zip(batch.cams, batch.facts, strict=True):
        assert set(names) <= set(facts.rig.camera_names)
    with pytest.raises(InputError, match="6 of 6 cameras.*as many camera slots|3 of 3 cameras.*as many camera slots"):
        mixed((small_shards, yard / "shards/yard"))
    with pytest.raises(ValueError, match="the same keyframe"):
        mixed((small_shards, small_shards))


def test_a_mixed_epoch_is_the_same_after_resuming_and_on_any_world(small_shards, yard):
    cams = (("CAM_FRONT", "CAM_BACK", "CAM_FRONT_LEFT"), ())
    folders = small_shards, yard / "shards/yard"
    loader = mixed(folders, (1, 3), cams)
    whole = [batch.indices for _ in range(2) for batch in loader]
    again = mixed(folders, (1, 3), cams)
    again.load_state_dict({"epoch": 0, "position": 2})
    assert [batch.indices for _ in range(2) for batch in again] == whole[2:]
    other = mixed(folders, (1, 2), cams)
    assert other.reader.samples_sha256 != loader.reader.samples_sha256  # by which a run that goes on is told
    drawn = [loader.draw(n, 0).crop_ltrb for n in (10, 10 + len(loader.windows))]
    assert not np.array_equal(*drawn)  # a sample that comes again is augmented anew
    ranks = []
    for rank in range(2):
        options = Options(res_scale=0.25, Z=24, Y=2, X=24, batch_size=4, nsweeps=1)
        config = DataConfig.of(options, "cpu", wanted=Wanted(cameras=False, frames=1), rank=rank, world_size=2)
        readers = [open_source(f"{folder}/train-*.tar") for folder in folders]
        ranks.append([b.indices for b in make_mixed_loader(readers, (1, 3), cams, config, 0)])
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole[: len(ranks[0])]


def test_a_mixed_run_that_was_stopped_goes_on_to_the_same_bits(small_shards, yard, tmp_path):
    """Both sets have three cameras chosen; evaluation is of both, by set."""
    sets = [
        {"shards": f"{small_shards}/train-*.tar", "cams": ["CAM_FRONT", "CAM_BACK", "CAM_FRONT_LEFT"]},
        {"shards": f"{yard}/shards/yard/train-*.tar", "weight": 2},
    ]
    (tmp_path / "mix.json").write_text(json.dumps(sets))
    small = [word for word in SMALL if word != "--use_radar"]

    def words(out, *more):
        fixed = ["--mix", tmp_path / "mix.json", "--log_dir", out / "logs", "--ckpt_dir", out / "ckpt", "--nsweeps", 1]
        return ["train.run", *small, *fixed, "--save_freq", 2, "--val_freq", 4, *more]

    call_module(*words(tmp_path / "a", "--max_iters", 6))
    call_module(*words(tmp_path / "b", "--max_iters", 6, "--save_freq", 3, "--keep_latest", 9))
    folder = run_folder(tmp_path / "b")
    (folder / "model-000000006.pth").unlink()
    call_module("train.run", "--resume", folder, "--log_dir", tmp_path / "b/logs")
    assert_same(checkpoint.read(run_folder(tmp_path / "a")), checkpoint.read(folder))
    evaluated = call_module("train.evaluate", folder)
    figures = json.loads((folder / "eval" / "eval.json").read_text())
    assert "our yard" in json.dumps(figures) and "nuScenes" in json.dumps(figures), evaluated.stdout
    (tmp_path / "mix.json").write_text(json.dumps([{**sets[0], "weight": 5}, sets[1]]))
    failed = call_module("train.run", "--resume", folder, "--mix", tmp_path / "mix.json", check=False)
    assert failed.returncode == 1 and "other samples" in failed.stderr
