"""python -m preprocess.index: rebuild the index of shards whose index is lost or damaged."""

import sys
from pathlib import Path

import click

from common.files import write_atomically
from common.shard_index import build_index, dump_index, index_path


@click.command()
@click.argument("shards", nargs=-1, required=True, type=click.Path(path_type=Path))
def main(shards):
    """Rebuild the index beside each of SHARDS from nothing but the tar."""
    failed = False
    for tar in shards:
        try:
            data = dump_index(build_index(tar))
            path = index_path(tar)
            same = path.is_file() and path.read_bytes() == data
            if not same:
                write_atomically(path, data)
            click.echo(f"{path}: {'was right already' if same else 'rebuilt'}")
        except (ValueError, OSError) as error:
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
