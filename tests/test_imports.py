"""Who may know what: held by walking the imports of every source file."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = [folder for name in ("dpo_train", "tune", "serve") if (folder := ROOT / name).is_dir()]
SOURCES = sorted(path for folder in PACKAGES for path in folder.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def users_of(module: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if any(name == module or name.startswith(module + ".") for name in imported(path))
    }


def test_there_are_sources_to_walk() -> None:
    assert len(SOURCES) > 20


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("ray.tune", "tune/"),
        ("ray.serve", "serve/"),
        ("ray", ("tune/", "serve/")),
        ("trl", "dpo_train/"),
        ("wandb", "tune/tracking/wandb_client.py"),
        (
            "tune.tracking.wandb_client",
            ("tune/tracking/follower.py", "tune/doctor.py"),
        ),  # no search's driver pays for it
        ("gradio", "serve/ui.py"),
        ("dpo_train", ("dpo_train/", "tune/")),
        ("tune", "tune/"),
        ("serve", "serve/"),
    ],
)
def test_a_library_is_known_only_where_it_belongs(
    module: str, allowed: str | tuple[str, ...]
) -> None:
    assert {path for path in users_of(module) if not path.startswith(allowed)} == set()


def test_no_file_is_named_for_nothing() -> None:
    assert not {"utils.py", "common.py", "helpers.py"} & {path.name for path in SOURCES}
