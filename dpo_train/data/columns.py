"""Finds the parts of a preference pair in a dataset's columns, by `data.columns` or by name."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from dpo_train.config import DataColumns
from dpo_train.data.files import Fields
from dpo_train.errors import InputError

Parts = Mapping[str, object]
"""The values of a record, by the part of the pair: prompt, chosen, rejected, system, tools, …"""
_STEP = re.compile(r"\[(-?\d+)\]|\.?([^.\[\]]+)")
_PATH = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[-?\d+\])*")
_PROMPTS = ("prompt", "question", "instruction", "input", "query", "problem", "user_prompt",
            "conversations", "conversation", "messages")  # fmt: skip
"""Columns that hold the prompt in other datasets. If a dataset has one of them, the prompt is not
taken from the answers."""
_CHOSEN = ("correct", "best_answer", "accepted", "preferred", "good", "chosen_response",
           "answer_chosen", "response_chosen", "winner")  # fmt: skip
_REJECTED = ("wrong", "incorrect", "worst_answer", "dispreferred", "bad", "rejected_response",
             "answer_rejected", "response_rejected", "loser", "incorrect_answers")  # fmt: skip
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")


class Columns:
    """Finds the parts of a pair in a record."""

    media = _MEDIA

    def __init__(self, config: DataColumns) -> None:
        self._paths: dict[str, str] = {
            part: path for part, path in config.model_dump().items() if path is not None
        }
        for part, path in self._paths.items():
            if not _PATH.fullmatch(path) and any(mark in path for mark in "[]"):
                raise InputError(
                    f"data.columns.{part}: {path!r} is not a column or a path; type a name, or a "
                    "path like messages[0].content or answers.0"
                )

    @property
    def wanted(self) -> set[str]:
        """The names of all columns that have to be read."""
        paths = self._paths.values()
        return {*paths, *map(_first_name, paths), *_MEDIA}

    def parts(self, record: Fields) -> Parts:
        """Return the value of each part whose column the record has; NaN becomes None."""
        return {
            part: _value(record, path)
            for part, path in self._paths.items()
            if path in record or _first_name(path) in record
        }

    def unread(self, names: Collection[str]) -> list[str]:
        """Return the columns that are not part of a pair."""
        paths = self._paths.values()
        return sorted(set(names) - set(paths) - set(map(_first_name, paths)))

    def check(
        self, names: Collection[str], filled: Collection[str], found: Collection[str]
    ) -> None:
        """Raise InputError unless the dataset's columns fit the configuration.

        The columns must include chosen, rejected and every path that the configuration sets, and no
        other column may look like the prompt. `names` are the dataset's columns, `filled` the
        columns of media that have a value in some row, and `found` the parts that have one.
        """
        # Paths that the configuration sets exist and have values.
        for part, path in self._paths.items():
            if path != part and not {path, _first_name(path)} & set(names):
                close = difflib.get_close_matches(_first_name(path), list(names), n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise InputError(
                    f"data.columns.{part}: no column {path!r}; {hint}the dataset has "
                    f"{', '.join(sorted(names))}"
                )
            is_wanted = path != part or (part == "prompt" and part in names)
            if is_wanted and part not in found:
                raise InputError(
                    f"data.columns.{part}: {path!r} is null or missing in all rows; type "
                    f"`--set data.columns.{part}=NAME`, or a path in a column, or "
                    f"`--set data.columns.{part}=null` to train without it"
                )
        # There are no images, audio or video.
        for name in _MEDIA:
            if name in filled:
                raise InputError(
                    f"data: the dataset has a column {name!r}, and only text is trained; give a "
                    "dataset without it, or a copy from which you removed that column"
                )
        # Chosen, rejected and the prompt are found, or we suggest columns for them.
        usual = {name.lower().replace(" ", "_"): name for name in sorted(names)}
        missing = [part for part in ("chosen", "rejected") if self._is_missing(part, names)]
        prompts = [usual[name] for name in _PROMPTS if name in usual]
        has_prompt = "prompt" not in self._paths or not self._is_missing("prompt", names)
        if not missing and (has_prompt or not prompts):
            return
        guesses: dict[str, str] = {} if has_prompt or not prompts else {"prompt": prompts[0]}
        for part, known in (("chosen", _CHOSEN), ("rejected", _REJECTED)):
            if part in missing:
                guesses[part] = next((usual[name] for name in known if name in usual), "NAME")
        raise InputError(_mapping_to_type(missing, guesses, names))

    def _is_missing(self, part: str, names: Collection[str]) -> bool:
        return self._paths[part] == part and part not in names


def _mapping_to_type(missing: list[str], found: dict[str, str], names: Collection[str]) -> str:
    given = (
        f"no column {missing[0]!r}" if missing else f"no column 'prompt', but {found['prompt']!r}"
    )
    typed = []
    for part, name in found.items():
        # Columns like `incorrect_answers` hold a list, so we suggest its first answer.
        path = f"{name}[0]" if name.lower().startswith("incorrect") else name
        typed.append(f"--set {shlex.quote(f'data.columns.{part}={path}')}")
    message = (
        f"data: {given}; the dataset has {', '.join(sorted(names))}; say which column is which "
        f"part of a pair: type `{' '.join(typed)}`"
    )
    if not missing:
        message += (
            ", or `--set data.columns.prompt=null` if chosen and rejected begin with the prompt"
        )
    return message


def _first_name(path: str) -> str:
    return re.split(r"[.\[]", path, maxsplit=1)[0]


def _value(record: Fields, path: str) -> Any:
    if path in record:
        return _null_if_nan(record[path])
    value: Any = record
    for index, name in _STEP.findall(path):
        if isinstance(value, list) and (index or re.fullmatch(r"-?[0-9]+", name)):
            number = int(index or name)
            value = value[number] if -len(value) <= number < len(value) else None
        elif isinstance(value, dict) and name:
            value = value.get(name)
        else:
            return None
    return _null_if_nan(value)


def _null_if_nan(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value
