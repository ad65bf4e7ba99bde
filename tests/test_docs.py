"""Every place that a page links to is there, and so is every option that it names."""

import re
from dataclasses import fields

import pytest

from tests.conftest import REPOSITORY
from train.options import Options

# Of torchrun, Slurm and TensorBoard, whose commands pages show too.
OTHERS = {*"--logdir --nnodes --node-rank --nproc-per-node --master-addr --master-port".split()}
OTHERS |= {*"--nodes --ntasks-per-node --gpus-per-node --cpus-per-task --time --signal".split()}
PAGES = sorted(
    path for top in ("", "preprocess", "shards", "train/", "tests/bench") for path in (REPOSITORY / top).glob("*.md")
)
PAGES += sorted((REPOSITORY / "train").glob("*/*.md"))


def anchors(page):
    """What GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target), f"{page}: {link}"


# The changes tell of options that are gone, too.
@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=lambda p: str(p.relative_to(REPOSITORY))
)
def test_options_that_pages_name_are_there(page):
    known = {f"--{item.name}" for item in fields(Options)}
    for top in ("common", "preprocess", "train", "tests/bench"):
        for path in (REPOSITORY / top).rglob("*.py"):
            known |= set(re.findall(r"[\"'](--[\w-]+)", path.read_text()))
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*\w", page.read_text())) - OTHERS
    assert not {name for name in named if not {name, name.replace("-", "_"), name.replace("_", "-")} & known}


def test_the_first_page_fits_a_screen_and_a_half():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 60
