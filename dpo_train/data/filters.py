"""Filters the rows, and cuts those that pass into train, eval and test."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable

from dpo_train.config import DataConfig
from dpo_train.data.row import SPLITS, SYSTEM_ROLES, Row, text_of


def filtered(rows: Iterable[Row], config: DataConfig, dropped: Counter[str]) -> list[Row]:
    """Return the rows that pass the filters, at most `config.limit`.

    `dropped` counts the others by reason.
    """
    kept: list[Row] = []
    seen: set[bytes] = set()
    for row in rows:
        if reason := _reason_against(row, config):
            dropped[reason] += 1
            continue
        digest = hashlib.sha256(json.dumps(row.as_json()).encode()).digest()
        if digest in seen:
            dropped["duplicates"] += 1
            continue
        seen.add(digest)
        kept.append(row)
    return kept[: config.limit]


def cut(rows: list[Row], config: DataConfig) -> dict[str, list[Row]]:
    """Cut the rows into splits. All rows of a prompt go into the same split.

    The prompts are taken in a random order: first for test, then for eval, the rest for train.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.prompt_key, []).append(row)
    keys = sorted(groups)
    random.Random(config.split_seed).shuffle(keys)
    wanted = {
        "test": max(1, round(len(rows) * config.test_fraction)),
        "eval": max(1, round(len(rows) * config.eval_fraction)),
    }
    splits: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for key in keys:
        name = next((n for n, count in wanted.items() if len(splits[n]) < count), "train")
        splits[name].extend(groups[key])
    return splits


def without_overlap(splits: dict[str, list[Row]], dropped: Counter[str]) -> dict[str, list[Row]]:
    """Remove the prompts of test from eval and train, and the prompts of eval from train."""
    taken: set[str] = set()
    clean: dict[str, list[Row]] = {}
    for name in reversed(SPLITS):
        keys = [row.prompt_key for row in splits[name]]
        clean[name] = [row for key, row in zip(keys, splits[name], strict=True) if key not in taken]
        if lost := len(splits[name]) - len(clean[name]):
            held_out = "test" if name == "eval" else "eval or test"
            dropped[f"prompt of {name} is also in {held_out}"] += lost
        taken.update(keys)
    return {name: clean[name] for name in SPLITS}


def _reason_against(row: Row, config: DataConfig) -> str | None:
    prompt = text_of([m for m in row.prompt if m["role"] not in SYSTEM_ROLES])
    chosen, rejected = text_of(row.chosen), text_of(row.rejected)
    called = [
        any("tool_calls" in message for message in answer) for answer in (row.chosen, row.rejected)
    ]
    if not prompt.strip():
        return "empty prompt"
    if not (chosen.strip() or called[0]) or not (rejected.strip() or called[1]):
        return "empty answer"
    if row.chosen == row.rejected:
        return "chosen and rejected are the same"
    if config.chars:
        fewest, most = config.chars
        for name, text in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
            if len(text) < fewest:
                return f"{name} shorter than {fewest} characters"
            if len(text) > most:
                return f"{name} longer than {most} characters"
    return None
