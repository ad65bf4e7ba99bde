"""Memory of the loader: used again for images of every size, never while something still reads it, and let go."""

import gc
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from preprocess.synth.folder import Folder
from tests.conftest import preprocess
from tests.processes.client import run
from train.data.buffers import BufferPool


def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def shards_of_sizes(folder, image_hw, other_hw):
    """Shards of four keyframes whose source images are of image_hw, CAM_BACK's of other_hw."""
    world = Folder(folder / "world", "v1.0-mini", 0, image_hw)
    world.add_scene(0, "scene-0061", 4, 0)
    world.close()
    table = folder / "world" / "v1.0-mini" / "sample_data.json"
    rows = json.loads(table.read_text())
    for row in rows:
        if "/CAM_BACK/" in row["filename"] and other_hw != image_hw:
            row["height"], row["width"] = other_hw
            path = folder / "world" / row["filename"]
            Image.open(path).resize(other_hw[::-1]).save(path)
    table.write_text(json.dumps(rows))
    preprocess(folder / "world", folder, *"--sweeps 1 --train-shards 1 --workers 1".split())
    return folder


# In a process of its own: what other tests set up and left in memory decides how much a process grows, too.
EPOCHS = """
import json, sys
from tests.train.data.test_buffers import resident_mb
from tests.train.data.test_order import CONF, GRID
from train.data import compile_data
loader, _ = compile_data(f"{sys.argv[1]}/train-*.tar", None, CONF, **GRID, bsz=2, nworkers=2)
for _ in range(3):
    list(loader)
before = resident_mb()
for _ in range(15):
    for batch in loader:
        assert batch.imgs.max() > 0.1
pools = (loader.pools.scratch, loader.pools.batches, loader.pools.parcels)
print(json.dumps([resident_mb() - before, [pool.made for pool in pools]]))
"""


@pytest.mark.parametrize("other_hw", [(720, 1280), (1080, 1440)])
def test_buffers_are_used_again_for_every_image_size(tmp_path, other_hw):
    shards = shards_of_sizes(tmp_path, (720, 1280), other_hw)
    result = run("-c", EPOCHS, shards, check=True)
    grown_mb, made = json.loads(result.stdout)
    assert grown_mb < 60 and all(count <= 8 for count in made)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(1, 5))
def test_there_are_never_more_buffers_than_were_in_use_at_once(sizes, held):
    pool, taken = BufferPool(keep=held), []
    for n, size in enumerate(sizes):
        if len(taken) == held:
            pool.give([taken.pop(0)[0]])
        array = pool.take((size, 7), np.float32)
        array[:] = n
        taken.append((array, n))
        assert all((a == value).all() for a, value in taken) and array.shape == (size, 7)
    assert pool.made <= held


class Late:
    """An event, as CUDA has them, that passes when told."""

    def __init__(self):
        self.passed = False

    def query(self):
        return self.passed


def test_a_buffer_waits_for_its_copy():
    pool, event = BufferPool(keep=8), Late()
    array = pool.take((2, 3))
    pool.give([array], event)
    assert not np.shares_memory(pool.take((2, 3)), array)  # its copy is still under way
    event.passed = True
    assert np.shares_memory(pool.take((3, 2)), array)


def test_a_lease_ends_with_the_last_tensor_that_shows_it():
    pool = BufferPool(keep=1)
    first, second = pool.lease((4, 5), np.float32), pool.lease((4, 5), np.float32)
    view, address = first[1:].flatten()[3:], first.data_ptr()
    del first
    assert not np.shares_memory(pool.take((4, 5), np.float32), view.numpy())
    del view
    assert pool.take((2, 9), np.float32).ctypes.data == address and pool.made == 3
    for tensor in [pool.lease((4, 5), np.float32) for _ in range(5)]:
        del tensor
    gc.collect()
    pool.take((4, 5))
    assert pool.made <= 5 and second.shape == (4, 5)  # the others were let go, not kept
