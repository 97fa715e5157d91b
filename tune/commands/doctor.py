"""`dpo-tune doctor`: shows what this machine has and what a search needs, before it is started.

It reads what the search will read, and refuses what `run` would refuse.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_train.command_line import dpo_tune
from tune.config.schema import SearchConfig

if TYPE_CHECKING:
    from dpo_train.reference_pass.preview import Preview, TrainedPair

_RUNG_PAIRS = 128
"""A rung at this many pairs or more shows more than noise."""
_SHOWN_CHARACTERS = 240
"""How much of the beginning, and of the end, of a long text is shown."""
_BOUNDARY = "▶"


def examine(config: SearchConfig | None) -> Iterator[str]:
    """Yield the lines that `dpo-tune doctor` prints.

    Raises InputError where `run` would, after the lines that are true anyway; of several errors,
    the most serious.
    """
    if config is None:
        yield f"this machine, with Python {platform.python_version()}; to see what a search needs,"
        yield f"type `{dpo_tune('doctor', 'YAML')}`"
        yield from _machine()
        yield from _logins(None)
        return
    yield from _search(config)
    # These imports are slow, so they come after the first line is printed.
    from tune.search.preflight import refuse_impossible, refuse_impossible_end
    from tune.search.warm_start import with_earlier_points

    config = with_earlier_points(config)
    refuse_impossible(config)
    yield from _machine()
    yield from _logins(config)
    yield from _run_folder(config)
    if config.trainer != "simulated":
        yield from _model_and_data(config)
    if pushed := refuse_impossible_end(config):
        yield f"push         {pushed}"
    yield "ready        yes"


def _search(config: SearchConfig) -> Iterator[str]:
    confirmations = config.total_runs - config.total_trials
    yield (
        f"search       {config.name}: {config.total_trials} trials"
        + (f" and {confirmations} runs that confirm the best, " if confirmations else ", ")
        + f"{config.resources.cpus:g} CPU and {config.resources.gpus:g} GPU each"
    )
    for path, axis in config.space.items():
        yield f"             {path}: {axis.describe()}"
    if config.trainer == "simulated":
        yield "             simulated: no model, no data"


def _machine() -> list[str]:
    from dpo_train.storage.disk import free_bytes  # after the first line is printed
    from tune.search import gpus  # after the first line is printed

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    visible = gpus.visible_gpus()
    cluster = os.environ.get("RAY_ADDRESS", "none set; Ray will start on this machine")
    return [
        f"CPUs         {len(os.sched_getaffinity(0))}",
        f"memory       {memory / 1e9:.1f} GB",
        f"GPUs         {len(visible)}" + "".join(f"\n             {gpu}" for gpu in visible),
        *([f"C compiler   {gpus.c_compiler() or 'none'}"] if visible else []),
        f"cluster      {cluster}",
        f"free disk    {free_bytes(Path('.')) / 1e9:.1f} GB here",
    ]


def _logins(config: SearchConfig | None) -> list[str]:
    from huggingface_hub import constants, get_token  # slow to import

    from tune.tracking import trackers  # slow to import

    hub = "logged in" if get_token() else "not logged in (`hf auth login`; public models need none)"
    offline = " (HF_HUB_OFFLINE is set: only cached files)" if constants.HF_HUB_OFFLINE else ""
    states = trackers.logins(config)
    return [f"Hub          {hub}{offline}", *(f"{name:<13}{states[name]}" for name in states)]


def _run_folder(config: SearchConfig) -> Iterator[str]:
    from tune.run_folder.driver_lease import refresh  # after the first line is printed
    from tune.run_folder.folder import refuse_private_folder  # after the first line is printed
    from tune.run_folder.paths import RunFolder  # after the first line is printed
    from tune.search.resume import refuse_taken  # after the first line is printed

    folder = RunFolder.at(config.folder)
    refuse_private_folder(folder)
    refresh(folder)
    refuse_taken(folder, config)
    state = "holds this search; `run` will continue it" if folder.exists else "new"
    yield f"run folder   {folder}, {state}"


def _model_and_data(config: SearchConfig) -> Iterator[str]:
    """Yield the lines about model, data, tokens, memory and disk."""
    from dpo_train import model_source  # after the first line is printed
    from dpo_train.data import load_pairs  # after the first line is printed
    from dpo_train.reference_pass.preview import preview  # after the first line is printed
    from dpo_train.reference_pass.tokens import check_rows  # after the first line is printed
    from tune.search import memory_plan  # after the first line is printed
    from tune.search.prepared_data import FEW_HELD_OUT_PAIRS  # after the first line is printed

    # --- model and data ---
    resolved = config.model_copy(update={"model": model_source.resolve(config.model)})
    weights = model_source.parameter_count(resolved.model)
    yield f"model        {config.model.id}: reachable, {weights / 1e6:.1f} M weights"
    pairs = load_pairs(config.data)
    yield f"data         {config.data.id}: read as {pairs.read_as}; {pairs.summary()}"
    for bad in pairs.first_bad:
        yield f"             left out: {bad}"
    if (held_out := len(pairs.splits["eval"])) < FEW_HELD_OUT_PAIRS:
        yield (
            f"warning      {held_out} held-out pairs are too few to compare trials; give more "
            "rows, or a larger data.eval_fraction"
        )

    # --- tokens ---
    rows = [row for split in pairs.splits.values() for row in split]
    notes = check_rows(resolved.model, rows, config.data.on_bad_row)
    tokens = preview(resolved.model, config.data, pairs)
    yield f"tokenizer    {tokens.tokenizer}, with a chat template"
    for note in notes:
        yield f"             {note}"
    yield from _lengths(tokens, config.data.max_length_tokens)
    yield from _pair(tokens.example)

    # --- memory, the first rung, disk ---
    yield from memory_plan.lines(resolved, rows)
    yield from _first_rung(config)
    yield from _disk(resolved, len(pairs.splits["train"]) * config.most_epochs)


def _lengths(tokens: Preview, most: int) -> Iterator[str]:
    """Yield the lines about the pairs' lengths; pairs of more than `most` tokens are left out."""
    sample = ""
    if tokens.looked_at < tokens.rows:
        sample = f"; measured on {tokens.looked_at:,} of the {tokens.rows:,} pairs, drawn at random"
    yield (
        f"tokens       a prompt with its longer answer has {tokens.median:,} tokens (median), at "
        f"most {tokens.most_of_95_percent:,} in 95 % of the pairs, at most {tokens.longest:,} in "
        f"all{sample}"
    )
    too_long = tokens.dropped.get(f"longer than {most} tokens", 0)
    out = f"{too_long:,} ({too_long / tokens.looked_at:.1%})" if too_long else "none"
    yield f"             left out, longer than data.max_length_tokens ({most:,}): {out}"
    for reason, count in tokens.dropped.items():
        if count != too_long or not reason.startswith("longer"):
            yield f"             left out, {reason}: {count:,}"


def _pair(pair: TrainedPair) -> Iterator[str]:
    prompt, chosen, rejected = pair.tokens
    yield (
        f"one pair     {pair.place}, as it is trained: the prompt has {prompt} tokens, and the "
        f"model learns the text after {_BOUNDARY}"
    )
    yield _block("prompt", pair.prompt)
    yield _block(f"chosen, {chosen} tokens", _BOUNDARY + pair.chosen)
    yield _block(f"rejected, {rejected} tokens", _BOUNDARY + pair.rejected)


def _block(name: str, text: str) -> str:
    """Return a text, indented and with its line breaks. A long one is cut in the middle."""
    if len(text) > 2 * _SHOWN_CHARACTERS:
        text = f"{text[:_SHOWN_CHARACTERS]} … {text[-_SHOWN_CHARACTERS:]}"
    # Control characters of a dataset could take over the terminal, so we print them as escapes.
    shown = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    return f"  {name}:\n" + "\n".join(f"    | {line}" for line in shown.split("\n"))


def _disk(config: SearchConfig, train_pairs: int) -> Iterator[str]:
    from dpo_train.storage.disk import free_bytes  # after the first line is printed
    from tune.run_folder.paths import RunFolder  # after the first line is printed
    from tune.search.preflight import disk_bytes  # after the first line is printed

    most = disk_bytes(config, _most_reports(config, train_pairs))
    folder = RunFolder.at(config.folder)
    free = f"; {free_bytes(folder.path) / 1e9:.1f} GB free" if folder.url is None else ""
    yield f"disk         at most about {most / 1e9:.2f} GB in {folder}{free}"


def _most_reports(config: SearchConfig, train_pairs: int) -> int:
    """Return the most reports that a trial on `train_pairs` pairs can have."""
    trial, reports, pairs = config.base_trial(), 1, 0
    while (pairs := trial.next_evaluation(pairs)) < train_pairs:
        reports += 1
    return reports


def _first_rung(config: SearchConfig) -> Iterator[str]:
    first = config.stopping.grace_pairs
    if config.stopping.name != "none" and first < _RUNG_PAIRS:
        yield (
            f"warning      the first rung, at {first} pairs, comes too early to compare trials: in "
            "our measurements (benchmarks/RESULTS.md) the ranking of trials at 64 pairs and at "
            "their end had a rank correlation of 0.2 to 0.3, whether 20 or 240 pairs were held "
            f"out, and at {_RUNG_PAIRS} pairs or more one of 0.3 to 0.6; type "
            f"`--set stopping.grace_pairs={_RUNG_PAIRS}`"
        )
