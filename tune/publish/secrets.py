"""Collects the keys and passwords in this machine's environment and login files, so that the check
before a push can refuse files that contain one."""

from __future__ import annotations

import configparser
import contextlib
import json
import netrc
import os
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, get_token

_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH(?!OR)", re.IGNORECASE)
_LEAST_CHARACTERS = 8
"""A shorter value, like `true`, may occur in any text."""


def known_secrets() -> set[str]:
    """Returns the secret values, none of them empty. A login file that can't be read is skipped."""
    found = {get_token() or ""}
    found |= {value for name, value in os.environ.items() if _NAMES.search(name)}
    for read in (_netrc, _ini_files, _json_files, _pgpass):
        with contextlib.suppress(OSError, ValueError, configparser.Error, netrc.NetrcParseError):
            found.update(read())
    # A variable may hold the path of a key file; the path itself is not secret.
    return {each for each in found if len(each) >= _LEAST_CHARACTERS and not os.path.exists(each)}


def _netrc() -> Iterator[str]:
    """Yields the passwords in `.netrc`, which trackers and other clients use."""
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    if file.is_file():
        for _, _, password in netrc.netrc(file).hosts.values():
            yield password or ""


def _ini_files() -> Iterator[str]:
    """Yields the keys of the Hub and of AWS."""
    aws = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials"
    for file in (Path(constants.HF_STORED_TOKENS_PATH), Path(aws)):
        content = configparser.ConfigParser(interpolation=None)
        content.read(file)
        for section in content.values():
            yield from (value for name, value in section.items() if _NAMES.search(name))


def _json_files() -> Iterator[str]:
    """Yields the keys of Google Cloud."""
    usual = Path.home() / ".config" / "gcloud" / "application_default_credentials.json"
    file = Path(os.environ.get("GOOGLE_APPLICATION_CREDENTIALS") or usual)
    if file.is_file():
        content = json.loads(file.read_text())
        yield from (str(value) for name, value in content.items() if _NAMES.search(name))


def _pgpass() -> Iterator[str]:
    """Yields the passwords of PostgreSQL, which may store Optuna's study."""
    yield os.environ.get("PGPASSWORD", "")
    file = Path(os.environ.get("PGPASSFILE") or Path.home() / ".pgpass")
    if file.is_file():
        yield from (line.rpartition(":")[2] for line in file.read_text().splitlines())
