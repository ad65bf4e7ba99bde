"""Who may import whom: folders meet only through files, and inside train/ the arrows run one way."""

import ast

import pytest

from tests.conftest import REPOSITORY

FORBIDDEN = {
    "common": {"preprocess", "train", "nuscenes", "pyquaternion"},
    "preprocess": {"train"},
    "train": {"preprocess", "nuscenes", "pyquaternion"},
}
# What a module or folder of train/ must not know: everything that stands above it.
COMMANDS = {"run", "evaluate", "compare", "show", "report", "demo", "command", "setup", "samples", "gallery"}
RUNNING = COMMANDS | {"loop", "console"}
EVALUATING = {"evaluator", "evaluation", "step", "forward"}
ABOVE = {
    "loop": COMMANDS,
    "console": COMMANDS | {"loop"},
    "evaluation": RUNNING | {"step", "options"},
    "evaluator": RUNNING | {"evaluation", "step", "options"},
    "step": RUNNING | {"evaluator", "evaluation", "options"},
    "forward": RUNNING | {"evaluator", "evaluation", "step", "options"},
    "options": RUNNING | EVALUATING | {"data", "checkpoint", "distributed"},
    **dict.fromkeys(
        ("data", "model", "loss", "metrics", "pictures", "checkpoint", "augment", "targets", "optim", "curves"),
        RUNNING | EVALUATING | {"options"},
    ),
}
# The lowest: all that they may know of train/.
ONLY = {
    "errors": set(),
    "signals": {"errors"},
    "distributed": {"errors", "last_words", "signals"},
    "last_words": set(),
    "arithmetic": set(),
    "recorder": set(),
}


def imports(path):
    """Dotted names that a file imports, wherever in it; `from a import b` counts as a and a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(folder):
    """Dotted name -> path of every module of a top-level folder."""
    out = {}
    for path in (REPOSITORY / folder).rglob("*.py"):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return out


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_stay_within_the_walls(folder):
    crossed = [
        f"{path}: {name}"
        for path in modules(folder).values()
        for name in imports(path)
        if name.split(".")[0] in FORBIDDEN[folder]
    ]
    assert not crossed


def test_arrows_inside_train_run_one_way():
    crossed = []
    for module, path in modules("train").items():
        own = module.split(".")[1] if "." in module else ""
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != "train" or len(parts) == 1:
                continue
            if parts[1] in ABOVE.get(own, ()) or (own in ONLY and parts[1] not in ONLY[own]):
                crossed.append(f"{module} imports {name}")
    assert not crossed


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_modules_import_each_other_in_a_circle(folder):
    known = modules(folder)
    graph = {}
    for module, path in known.items():
        # A package's own __init__ may gather its modules: what counts is the most specific module that is named.
        graph[module] = {name for name in imports(path) if name in known} - {module}
        for name in list(graph[module]):
            if any(other.startswith(f"{name}.") for other in graph[module]):
                graph[module].discard(name)

    def reach(start):
        seen, todo = set(), [start]
        while todo:
            for other in graph[todo.pop()] - seen:
                seen.add(other)
                todo.append(other)
        return seen

    assert not [module for module in graph if module in reach(module)]
