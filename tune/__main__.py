"""The command line: every command parses, calls one function, prints.

Each command imports what it needs when it runs, so that `--help` answers within a second.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dpo_train.command_line import dpo_tune
from dpo_train.errors import InputError, StoreError

_DONE, _NOTHING_WON, _WRONG_INPUT, _NOT_PUBLISHED, _INTERRUPTED = 0, 1, 2, 3, 130


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 nothing could be won, 2 wrong input, 3 won but not pushed
    or not served, 130 interrupted."""
    options = _parser().parse_args(arguments)
    warnings.showwarning = _one_line_warning
    try:
        return int(options.command(options))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return _WRONG_INPUT
    except StoreError as error:
        hint = "its bucket, its region (`?region=…`), the login in the environment"
        print(f"error: {error}; look at {hint}", file=sys.stderr)
        return _WRONG_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dpo-tune", description="Searches DPO hyperparameters with Ray Tune, Optuna and ASHA."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable[..., int], help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help)
        added.set_defaults(command=function, name=None)
        return added

    run = command("run", _run, help="search; goes on if the run folder is unfinished")
    run.add_argument("yaml", type=Path, help="the search, like searches/quickstart.yaml")
    run.add_argument("--name", help="name of the run folder, in place of the YAML's")
    _add_set(run)

    resume = command("resume", _resume, help="go on with a run, or let it grow")
    _add_run(resume)
    resume.add_argument("--trials", metavar="N|+N", help="so many in all, or so many more")

    show = command("show", _show, help="the numbers of a run")
    _add_run(show)
    form = show.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="results.json")
    form.add_argument("--csv", action="store_true", help="one line a trial")

    stop = command("stop", _stop, help="end a trial of a running search at its next step")
    _add_trial(stop)

    clone = command("clone", _clone, help="try a trial's point soon, with changes")
    _add_trial(clone)
    _add_set(clone)

    replay = command("replay", _replay, help="train a trial again and compare the numbers")
    _add_trial(replay)

    report = command("report", _report, help="write a run's report.html; also while it runs")
    _add_run(report)
    report.add_argument("--open", action="store_true", help="show it in the browser")

    push = command("push", _push, help="publish a run's winner on the Hugging Face Hub")
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

    export = command("export", _export, help="write a run's winner for llama.cpp and Ollama")
    _add_run(export)
    export.add_argument("--gguf", action="store_true", help="as a GGUF file, with a Modelfile")
    export.add_argument("--quantize", choices=("f16", "q8_0"), default="f16", help="default: f16")
    export.add_argument("--to", type=Path, metavar="FOLDER", help="by default NAME-gguf, here")

    command("list", _list, help="runs and prepared data, and what they occupy")

    clean = command("clean", _clean, help="remove what is named; alone: say what there is")
    clean.add_argument("names", nargs="*", metavar="NAME", help="as `dpo-tune list` shows it")

    doctor = command("doctor", _doctor, help="what is here, and what a search needs")
    doctor.add_argument("yaml", type=Path, nargs="?", help="the search")
    _add_set(doctor)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run folder, its name or its URL")


def _add_trial(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("trial", help="as `dpo-tune show` names it")


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        help="override a value of the YAML by its dotted path; may be given several times",
    )


def _overrides(options: argparse.Namespace) -> Mapping[str, object]:
    from dpo_train.config_base import parse_overrides

    name = {"name": options.name} if options.name else {}
    return {**name, **parse_overrides(options.set)}


def _run(options: argparse.Namespace) -> int:
    from tune.config.load import load_search

    config = load_search(options.yaml, _overrides(options))
    from tune.search.driver import run  # after the YAML: its errors must come within a second

    return _finish(lambda: run(config))


def _resume(options: argparse.Namespace) -> int:
    from tune.commands.resume import wanted_trials
    from tune.run_folder.folder import find_run

    folder = find_run(options.run)
    trials = wanted_trials(folder, options.trials)
    from tune.search.driver import resume

    return _finish(lambda: resume(folder, trials))


def _finish(search: Any) -> int:
    from tune.commands.search_end import next_steps
    from tune.errors import Interrupted
    from tune.report.terminal import render
    from tune.run_folder.paths import RunFolder
    from tune.tracking.trackers import how_to_send

    try:
        results = search()
    except Interrupted as interruption:
        print(interruption, file=sys.stderr)
        if unsent := how_to_send(RunFolder.at(interruption.folder)):
            print(unsent, file=sys.stderr)
        return _INTERRUPTED
    print(render(results))
    if unsent := how_to_send(results.folder):
        print(f"\n{unsent}")
    if results.winner is None:
        return _NOTHING_WON
    print("", *next_steps(results), sep="\n")
    code = _DONE
    attempts = (("pushed", "not pushed", results.published),
                ("it answers", "not served", results.served))  # fmt: skip
    for done, failed, attempt in attempts:
        if attempt is not None and attempt.error:
            print(f"{failed}: {attempt.error}", file=sys.stderr)
            code = _NOT_PUBLISHED
        elif attempt is not None:
            print(f"{done}: {attempt.url}")
    return code


def _show(options: argparse.Namespace) -> int:
    from tune.report.terminal import render, to_csv
    from tune.run_folder.assemble import current_results
    from tune.run_folder.live import describe_live

    results = current_results(options.run)
    if options.json:
        print(results.to_json())
    elif options.csv:
        print(to_csv(results), end="")
    else:
        print(render(results, rows=50))
        if live := describe_live(results.folder):
            print("\nat work now:\n" + "\n".join(f"  {line}" for line in live))
    return _DONE


def _stop(options: argparse.Namespace) -> int:
    from tune.commands.stop_clone import stop

    stop(options.run, options.trial)
    print(f"asked: {options.trial} stops within seconds, at the end of its step")
    return _DONE


def _clone(options: argparse.Namespace) -> int:
    from tune.commands.stop_clone import clone
    from tune.run_folder.wording import describe

    point = clone(options.run, options.trial, _overrides(options))
    print(f"asked: {describe(point)} is tried as soon as a place is free")
    return _DONE


def _replay(options: argparse.Namespace) -> int:
    from tune.commands.replay import print_replay

    print_replay(options.run, options.trial)
    return _DONE


def _report(options: argparse.Namespace) -> int:
    from dpo_train.storage import mirror
    from tune.report.page import write
    from tune.run_folder.assemble import current_results

    path = write(current_results(options.run)).absolute()
    print(mirror.shown(path))
    if options.open:
        import webbrowser

        webbrowser.open(path.as_uri())
    return _DONE


def _push(options: argparse.Namespace) -> int:
    from tune.errors import PushFailed
    from tune.publish.push import push, write

    names = ("repo", "private", "merged", "dtype", "gguf", "license")
    changes = {name: getattr(options, name) for name in names}
    if options.to is not None:
        print(f"written: {write(options.run, options.to, **changes)}; nothing was sent")
        return _DONE
    try:
        print(f"pushed: {push(options.run, options.branch, options.tag, **changes).url}")
    except PushFailed as error:
        print(f"not pushed: {error}", file=sys.stderr)
        return _NOT_PUBLISHED
    return _DONE


def _export(options: argparse.Namespace) -> int:
    from tune.commands.export import export_gguf

    if not options.gguf:
        command = dpo_tune("push", options.run, "--to", "FOLDER")
        raise InputError(f"export: type `--gguf`; for transformers `{command}`")
    path = export_gguf(options.run, options.quantize, options.to)
    print(f"written: {path}, and {path.parent / 'Modelfile'} for `ollama create NAME -f Modelfile`")
    return _DONE


def _list(_: argparse.Namespace) -> int:
    from tune.commands.list_clean import print_stored
    from tune.run_folder.folder import runs_root

    print_stored(runs_root())
    return _DONE


def _clean(options: argparse.Namespace) -> int:
    from tune.commands.list_clean import remove
    from tune.run_folder.folder import runs_root

    if not options.names:
        _list(options)
        print(f"to remove: {dpo_tune('clean', 'NAME')} …")
        return _DONE
    for item in remove(runs_root(), options.names):
        print(f"removed {item.name} ({item.gigabytes:.3f} GB)")
    return _DONE


def _doctor(options: argparse.Namespace) -> int:
    from tune.commands.doctor import examine
    from tune.config.load import load_search
    from tune.search.warm_start import with_earlier_points

    config = None
    if options.yaml:
        config = with_earlier_points(load_search(options.yaml, _overrides(options)))
    for line in examine(config):
        print(line)
    return _DONE


def _one_line_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
