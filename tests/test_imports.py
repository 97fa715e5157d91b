"""Who may import whom: the walls of docs/architecture.md.

Every import of every source file is walked, late ones and those for type checkers included.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("dpo_train", "tune", "serve")
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def imports(source: str) -> Iterator[str]:
    """Yield the dotted names that a source imports: modules, and names taken out of modules."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that this test can follow them"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_module(name: str) -> str | None:
    """Return the project's module that an imported name is or lies in."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


IMPORTS = {module: list(imports(path.read_text())) for module, path in MODULES.items()}
GRAPH = {
    module: {found for name in names if (found := own_module(name)) and found != module}
    for module, names in IMPORTS.items()
}


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def breaches(graph: dict[str, set[str]], inside: str, allowed: tuple[str, ...]) -> list[str]:
    """The imports by which modules of a package reach what they may not."""
    return [
        f"{module} imports {other}"
        for module, others in graph.items()
        if is_in(module, inside)
        for other in sorted(others)
        if not any(is_in(other, package) for package in (inside, *allowed))
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one import circle, in its order; empty if there is none."""
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in finished:
            return []
        for other in sorted(graph.get(module, ())):
            if found := visit(other, [*path, module]):
                return found
        finished.add(module)
        return []

    return next((found for module in sorted(graph) if (found := visit(module, []))), [])


WALLS = {
    "serve": (),
    "dpo_train": (),
    "dpo_train.storage": ("dpo_train.errors",),
    "tune.config": ("dpo_train",),
    "tune.errors": ("dpo_train",),
    "tune.run_folder": ("dpo_train", "tune.config"),
    "tune.cluster": ("dpo_train", "tune.config"),
    "tune.workers": (
        "dpo_train",
        "tune.errors",
        "tune.config",
        "tune.run_folder",
        "tune.cluster",
    ),
    "tune.report": ("dpo_train", "tune.config", "tune.run_folder"),
    "tune.tracking": ("dpo_train", "tune.config", "tune.run_folder"),
    "tune.publish": (
        "dpo_train",
        "tune.errors",
        "tune.config",
        "tune.run_folder",
        "tune.report",
        "tune.tracking",
    ),
}
"""The packages of the project that each package may import beside itself."""

LIBRARIES = {
    "ray.tune": ("tune.search", "tune.workers", "tune.cluster"),
    "ray.serve": ("serve", "tune.search.deploy"),
    "ray": ("tune.search", "tune.workers", "tune.cluster", "serve"),
    "trl": ("dpo_train",),
    "wandb": ("tune.tracking.wandb_client",),
    "tensorboardX": ("tune.tracking.tensorboard_tracker",),
    "optuna": ("tune.search", "tune.config.space", "tune.run_folder.optuna_states", "tune.report"),
    "gguf": ("dpo_train.gguf",),
}
"""The only places that may import each library."""

TRACKING_DOORS = {"tune.tracking.trackers", "tune.tracking.child_process"}
"""The modules of `tune.tracking` that other packages may import: none belongs to one tracker."""

NAME_A_TRACKER = {
    "tune.config.outputs": "the fields of `wandb:`",
    "tune.config.schema": "the fields `wandb` and `tensorboard`",
    "tune.config.checks": "an error about the field `tensorboard`",
    "tune.cluster.environment": "W&B's version, in the list of versions",
    "tune.workers.unused": "it is kept out of the trials' processes, where TRL would import it",
    "tune": "W&B's error reports are turned off before TRL imports it",
}
"""The modules outside `tune.tracking` that name a tracker, and for what."""


@pytest.mark.parametrize("package", WALLS)
def test_a_package_imports_what_it_may(package: str) -> None:
    assert breaches(GRAPH, package, WALLS[package]) == []


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_known_only_where_it_belongs(library: str) -> None:
    users = {
        module for module, names in IMPORTS.items() if any(is_in(name, library) for name in names)
    }
    assert users
    allowed = LIBRARIES[library]
    assert {m for m in users if not any(is_in(m, package) for package in allowed)} == set()


def test_other_packages_know_no_tracker() -> None:
    doors = {
        other
        for module, others in GRAPH.items()
        for other in others
        if is_in(other, "tune.tracking") and not is_in(module, "tune.tracking")
    }
    assert doors == TRACKING_DOORS
    name = re.compile("wandb|w&b|weights & biases|tensorboard", re.IGNORECASE)
    naming = {
        module
        for module, path in MODULES.items()
        if not is_in(module, "tune.tracking") and name.search(path.read_text())
    }
    assert naming == set(NAME_A_TRACKER)


def test_what_follows_the_records_knows_no_tracker() -> None:
    for module in ("tune.tracking.tracker", "tune.tracking.follower"):
        text = MODULES[module].read_text()
        assert not re.search("wandb|w&b|tensorboard", text, re.IGNORECASE), module


def test_no_import_circle() -> None:
    assert circle(GRAPH) == []


def late_imports_without_reason(source: str) -> list[int]:
    """Return the lines of imports inside functions without a comment beside or above them."""
    tree, lines = ast.parse(source), source.splitlines()
    late = [
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    found, explained = [], -1
    for node in sorted(late, key=lambda node: node.lineno):
        first, last = node.lineno - 1, node.end_lineno or node.lineno
        has_comment = "#" in "".join(lines[first:last]) or lines[first - 1].strip().startswith("#")
        if has_comment or explained == first:
            explained = last  # the reason holds for the imports right below
        else:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("module", [m for m in MODULES if not m.endswith("__main__")])
def test_a_late_import_has_its_reason_beside_it(module: str) -> None:
    """A command line's file imports everything late, as its docstring says, for a fast `--help`."""
    assert late_imports_without_reason(MODULES[module].read_text()) == []


def test_a_late_import_without_a_reason_is_found() -> None:
    source = "def f():\n    import a\n    x = 1\n    import b  # slow\n    import c\n"
    assert late_imports_without_reason(source) == [2]


def test_circles_and_breaches_are_found() -> None:
    """The walk finds late imports, imports for type checkers and circles of three modules."""
    late = "def f():\n    from tune.search import driver\nif TYPE_CHECKING:\n    import serve.api\n"
    assert {own_module(name) for name in imports(late)} == {"tune.search.driver", "serve.api"}
    graph = {"a.x": {"b.y"}, "b.y": {"c.z"}, "c.z": {"a.x"}, "d": {"a.x"}}
    assert sorted(circle(graph)) == ["a.x", "b.y", "c.z"]
    assert circle({"a": {"b"}, "b": {"c"}, "d": {"b", "c"}}) == []
    assert breaches(graph, "a", ("c",)) == ["a.x imports b.y"]
    assert breaches(graph, "a", ("b",)) == []


def test_no_file_has_a_meaningless_name() -> None:
    assert not {"utils.py", "common.py", "helpers.py"} & {path.name for path in SOURCES}


def test_tune_has_three_files_at_most_beside_its_folders() -> None:
    assert len(list((ROOT / "tune").glob("*.*"))) <= 3


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_owns_one_thing(path: Path) -> None:
    """A longer file owns more than one thing. Tables of data may be longer."""
    if path != ROOT / "dpo_train" / "sample" / "facts.py":
        assert len(path.read_text().splitlines()) <= 320
