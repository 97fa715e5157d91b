"""`confirm.evaluate`: the user's own function, found by its name and asked about a folder.

A YAML may come from somebody else, so it can't run whatever is installed here: a function counts
if its file lies under the working folder, or in a package that the command line names.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
import sysconfig
from pathlib import Path

from dpo_train.errors import InputError
from tune.config.places import ALLOWED_CODE
from tune.workers.unused import take_in_unused

_STANDARD = ("stdlib", "platstdlib")
_INSTALLED = ("purelib", "platlib")


def allowed_packages() -> tuple[str, ...]:
    return tuple(filter(None, os.environ.get(ALLOWED_CODE, "").split(",")))


def file_of(name: str, working_folder: Path, allowed: tuple[str, ...]) -> Path:
    """The file in which a function lies, given as package.module:function.

    Runs nothing but the packages above the module. Raises InputError if there is no such module,
    or if it may not be run.
    """
    module = name.partition(":")[0]
    top = module.partition(".")[0]
    _look_in(working_folder)
    _refuse_unless_allowed(name, _place(top), working_folder, allowed)
    try:
        found = importlib.util.find_spec(module)
    except ImportError:  # of what stands before its last dot
        found = None
    if found is None or found.origin is None:
        raise _missing(module)
    file = Path(found.origin)
    _refuse_unless_allowed(name, file, working_folder, allowed)
    return file


def evaluate_folder(
    name: str, folder: Path, working_folder: str, allowed: tuple[str, ...] = ()
) -> dict[str, float]:
    """What the function says of an exported folder. Raises what it raises, InputError for one that
    may not be run, and ValueError if it gives other than finite numbers by name."""
    take_in_unused()  # first: a package above the module may import what was left out
    file_of(name, Path(working_folder), allowed)
    module, _, function = name.partition(":")
    evaluate = getattr(importlib.import_module(module), function)
    origin = getattr(evaluate, "__module__", None)
    if origin not in (None, module):  # a module of the user's may pass on another's function
        file_of(f"{origin}:{function}", Path(working_folder), allowed)
    said = evaluate(folder)
    if not isinstance(said, dict) or not said:
        raise ValueError(f"{name} returned {said!r:.60}; it must return numbers by name")
    numbers = {str(key): float(value) for key, value in said.items()}
    if wrong := [key for key, value in numbers.items() if not math.isfinite(value)]:
        raise ValueError(f"{name} returned no finite number for {', '.join(wrong)}")
    return numbers


def _place(top: str) -> Path:
    """The file of a module, or the folder of a package; nothing of it is run."""
    # `__main__` is the program that looks, another one in each process.
    found = None if top == "__main__" else importlib.util.find_spec(top)
    if found is None:
        raise _missing(top)
    if found.origin in (None, "built-in", "frozen"):
        places = list(found.submodule_search_locations or ())
        return Path(places[0]) if places else Path(sysconfig.get_path("stdlib"), top)
    return Path(str(found.origin))


def _refuse_unless_allowed(
    name: str, file: Path, working_folder: Path, allowed: tuple[str, ...]
) -> None:
    top = name.partition(":")[0].partition(".")[0]
    is_standard = top in sys.stdlib_module_names or (
        _lies_in(file, _STANDARD) and not _lies_in(file, _INSTALLED)
    )
    is_here = file.resolve().is_relative_to(working_folder.resolve())
    if is_standard:
        raise InputError(
            f"confirm.evaluate: {name} is of Python's own library, which is never called; give a "
            "function of your own, like my_package.judge:score"
        )
    if top not in allowed and (not is_here or _lies_in(file, _INSTALLED)):
        raise InputError(
            f"confirm.evaluate: {name} lies in {file}, which is not under the working folder; if "
            f"you trust it, type `--allow-code {top}`"
        )


def _lies_in(file: Path, kinds: tuple[str, ...]) -> bool:
    folders = {Path(sysconfig.get_path(kind)).resolve() for kind in kinds}
    return any(file.resolve().is_relative_to(folder) for folder in folders)


def _missing(module: str) -> InputError:
    return InputError(
        f"confirm.evaluate: there is no module {module!r} here or among what is installed; give "
        "package.module:function"
    )


def _look_in(folder: Path) -> None:
    """The folder of the command, where an installed script would not look."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
