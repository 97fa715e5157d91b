"""Tokenises the rows of a search in a separate process, while Ray starts.

The tokenizer's library imports torch, which takes seconds, and starts threads, which neither the
driver nor a process of Ray should have. So it runs in its own process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from dpo_train.data.bad_rows import listed
from dpo_train.errors import InputError
from dpo_train.reference_pass.tokens import SUMMARY, read_summary
from dpo_train.storage import mirror
from tune.search.signs_of_life import SignsOfLife
from tune.search.view import View

_SHOWN_OF_STDERR = 2000


class Tokenising:
    """The process that tokenises. It starts at once, unless the folder is already tokenised."""

    def __init__(self, folder: Path | None) -> None:
        """`folder` holds the planned data; it is None for a search without data."""
        self._folder = folder
        self._done, self._total = 0, 0
        self._error = ""
        self._process: subprocess.Popen[str] | None = None
        if folder is None:
            return
        if read_summary(folder) is not None and mirror.exists(folder / "manifest.json"):
            return
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dpo_train.reference_pass", str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "true", "OMP_NUM_THREADS": "1"},
        )
        self._listening = [
            threading.Thread(target=target, daemon=True)
            for target in (self._read_progress, self._read_stderr)
        ]
        self._stderr = ""
        for thread in self._listening:
            thread.start()

    def finish(self, name: str, signs: SignsOfLife, on_bad_row: str) -> None:
        """Wait for the end and print what was found. Raises InputError for refused rows."""
        if self._folder is None:
            return
        if self._process is not None:
            signs.follow(lambda: View(doing=self._line()))
            code = self._process.wait()
            for thread in self._listening:
                thread.join()
            if self._error:
                raise InputError(self._error)
            if code:
                raise RuntimeError(f"tokenising ended with {code}: {self._stderr.strip()}")
        summary = read_summary(self._folder)
        if summary is None:
            raise RuntimeError(f"{self._folder} has no {SUMMARY}")
        summary.refuse_bad(on_bad_row)
        for note in summary.notes:
            signs.say(f"{name}: {note}")
        if summary.dropped:
            signs.say(f"{name}: left out after tokenising: {listed(summary.dropped)}")

    def close(self) -> None:
        """End the process if it is still running."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _line(self) -> str:
        if not self._total:
            return "loading the tokenizer"
        return f"tokenised {self._done:,} of {self._total:,} rows"

    def _read_progress(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                message = json.loads(line)
                self._error = message.get("error", "")
                self._done, self._total = message.get("done", 0), message.get("total", 0)

    def _read_stderr(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self._stderr = (self._stderr + line)[-_SHOWN_OF_STDERR:]
