"""The command line: each command reads its options, calls one function and prints the result.

A command imports what it needs when it runs, so that `--help` answers within a second.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from dpo_train.command_line import dpo_tune
from dpo_train.errors import DiskFull, InputError, StoreError
from dpo_train.plain_output import show_control_characters
from tune.commands.arguments import parse
from tune.commands.arguments import parser as _parser
from tune.config.places import ALLOWED_CODE

_DONE, _NO_WINNER, _WRONG_INPUT, _NOT_PUBLISHED, _INTERRUPTED = 0, 1, 2, 3, 130
_READER_IS_GONE = 141
"""The exit code of a program that SIGPIPE ended."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return the exit code: 0 done, 1 no winner, 2 wrong input, 3 winner not
    pushed or not served, 130 interrupted, 141 the reader of the output is gone."""
    show_control_characters()
    warnings.showwarning = _one_line_warning
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        if options.command is None:
            _parser().print_help()
            return _DONE
        if allowed := getattr(options, "allow_code", None):
            os.environ[ALLOWED_CODE] = ",".join(allowed)
        code = int(_COMMANDS[options.command](options))
        sys.stdout.flush()
        return code
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return _WRONG_INPUT
    except StoreError as error:
        hint = "the bucket, the region (`?region=…`) and the login in the environment"
        print(f"error: {error}; check {hint}", file=sys.stderr)
        return _WRONG_INPUT
    except DiskFull as error:
        print(f"error: {error}", file=sys.stderr)
        return _WRONG_INPUT
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        # Python flushes at its end and would print another error, so we redirect the output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_IS_GONE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED


def _reader_is_gone() -> bool:
    """Return whether nobody reads the output any more, as in `dpo-tune show x | head -1`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _overrides(options: argparse.Namespace) -> Mapping[str, object]:
    from dpo_train.config_base import parse_overrides

    name = {"name": options.name} if options.name else {}
    return {**name, **parse_overrides(options.set)}


def _run(options: argparse.Namespace) -> int:
    from tune.config.load import load_new_search

    config = load_new_search(options.yaml, _overrides(options))
    from tune.search.driver import run  # after the YAML, so that its errors come within a second

    return _finish(lambda: run(config), options.quiet)


def _resume(options: argparse.Namespace) -> int:
    from tune.commands.resume import wanted_trials
    from tune.run_folder.folder import find_run

    folder = find_run(options.run)
    trials = wanted_trials(folder, options.trials)
    from tune.search.driver import resume

    return _finish(lambda: resume(folder, trials), options.quiet)


def _finish(search: Any, is_quiet: bool = False) -> int:
    from tune.commands.search_end import next_steps
    from tune.errors import Interrupted
    from tune.report.terminal import render
    from tune.run_folder.paths import RunFolder
    from tune.tracking.trackers import how_to_send

    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere if is_quiet else sys.stdout),
        ):
            results = search()
    except Interrupted as interruption:
        print(interruption, file=sys.stderr)
        if unsent := how_to_send(RunFolder.at(interruption.folder)):
            print(unsent, file=sys.stderr)
        return _INTERRUPTED
    if not is_quiet:
        print(render(results))
    if unsent := how_to_send(results.folder):
        print(f"\n{unsent}")
    if results.winner is None:
        return _NO_WINNER
    print("", *next_steps(results), sep="\n")
    code = _DONE
    attempts = (("pushed", "not pushed", results.published),
                ("served at", "not served", results.served))  # fmt: skip
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
    from tune.run_folder.driver_lease import is_driven
    from tune.run_folder.live import describe_live

    results = current_results(options.run)
    if options.json:
        print(results.to_json())
    elif options.csv:
        print(to_csv(results), end="")
    else:
        print(render(results, rows=50))
        # A driver that was killed leaves its last `live.json` behind.
        if is_driven(results.folder) and (live := describe_live(results.folder)):
            print("\nrunning now:\n" + "\n".join(f"  {line}" for line in live))
    return _DONE


def _stop(options: argparse.Namespace) -> int:
    from tune.commands.stop_clone import stop

    stop(options.run, options.trial)
    print(f"requested: {options.trial} will stop within seconds, at the end of its step")
    return _DONE


def _clone(options: argparse.Namespace) -> int:
    from tune.commands.stop_clone import clone
    from tune.run_folder.wording import describe

    point = clone(options.run, options.trial, _overrides(options))
    print(f"requested: {describe(point)} will be tried as soon as a trial can start")
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
        raise InputError(f"export: type `--gguf`; to get files for transformers, type `{command}`")
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
    from tune.config.load import load_new_search

    config = None
    if options.yaml:
        config = load_new_search(options.yaml, _overrides(options))
    for line in examine(config):
        print(line, flush=True)
    return _DONE


def _init(options: argparse.Namespace) -> int:
    from tune.commands.init import ask_for_missing, write_search

    request = ask_for_missing(options.model, options.data, options.yaml)
    print(f"reading {request.model} and {request.data}", flush=True)
    print(write_search(request, _overrides(options)))
    return _DONE


def _schema(options: argparse.Namespace) -> int:
    if options.markdown:
        from tune.commands.reference import as_markdown

        print(as_markdown(), end="")
    else:
        from tune.config.json_schema import as_text

        print(as_text(), end="")
    return _DONE


def _one_line_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "init": _init, "doctor": _doctor, "run": _run, "resume": _resume, "show": _show,
    "stop": _stop, "clone": _clone, "replay": _replay, "report": _report, "push": _push,
    "export": _export, "list": _list, "clean": _clean, "schema": _schema,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
