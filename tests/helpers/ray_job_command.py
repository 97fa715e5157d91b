"""Parses `ray job submit` with Ray's own command line."""

from __future__ import annotations

from pathlib import Path

from ray.dashboard.modules.job.cli import job_cli_group

from tests.conftest import ROOT
from tune.__main__ import _parser


def sent_by(command: str, *arguments: str) -> Path | None:
    """Return the YAML of the search that `ray job COMMAND` sends; None if it sends none.

    Fails if Ray or we do not know one of its options.
    """
    given = job_cli_group.commands[command].make_context(command, list(arguments)).params
    if command != "submit":
        return None
    assert given["working_dir"] == "."
    assert given["entrypoint"][:3] == ("python", "-m", "tune")
    yaml = _parser().parse_args(given["entrypoint"][3:]).yaml
    assert (ROOT / yaml).exists()
    return Path(yaml)
