"""The wheel is built, installed into an empty environment and used there.

The editable install that the other tests use would hide a package or a data file that was left out.
"""

import ast
import json
import shutil
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PACKAGES = ("dpo_train", "tune", "serve")
FILES = sorted(
    path.relative_to(ROOT)
    for package in PACKAGES
    for path in (ROOT / package).rglob("*")
    if path.is_file() and path.suffix != ".pyc"
)
MODULES = [
    ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    for path in FILES
    if path.suffix == ".py"
]

FIND = """
import json, sys
from importlib.machinery import PathFinder
for module in json.load(sys.stdin):
    path, name = None, ""
    for part in module.split("."):  # A parent is not imported: that would need dependencies.
        name = f"{name}.{part}".lstrip(".")
        spec = PathFinder.find_spec(name, path)
        if spec is None:
            sys.exit(f"{name} is not in the wheel")
        path = spec.submodule_search_locations
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment with the wheel and nothing else; its python is `bin/python`."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    for path in [*FILES, *(Path(name) for name in ("pyproject.toml", "README.md", "LICENSE"))]:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, source / path)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run([*pip, *build], check=True)
    venv.create(folder / "environment", with_pip=False, symlinks=True)
    into = ["--python", folder / "environment" / "bin" / "python"]
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, *into, "install", "--no-deps", "--no-index", wheel], check=True)
    return folder / "environment"


def site_packages(environment: Path) -> Path:
    (found,) = environment.glob("lib/python*/site-packages")
    return found


def test_every_module_is_found_by_its_name(installed: Path) -> None:
    done = subprocess.run(
        [installed / "bin" / "python", "-I", "-c", FIND],
        input=json.dumps(MODULES), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_every_data_file_is_the_same_there(installed: Path) -> None:
    folder = site_packages(installed)
    data = [path for path in FILES if path.suffix != ".py"]
    assert len(data) >= 5
    for path in data:
        assert (folder / path).read_bytes() == (ROOT / path).read_bytes(), path


def test_the_command_is_there(installed: Path) -> None:
    assert (installed / "bin" / "dpo-tune").is_file()


BROUGHT = {
    "IPython": "every notebook is drawn by it, and it is imported in a notebook alone",
    "pydantic_core": "pydantic pins it",
    "tokenizers": "transformers pins it",
    "triton": "torch for CUDA brings it, and pins it",
}
"""Libraries that are imported but not declared, and why that is safe."""


def test_every_library_that_is_imported_is_declared() -> None:
    """A library that only comes with another one disappears together with it."""
    imported = {
        name.partition(".")[0]
        for path in FILES
        if path.suffix == ".py"
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        for name in imported_names(node)
    } - set(sys.stdlib_module_names).union(PACKAGES)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = [text for name in ("samplers", "gpu", "gguf", "quantized") for text in extras[name]]
    wanted = [*project["dependencies"], *optional]
    declared = {canonicalize_name(Requirement(text).name) for text in wanted}
    distributions = packages_distributions()
    assert {
        library
        for library in imported
        if declared.isdisjoint(map(canonicalize_name, distributions[library]))
    } == set(BROUGHT)


def imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [str(node.module)] if isinstance(node, ast.ImportFrom) else []


def test_lower_bounds_are_the_tested_versions() -> None:
    """An older release may lack what is used here, and no test would notice."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    tested = {one.name: Version(str(one.specifier).removeprefix("==")) for one in pinned}
    tested = {canonicalize_name(name): version for name, version in tested.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [Requirement(text) for text in chain(project["dependencies"], *extras)]
    for one in wanted:
        if one.name == project["name"]:
            continue
        (lowest,) = [Version(s.version) for s in one.specifier if s.operator == ">="]
        assert lowest.release == tested[canonicalize_name(one.name)].release[:2], one
