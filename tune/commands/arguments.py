"""The commands of `dpo-tune` and their options. This module does not know what they call.

It imports nothing heavy, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dpo_train.command_line import dpo_tune
from dpo_train.errors import InputError


class _Parser(argparse.ArgumentParser):
    """A parser whose errors look like our other errors: one line that ends with what to type."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError; argparse calls this for everything that it does not understand."""
        command = dpo_tune(*self.prog.split()[1:], "--help")
        raise InputError(f"{message}; type `{command}` to see the options")


class _Version(argparse.Action):
    def __call__(self, *_: object, **__: object) -> NoReturn:
        """Print the version and exit."""
        from importlib.metadata import PackageNotFoundError, version  # `--help` needs none

        try:
            print(f"dpo-tune {version('dpo-tune')}")
        except PackageNotFoundError:  # it was sent to a cluster as a folder of sources
            print("dpo-tune runs from its sources; it is not installed, so it has no version")
        raise SystemExit(0)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line; `command` is the command's name. Raises InputError."""
    top = parser()
    (commands,) = (action for action in top._actions if isinstance(action.choices, dict))
    words = [word for word in arguments if not word.startswith("-")]
    if words and words[0] not in (known := list(commands.choices or ())):
        close = difflib.get_close_matches(words[0], known, n=1)
        if words[0].endswith((".yaml", ".yml")):
            hint = f"did you mean `{dpo_tune('run', words[0])}`?"
        elif close:
            hint = f"did you mean `{dpo_tune(close[0])}`?"
        else:
            hint = f"type `{dpo_tune()}` to see all commands"
        raise InputError(f"there is no command {words[0]!r}; {hint}")
    return top.parse_args(arguments)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands and their options."""
    top = _Parser(
        prog="dpo-tune", description="Searches DPO hyperparameters with Ray Tune, Optuna and ASHA."
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the installed version")
    _add_quiet(top, default=False)
    top.set_defaults(command=None)
    commands = top.add_subparsers(metavar="COMMAND")

    def command(name: str, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help)
        added.set_defaults(command=name, name=None)
        return added

    # --- before a search ---
    init = command("init", "write a search's YAML for a model and a dataset")
    init.add_argument(
        "yaml", type=Path, nargs="?", help="the file to write; by default named after the data"
    )
    init.add_argument("--model", help="a folder, a Hub id or `sample`; without it you are asked")
    init.add_argument(
        "--data", help="a file, a folder, a Hub id or `sample`; without it you are asked"
    )
    _add_set(init)

    doctor = command("doctor", "check this machine, and whether a search can run")
    doctor.add_argument("yaml", type=Path, nargs="?", help="the search's YAML")
    _add_set(doctor)
    _add_allow_code(doctor)

    # --- the search ---
    run = command("run", "run a search, or continue it if it is unfinished")
    run.add_argument("yaml", type=Path, help="the search's YAML, like searches/quickstart.yaml")
    run.add_argument("--name", help="name of the run folder, instead of the YAML's name")
    _add_quiet(run)
    _add_set(run)
    _add_allow_code(run)

    resume = command("resume", "continue a run, or give it more trials")
    _add_run(resume)
    resume.add_argument("--trials", metavar="N|+N", help="N trials in all, or N more")
    _add_quiet(resume)
    _add_allow_code(resume)

    # --- while it runs, and after it ---
    show = command("show", "show the numbers of a run")
    _add_run(show)
    form = show.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print results.json")
    form.add_argument("--csv", action="store_true", help="print one line per trial")

    _add_trial(command("stop", "stop a trial of a running search at its next step"))

    clone = command("clone", "try a trial's values again, with changes")
    _add_trial(clone)
    _add_set(clone)

    _add_trial(command("replay", "train a trial again and compare the numbers"))

    report = command("report", "write a run's report.html, also while it runs")
    _add_run(report)
    report.add_argument("--open", action="store_true", help="open it in the browser")

    # --- the winner ---
    _add_push(command("push", "publish a run's winner on the Hugging Face Hub"))

    export = command("export", "write a run's winner for llama.cpp and Ollama")
    _add_run(export)
    export.add_argument("--gguf", action="store_true", help="write a GGUF file and a Modelfile")
    export.add_argument(
        "--quantize", choices=("f16", "q8_0"), default="f16", help="type of the weights (f16)"
    )
    export.add_argument("--to", type=Path, metavar="FOLDER", help="default: NAME-gguf, here")

    # --- the runs folder, and editors ---
    command("list", "list runs and prepared data, and their size on disk")

    clean = command("clean", "remove runs or prepared data by name; without a name, list them")
    clean.add_argument("names", nargs="*", metavar="NAME", help="a name that `list` prints")

    schema = command("schema", "print the JSON schema of a search's YAML, for editors")
    schema.add_argument("--markdown", action="store_true", help="print docs/reference.md instead")
    return top


def _add_push(push: argparse.ArgumentParser) -> None:
    _add_run(push)
    push.add_argument("--repo", metavar="OWNER/NAME", help="default: the YAML's hub.repo")
    push.add_argument(
        "--to", type=Path, metavar="FOLDER", help="write the files to a folder and send nothing"
    )
    push.add_argument("--public", dest="private", action="store_const", const=False,
                      help="make the repository public")  # fmt: skip
    form = push.add_mutually_exclusive_group()
    form.add_argument("--adapter", dest="merged", action="store_const", const=False,
                      help="push a LoRA as an adapter")  # fmt: skip
    form.add_argument("--merged", dest="merged", action="store_const", const=True,
                      help="push a LoRA merged into its base")  # fmt: skip
    push.add_argument("--dtype", help="of the weights: bfloat16 (default) or float32")
    push.add_argument("--gguf", help="add a GGUF file for llama.cpp and Ollama: f16 or q8_0")
    push.add_argument(
        "--license", help="needed if base model and dataset do not state the same licence"
    )
    push.add_argument("--branch", default="main", help="default: main; created if need be")
    push.add_argument("--tag", default="", help="a name for the commit, like v1")


def _add_quiet(command: argparse.ArgumentParser, default: object = argparse.SUPPRESS) -> None:
    """Add `--quiet`, which may stand before the command or after it."""
    command.add_argument("-q", "--quiet", action="store_true", default=default,
                         help="print only how it ended, and errors")  # fmt: skip


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", help="a run folder, its name or its URL")


def _add_trial(command: argparse.ArgumentParser) -> None:
    _add_run(command)
    command.add_argument("trial", help="the trial's id, as `show` prints it")


def _add_allow_code(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--allow-code", action="append", metavar="PACKAGE",
        help="let confirm.evaluate call a package outside the working folder, or a changed file",
    )  # fmt: skip


def _add_set(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        help="override a value of the YAML by its dotted path; can be given several times",
    )
