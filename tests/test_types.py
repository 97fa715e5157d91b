"""Arguments and results of functions have types, and no function takes many arguments."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.test_imports import ROOT, SOURCES

LOOSE_DICTS_AT_MOST = 17
"""Lines of the three packages with `dict[str, Any]`: values for libraries, and JSON that is parsed
into a type one line below."""

PARAMETERS_AT_MOST = 5
"""The most parameters that a function may have, not counting `self` and `cls`."""

ATTENTION = "the interface of transformers' attention functions"
TRITON = "a Triton kernel takes pointers and sizes one by one"
MANY_PARAMETERS = {
    "dpo_train/trainers/packed/forward.py attend": ATTENTION,
    "dpo_train/trainers/packed/kernels.py _kernels.add": TRITON,
    "dpo_train/trainers/packed/kernels.py _kernels.score": TRITON,
    "serve/attention.py attend": ATTENTION,
}
"""The functions that may have more parameters, and why."""


def functions(source: str) -> Iterator[tuple[str, int]]:
    """Yield the qualified name of every function and how many parameters it has."""

    def visit(node: ast.AST, inside: tuple[str, ...]) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            within = inside
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                within = (*inside, child.name)
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield ".".join(within), parameters(child.args)
            yield from visit(child, within)

    yield from visit(ast.parse(source), ())


def parameters(arguments: ast.arguments) -> int:
    given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    names = [each.arg for each in (*given, arguments.vararg, arguments.kwarg) if each is not None]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def many_parameters(sources: list[Path]) -> set[str]:
    return {
        f"{path.relative_to(ROOT)} {name}"
        for path in sources
        for name, count in functions(path.read_text())
        if count > PARAMETERS_AT_MOST
    }


def test_dicts_of_anything_are_few() -> None:
    lines = [line for path in SOURCES for line in path.read_text().splitlines()]
    assert sum("dict[str, Any]" in line for line in lines) <= LOOSE_DICTS_AT_MOST


def test_no_function_has_more_than_five_parameters() -> None:
    """An exception that is no longer needed is found too."""
    assert many_parameters(SOURCES) == set(MANY_PARAMETERS)


def test_parameters_are_counted() -> None:
    source = (
        "class A:\n    async def f(self, a, /, b, *c, d, **e): ...\ndef g():\n    def h(a): ..."
    )
    assert dict(functions(source)) == {"A.f": 5, "g": 0, "g.h": 1}
