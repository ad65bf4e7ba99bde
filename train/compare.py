"""python -m train.compare: two evaluations, figure by figure."""

import click

from common.spelling import EITHER, Command, spelled
from train.command import fail_in_one_line
from train.evaluation.compare import differences
from train.evaluation.files import read_json
from train.evaluation.table import comparison_lines


@click.command(cls=Command, context_settings=EITHER)
@click.argument("a")
@click.argument("b")
@click.option("--seed", default=0, show_default=True, help="of the intervals' draws")
def main(a, b, seed):
    """Print what evaluation B has over A: eval.json files, or folders or names of evaluated runs.

    Intervals are over the scenes that both have, drawn together for both.
    """
    fail_in_one_line(lambda: _compare(a, b, seed))


def _compare(a, b, seed):
    contents = [read_json(path) for path in (a, b)]
    found, scenes = differences(*contents, seed)
    digests, shards = ([content["about"].get(name) for content in contents] for name in ("samples_sha256", "shards"))
    for line in comparison_lines(found, scenes, (a, b)):
        click.echo(line)
    if digests[0] != digests[1]:
        click.echo("note: the two saw different sample lists; only scenes that both have were compared", err=True)
    elif set(shards[0].values()) != set(shards[1].values()):
        click.echo("note: the two saw the same samples in shards of other bytes: images or labels may differ", err=True)


if __name__ == "__main__":
    main(prog_name=spelled("train.compare"))
