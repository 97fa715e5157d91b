"""What is here and what a search needs, said before anything is spent.

It reads what the search will read, and refuses what `run` would refuse.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tune.config.schema import SearchConfig

if TYPE_CHECKING:
    from dpo_train.reference_pass.preview import Preview, TrainedPair

_RUNG_PAIRS = 128
"""From which on a rung tells more than noise."""
_SHOWN_CHARACTERS = 240
"""Of the beginning and of the end of a text."""
_BOUNDARY = "▶"


def examine(config: SearchConfig | None) -> Iterator[str]:
    """The lines that `dpo-tune doctor` prints. Raises InputError after those that still hold: where
    `run` would, and what is most wrong first."""
    if config is None:
        yield f"this machine, with Python {platform.python_version()}; a search was not named: type"
        yield "`dpo-tune doctor YAML` to see what it needs"
        yield from _machine()
        yield from _logins(None)
        return
    yield from _search(config)
    # Slow to import: the first line is there before them.
    from tune.search.preflight import refuse_impossible, refuse_impossible_end
    from tune.search.warm_start import with_earlier_points

    config = with_earlier_points(config)
    refuse_impossible(config)
    yield from _machine()
    yield from _logins(config)
    yield from _place(config)
    if config.trainer != "simulated":
        yield from _reads(config)
    if pushed := refuse_impossible_end(config):
        yield f"push         {pushed}"
    yield "ready        yes"


def _search(config: SearchConfig) -> Iterator[str]:
    again = config.total_runs - config.total_trials
    yield (
        f"search       {config.name}: {config.total_trials} trials"
        + (f" and {again} runs that confirm the best, " if again else ", ")
        + f"{config.resources.cpus:g} CPU and {config.resources.gpus:g} GPU each"
    )
    for path, axis in config.space.items():
        yield f"             {path}: {axis.describe()}"
    if config.trainer == "simulated":
        yield "             simulated: no model, no data"


def _machine() -> list[str]:
    from dpo_train.storage.disk import free_bytes  # after the first line
    from tune.search import gpus  # the same

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    there = gpus.visible_gpus()
    cluster = os.environ.get("RAY_ADDRESS", "none set; Ray starts on this machine")
    return [
        f"CPUs         {len(os.sched_getaffinity(0))}",
        f"memory       {memory / 1e9:.1f} GB",
        f"GPUs         {len(there)}" + "".join(f"\n             {gpu}" for gpu in there),
        *([f"C compiler   {gpus.c_compiler() or 'none'}"] if there else []),
        f"cluster      {cluster}",
        f"free disk    {free_bytes(Path('.')) / 1e9:.1f} GB here",
    ]


def _logins(config: SearchConfig | None) -> list[str]:
    from huggingface_hub import constants, get_token  # slow to import

    from tune.tracking import trackers  # slow to import

    hub = "logged in" if get_token() else "not logged in (`hf auth login`; public models need none)"
    offline = " (HF_HUB_OFFLINE is set: only what is cached)" if constants.HF_HUB_OFFLINE else ""
    states = trackers.logins(config)
    return [f"Hub          {hub}{offline}", *(f"{name:<13}{states[name]}" for name in states)]


def _place(config: SearchConfig) -> Iterator[str]:
    from tune.run_folder.driver_lease import refresh  # after the first line
    from tune.run_folder.folder import refuse_private_folder  # the same
    from tune.run_folder.paths import RunFolder  # the same
    from tune.search.resume import refuse_taken  # the same

    folder = RunFolder.at(config.folder)
    refuse_private_folder(folder)
    refresh(folder)
    refuse_taken(folder, config)
    goes_on = "a search that `run` goes on with" if folder.exists else "new"
    yield f"run folder   {folder}, {goes_on}"


def _reads(config: SearchConfig) -> Iterator[str]:
    """Model, data, tokens, memory and disk."""
    from dpo_train import model_source  # after the first line
    from dpo_train.data import load_pairs  # the same
    from dpo_train.reference_pass.preview import preview  # the same
    from dpo_train.reference_pass.tokens import check_rows  # the same
    from tune.search import memory_plan  # the same
    from tune.search.prepared_data import FEW_HELD_OUT_PAIRS  # the same

    resolved = config.model_copy(update={"model": model_source.resolve(config.model)})
    weights = model_source.parameter_count(resolved.model)
    yield f"model        {config.model.id}: reachable, {weights / 1e6:.1f} M weights"
    pairs = load_pairs(config.data)
    yield f"data         {config.data.id}: read as {pairs.read_as}; {pairs.summary()}"
    for bad in pairs.first_bad:
        yield f"             left out: {bad}"
    if (held_out := len(pairs.splits["eval"])) < FEW_HELD_OUT_PAIRS:
        yield (
            f"warning      {held_out} held-out pairs can't tell trials apart; give more rows, or "
            "a larger data.eval_fraction"
        )
    rows = [row for split in pairs.splits.values() for row in split]
    notes = check_rows(resolved.model, rows, config.data.on_bad_row)
    tokens = preview(resolved.model, config.data, pairs)
    yield f"tokenizer    {tokens.tokenizer}, with a chat template"
    for note in notes:
        yield f"             {note}"
    yield from _lengths(tokens, config.data.max_length_tokens)
    yield from _pair(tokens.example)
    yield from memory_plan.lines(resolved, rows)
    yield from _first_rung(config)
    yield from _disk(resolved, len(pairs.splits["train"]) * config.most_epochs)


def _lengths(tokens: Preview, most: int) -> Iterator[str]:
    """`most`: tokens of the longest pair that is not left out."""
    where = ""
    if tokens.looked_at < tokens.rows:
        where = f", of {tokens.looked_at:,} of the {tokens.rows:,} pairs, drawn at random"
    yield (
        f"tokens       a prompt with its longer answer has {tokens.median:,} (median), at most "
        f"{tokens.most_of_95_percent:,} in 95 % of the pairs, {tokens.longest:,} at most{where}"
    )
    too_long = tokens.dropped.get(f"longer than {most} tokens", 0)
    out = f"{too_long:,} ({too_long / tokens.looked_at:.1%})" if too_long else "none"
    yield f"             left out as longer than data.max_length_tokens, {most:,}: {out}"
    for reason, count in tokens.dropped.items():
        if count != too_long or not reason.startswith("longer"):
            yield f"             left out, {reason}: {count:,}"


def _pair(pair: TrainedPair) -> Iterator[str]:
    prompt, chosen, rejected = pair.tokens
    yield (
        f"one pair     {pair.place}, as it is trained: after {prompt} tokens of the prompt the "
        f"model learns what stands behind {_BOUNDARY}"
    )
    yield _block("prompt", pair.prompt)
    yield _block(f"chosen, {chosen} tokens", _BOUNDARY + pair.chosen)
    yield _block(f"rejected, {rejected} tokens", _BOUNDARY + pair.rejected)


def _block(name: str, text: str) -> str:
    """A text with its line breaks, indented; of a long one its beginning and its end."""
    if len(text) > 2 * _SHOWN_CHARACTERS:
        text = f"{text[:_SHOWN_CHARACTERS]} … {text[-_SHOWN_CHARACTERS:]}"
    # A dataset's control characters must not reach a terminal.
    shown = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    return f"  {name}:\n" + "\n".join(f"    | {line}" for line in shown.split("\n"))


def _disk(config: SearchConfig, train: int) -> Iterator[str]:
    from dpo_train.storage.disk import free_bytes  # after the first line
    from tune.run_folder.paths import RunFolder  # the same
    from tune.search.preflight import disk_bytes  # the same

    most, folder = disk_bytes(config, _reports(config, train)), RunFolder.at(config.folder)
    free = f"; {free_bytes(folder.path) / 1e9:.1f} GB free" if folder.url is None else ""
    yield f"disk         at most about {most / 1e9:.2f} GB in {folder}{free}"


def _reports(config: SearchConfig, train: int) -> int:
    """How many reports a trial of so many pairs has at most."""
    trial, reports, pairs = config.base_trial(), 1, 0
    while (pairs := trial.next_evaluation(pairs)) < train:
        reports += 1
    return reports


def _first_rung(config: SearchConfig) -> Iterator[str]:
    first = config.stopping.grace_pairs
    if config.stopping.name != "none" and first < _RUNG_PAIRS:
        yield (
            f"warning      the first rung, at {first} pairs, lies in the noise: where it was "
            "recorded (benchmarks/RESULTS.md) the order of trials at 64 pairs agreed with that of "
            "their end by a rank correlation of 0.2 to 0.3, whether 20 or 240 pairs were held out, "
            f"and from {_RUNG_PAIRS} pairs on by 0.3 to 0.6; type "
            f"`--set stopping.grace_pairs={_RUNG_PAIRS}`"
        )
