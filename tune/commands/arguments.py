"""What `dpo-tune` understands: its commands and their options. Knows no function that they call.

Imports nothing heavy: `--help` must answer at once.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dpo_train.errors import InputError


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as other errors are said: on one line, with what to type."""

    def error(self, message: str) -> NoReturn:
        """argparse's hook for everything that it does not understand. Raises InputError."""
        raise InputError(f"{message}; type `{self.prog} --help` to see what it takes")


class _Version(argparse.Action):
    def __call__(self, *_: object, **__: object) -> NoReturn:
        """Prints the version and ends."""
        from importlib.metadata import PackageNotFoundError, version  # `--help` needs none

        try:
            print(f"dpo-tune {version('dpo-tune')}")
        except PackageNotFoundError:  # sent to a cluster as a folder of sources
            print("dpo-tune, not installed: its sources run as they are")
        raise SystemExit(0)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; `command` names the command. Raises InputError."""
    top = parser()
    (commands,) = (action for action in top._actions if isinstance(action.choices, dict))
    words = [word for word in arguments if not word.startswith("-")]
    if words and words[0] not in (known := list(commands.choices or ())):
        close = difflib.get_close_matches(words[0], known, n=1)
        is_yaml = words[0].endswith((".yaml", ".yml"))
        meant = (
            f"`dpo-tune run {words[0]}`" if is_yaml else f"`dpo-tune {close[0]}`" if close else ""
        )
        hint = f"did you mean {meant}?" if meant else "type `dpo-tune` to see all commands"
        raise InputError(f"there is no command {words[0]!r}; {hint}")
    return top.parse_args(arguments)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = _Parser(
        prog="dpo-tune", description="Searches DPO hyperparameters with Ray Tune, Optuna and ASHA."
    )
    top.add_argument("--version", action=_Version, nargs=0, help="the version that is installed")
    _add_quiet(top, default=False)
    top.set_defaults(command=None)
    commands = top.add_subparsers(metavar="COMMAND")

    def command(name: str, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help)
        added.set_defaults(command=name, name=None)
        return added

    init = command("init", "write a search's YAML for a model and a dataset")
    init.add_argument(
        "yaml", type=Path, nargs="?", help="the file to write, by default named as the data"
    )
    init.add_argument("--model", help="a folder, a Hub id, or `sample`; asked for at a terminal")
    init.add_argument("--data", help="a file, a folder, a Hub id, or `sample`; asked for, too")
    _add_set(init)

    doctor = command("doctor", "what is here, and whether a search can run")
    doctor.add_argument("yaml", type=Path, nargs="?", help="the search")
    _add_set(doctor)
    _add_allow_code(doctor)

    run = command("run", "search; goes on if the run folder is unfinished")
    run.add_argument("yaml", type=Path, help="the search, like searches/quickstart.yaml")
    run.add_argument("--name", help="name of the run folder, in place of the YAML's")
    _add_quiet(run)
    _add_set(run)
    _add_allow_code(run)

    resume = command("resume", "go on with a run, or let it grow")
    _add_run(resume)
    resume.add_argument("--trials", metavar="N|+N", help="so many in all, or so many more")
    _add_quiet(resume)
    _add_allow_code(resume)

    show = command("show", "the numbers of a run")
    _add_run(show)
    form = show.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="results.json")
    form.add_argument("--csv", action="store_true", help="one line a trial")

    _add_trial(command("stop", "end a trial of a running search at its next step"))

    clone = command("clone", "try a trial's point soon, with changes")
    _add_trial(clone)
    _add_set(clone)

    _add_trial(command("replay", "train a trial again and compare the numbers"))

    report = command("report", "write a run's report.html; also while it runs")
    _add_run(report)
    report.add_argument("--open", action="store_true", help="show it in the browser")

    _add_push(command("push", "publish a run's winner on the Hugging Face Hub"))

    export = command("export", "write a run's winner for llama.cpp and Ollama")
    _add_run(export)
    export.add_argument("--gguf", action="store_true", help="as a GGUF file, with a Modelfile")
    export.add_argument("--quantize", choices=("f16", "q8_0"), default="f16", help="default: f16")
    export.add_argument("--to", type=Path, metavar="FOLDER", help="by default NAME-gguf, here")

    command("list", "runs and prepared data, and what they occupy")

    clean = command("clean", "remove what is named; alone: say what there is")
    clean.add_argument("names", nargs="*", metavar="NAME", help="as `dpo-tune list` shows it")

    schema = command("schema", "print the JSON schema of a search's YAML, for editors")
    schema.add_argument("--markdown", action="store_true", help="print docs/reference.md instead")
    return top


def _add_push(push: argparse.ArgumentParser) -> None:
    _add_run(push)
    push.add_argument("--repo", metavar="OWNER/NAME", help="by default the YAML's hub.repo")
    push.add_argument("--to", type=Path, metavar="FOLDER", help="write it there, send nothing")
    push.add_argument("--public", dest="private", action="store_const", const=False,
                      help="make the repository public")  # fmt: skip
    form = push.add_mutually_exclusive_group()
    form.add_argument("--adapter", dest="merged", action="store_const", const=False,
                      help="of a LoRA the adapter alone")  # fmt: skip
    form.add_argument("--merged", dest="merged", action="store_const", const=True,
                      help="of a LoRA the base's weights with the adapter's added")  # fmt: skip
    push.add_argument("--dtype", help="bfloat16 (default) or float32")
    push.add_argument("--gguf", help="with a GGUF file for llama.cpp, Ollama: f16 or q8_0")
    push.add_argument("--license", help="if base model and dataset do not state the same one")
    push.add_argument("--branch", default="main", help="by default main; made if need be")
    push.add_argument("--tag", default="", help="a name for the commit, like v1")


def _add_quiet(command: argparse.ArgumentParser, default: object = argparse.SUPPRESS) -> None:
    """Before the command or behind it."""
    command.add_argument("-q", "--quiet", action="store_true", default=default,
                         help="say only how it ended, and what goes wrong")  # fmt: skip


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", help="a run folder, its name or its URL")


def _add_trial(command: argparse.ArgumentParser) -> None:
    _add_run(command)
    command.add_argument("trial", help="as `dpo-tune show` names it")


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
        help="override a value of the YAML by its dotted path; may be given several times",
    )
