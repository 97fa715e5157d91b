"""The trees of errors: as their files draw them, and as they travel between processes."""

import ast
import builtins
import pickle
import re
from pathlib import Path
from types import ModuleType

import pytest

import dpo_train.errors
import serve.errors
import tune.errors
from tests.test_imports import MODULES

TREES = {"dpo_train": dpo_train.errors, "tune": tune.errors, "serve": serve.errors}
ARGUMENTS = {
    "ApiError": (429, "too many", "overloaded_error", "model", "code"),
    "DeviceFailed": ("CUDA error: device-side assert triggered", 4711),
    "GpuFailed": ("3f2a", "10.0.0.5", "1", "CUDA error: device-side assert triggered", 4711),
    "BadRow": ("no prompt", "the prompt is null"),
    "Interrupted": (Path("runs/quickstart"), "the disk is full"),
    "TemplateRefusal": ("a model", "roles must alternate"),
}
"""Arguments of the classes that take more than a message."""


def classes(module: ModuleType) -> list[type[Exception]]:
    """The errors that a module defines."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]


ERRORS = [error for module in TREES.values() for error in classes(module)]


def drawn(text: str) -> dict[str, tuple[str, str]]:
    """Map each class to its parent and its built-in base, as the docstring draws them."""
    found, path = {}, [("", -1)]
    for spaces, name, base in re.findall(r"^( *)([A-Z]\w+)(?: \((\w+)\))?$", text, re.MULTILINE):
        while path[-1][1] >= len(spaces):
            path.pop()
        found[name] = (path[-1][0], base)
        path.append((name, len(spaces)))
    return found


def as_built(error: type[Exception]) -> tuple[str, str]:
    """The parent and the built-in base of a class."""
    parent, base = (*(each.__name__ for each in error.__bases__), "")[:2]
    return ("" if parent == "Exception" else parent), base


@pytest.mark.parametrize("module", TREES.values(), ids=TREES)
def test_the_drawing_shows_every_class_in_its_place(module: ModuleType) -> None:
    assert module.__doc__ is not None
    tree = drawn(module.__doc__)
    built = {error.__name__: as_built(error) for error in classes(module)}
    assert built.items() <= tree.items()
    above = {name: parent for name, parent in tree.items() if name not in built}
    assert (
        above.items() <= drawn(dpo_train.errors.__doc__ or "").items()
    )  # the root is in another file


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: str(kind.__name__))
def test_an_error_arrives_as_it_was_sent(kind: type[Exception]) -> None:
    sent = kind(*ARGUMENTS.get(kind.__name__, ("what went wrong",)))
    arrived = pickle.loads(pickle.dumps(sent))
    assert type(arrived) is kind
    assert str(arrived) == str(sent) != ""
    assert vars(arrived) == vars(sent)


def test_no_error_is_defined_elsewhere_but_the_private_ones_of_a_file() -> None:
    """The private ones belong to the tree too."""
    known = {error.__name__ for error in ERRORS}
    outside = {name for name in vars(builtins) if name.endswith(("Error", "Exception"))}
    found = [
        (module, node.name, {base.id for base in node.bases if isinstance(base, ast.Name)})
        for module, path in MODULES.items()
        if module not in [tree.__name__ for tree in TREES.values()]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    errors = [(module, name, bases) for module, name, bases in found if bases & (known | outside)]
    assert errors  # the walk must find some
    assert [e for e in errors if not e[1].startswith("_") or not e[2] & known] == []
