"""The index files of local shards, as tests read and damage them."""

from pathlib import Path

from common import addresses
from common.shard_index import open_index
from common.stores import open_store


def index_path(tar):
    """Path of the index that belongs to the tar at the path `tar`."""
    tar = Path(tar)
    return tar.with_name(addresses.index_address(tar.name))


def load_index(tar, verify=False):
    """ShardIndex of the shard at the path `tar`. Raises ShardError; see common.shard_index.open_index."""
    folder, name = addresses.split(tar)
    return open_index(open_store(folder), name, verify)[0]
