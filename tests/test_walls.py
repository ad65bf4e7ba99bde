"""Who may import whom: folders meet only through files, and inside train/ the arrows run one way."""

import ast

import pytest

from tests.conftest import REPOSITORY

FORBIDDEN = {
    "common": {"preprocess", "train", "nuscenes", "pyquaternion"},
    "preprocess": {"train"},
    "train": {"preprocess", "nuscenes", "pyquaternion"},
}
# bevshards.ShardWriter: what programs of one's own import, loaded when it is asked for.
EXCEPTION = ("common.entry", "preprocess.writer")
# What a module or folder of train/ must not know: everything that stands above it.
COMMANDS = {
    *("run", "evaluate", "compare", "show", "report", "demo", "doctor", "export"),
    "jobs",  # what these do once torch is loaded
    *("command", "paths", "setup", "samples", "agreement"),
}
RUNNING = COMMANDS | {"loop", "monitor.console"}
EVALUATING = {"evaluation", "exporting", "step", "model.forward"}
ABOVE = {
    "loop": COMMANDS,
    "monitor.console": COMMANDS | {"loop"},
    "evaluation": RUNNING | {"step", "options"},
    "exporting": RUNNING | {"evaluation", "step", "options"},
    "step": RUNNING | {"evaluation", "options"},
    "model.forward": RUNNING | {"evaluation", "step", "options"},
    "options": RUNNING | EVALUATING | {"data", "checkpoint", "processes.distributed"},
    **dict.fromkeys(
        ("data", "model", "loss", "metrics", "pictures", "checkpoint", "augment", "optim", "monitor.curves"),
        RUNNING | EVALUATING | {"options"},
    ),
}
# The lowest: all that they may know of train/.
ONLY = {
    "errors": set(),
    "processes.signals": {"errors"},
    "processes.ranks": set(),
    "processes.distributed": {"errors", "processes.first_error", "processes.ranks", "processes.signals"},
    "processes.first_error": set(),
    "processes.precision": set(),
    "monitor.writers": set(),
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
        for module, path in modules(folder).items()
        for name in imports(path)
        if name.split(".")[0] in FORBIDDEN[folder] and not (module == EXCEPTION[0] and EXCEPTION[1].startswith(name))
    ]
    assert not crossed


def most_specific(module, names):
    """The one of `names` that a module of train/ is or lies in; of several the innermost. None where there is none."""
    own = module.removeprefix("train.")
    return max((name for name in names if own == name or own.startswith(f"{name}.")), key=len, default=None)


def test_arrows_inside_train_run_one_way():
    known = modules("train")
    crossed = []
    for module, path in known.items():
        above, only = (rules.get(most_specific(module, rules)) for rules in (ABOVE, ONLY))
        for name in imports(path):
            if name not in known or name == "train" or name == module:
                continue
            if above is not None and most_specific(name, above):
                crossed.append(f"{module} imports {name}")
            if (
                only is not None
                and not most_specific(name, only)
                and not any(n.startswith(f"{name}.") for n in imports(path))
            ):
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


@pytest.mark.parametrize("folder", ["common", "train"])
def test_no_plain_value_error_is_raised(folder):
    """What is said on purpose is an InputError, by which a command tells it from a fault; a bare one is caught beside it."""
    found = []
    for module, path in modules(folder).items():
        raised = [node.exc for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Raise)]
        calls = [e for e in raised if isinstance(e, ast.Call) and isinstance(e.func, ast.Name)]
        found += [f"{module}:{call.lineno}" for call in calls if call.func.id == "ValueError"]
    assert not found
