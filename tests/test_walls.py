"""Who may import whom (the folders meet only through files)."""

import ast

import pytest

from tests.conftest import REPOSITORY

FORBIDDEN = {
    "common": {"preprocess", "train", "nuscenes", "pyquaternion"},
    "preprocess": {"train"},
    "train": {"preprocess", "nuscenes", "pyquaternion"},
}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_stay_within_the_walls(folder):
    crossed = []
    for path in (REPOSITORY / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            crossed += [f"{path}: {n}" for n in names if n.split(".")[0] in FORBIDDEN[folder]]
    assert not crossed
