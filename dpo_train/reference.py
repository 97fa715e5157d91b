"""Tokenised rows and reference log-probs, computed once per base model and data, then mapped.

The folder's name is a key of everything that decides the numbers; its manifest is written last.
Knows nothing of what is searched: no learning rate, beta, loss or rank.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_train import model, model_source
from dpo_train.config import ModelConfig, TrainConfig
from dpo_train.data import SPLITS, Pairs, Row, shared_length
from dpo_train.errors import InputError
from dpo_train.scoring import logps, metrics
from dpo_train.scoring.bootstrap import bootstrap_interval
from dpo_train.storage import mirror
from dpo_train.storage.files import checksum, write_atomically, write_here

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

FORMAT = 1


@dataclass(frozen=True)
class PreparedData:
    """A finished folder. `computed_pairs` counts the reference forwards that this call made."""

    folder: Path
    pad_token_id: int
    base: dict[str, dict[str, Any]]
    """Per split eval and test: ranking, its interval, pairs."""
    dropped: dict[str, int]
    computed_pairs: int

    def split(self, name: str) -> Dataset:
        """The rows of train, eval or test, memory-mapped.

        Columns: prompt_ids, chosen_ids, rejected_ids, ref_chosen_logps, ref_rejected_logps (sums
        over completion tokens, in nats), prompt (messages as JSON), chosen (text), prompt_key.
        """
        from datasets import Dataset  # slow to import

        return Dataset.from_file(str(self.folder / f"{name}.arrow"))


def plan(config: TrainConfig, pairs: Pairs, root: Path, device: str) -> Path:
    """Names the prepared folder and writes into it what `prepare` needs; imports no torch.

    `config.model` must be resolved. A GPU computes under bfloat16 autocast, so the device's
    kind is part of the key.
    """
    rows = [
        json.dumps({"split": name, **vars(row)}, ensure_ascii=False)
        for name in SPLITS
        for row in pairs.splits[name]
    ]
    text = "\n".join(rows) + "\n"
    recipe = {
        "format": FORMAT,
        "model": model_source.fingerprint(config.model),
        "dtype": config.model.dtype,
        "device": device,
        "max_length_tokens": config.data.max_length_tokens,
        "rows": hashlib.sha256(text.encode()).hexdigest(),
    }
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / key
    folder.mkdir(parents=True, exist_ok=True)
    if not mirror.exists(folder / "plan.json"):
        write_atomically(folder / "rows.jsonl", text)
        asked = {**recipe, "base": config.model.model_dump(mode="json")}
        write_atomically(folder / "plan.json", json.dumps(asked, indent=1))
    return folder


def prepare(folder: Path) -> PreparedData:
    """The prepared data at a planned folder, computed if it isn't whole yet; of a URL what another
    node computed is taken.

    Raises InputError if no pair is left after tokenising.
    """
    if finished := _finished(folder, computed=0):
        return finished
    folder.mkdir(parents=True, exist_ok=True)  # of a URL
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if finished := _finished(folder, computed=0) or _bring(folder, computed=0):
            return finished
        for name in ("rows.jsonl", "plan.json"):
            mirror.fetch_once(folder / name)
        finished = _compute(folder)
        if theirs := _bring(folder, finished.computed_pairs):
            return theirs
        for name in (*(f"{split}.arrow" for split in SPLITS), "manifest.json"):
            mirror.put(folder / name)  # onto the folder's URL, the manifest last
        return finished


def _finished(folder: Path, computed: int) -> PreparedData | None:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except FileNotFoundError:
        return None
    for name, wanted in manifest.get("sha256", {"": ""}).items():
        if not _is_as_written(folder / name, wanted):
            (folder / "manifest.json").unlink(missing_ok=True)
            return None
    return PreparedData(
        folder, manifest["pad_token_id"], manifest["base"], manifest["dropped"], computed
    )


def _bring(folder: Path, computed: int) -> PreparedData | None:
    """What another node computed and brought onto the folder's URL."""
    if mirror.url(folder) is None:
        return None
    try:
        manifest = json.loads(mirror.read_text(folder / "manifest.json"))
    except FileNotFoundError:
        return None
    for name in manifest["sha256"]:
        mirror.fetch(folder / name)
    mirror.fetch(folder / "manifest.json")
    if finished := _finished(folder, computed):
        return finished
    # Not as it was written: two nodes may have brought theirs at once. It is computed anew.
    mirror.remove(folder / "manifest.json")
    return None


def _is_as_written(file: Path, wanted: str) -> bool:
    """Read whole once in a process, however many trials it trains."""
    if not file.is_file():
        return False
    stat = file.stat()
    seen = (str(file), stat.st_mtime_ns, stat.st_size, wanted)
    if seen not in _verified:
        if checksum(file) != wanted:
            return False
        _verified.add(seen)
    return True


_verified: set[tuple[str, int, int, str]] = set()


def _compute(folder: Path) -> PreparedData:
    from datasets import Dataset, disable_progress_bars  # slow to import

    disable_progress_bars()
    asked = json.loads((folder / "plan.json").read_text())
    base = ModelConfig(**asked["base"])
    if checksum(folder / "rows.jsonl") != asked["rows"]:
        mirror.remove(folder / "plan.json")
        mirror.forget(folder / "rows.jsonl")
        raise InputError(
            f"{folder}/rows.jsonl is not as it was written; type the same command again, it is "
            "written anew from the dataset"
        )
    rows: dict[str, list[Row]] = {name: [] for name in SPLITS}
    # Not splitlines: texts from the web hold U+2028 and its like.
    for line in (folder / "rows.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n"):
        row = json.loads(line)
        rows[row.pop("split")].append(Row(**row))
    warm = model.load_base(base, asked["device"])
    dropped: Counter[str] = Counter()
    columns = {
        name: _tokenise(rows[name], warm.tokenizer, asked["max_length_tokens"], dropped)
        for name in SPLITS
    }
    _refuse_nothing_left(columns, dropped)

    pad_token_id = int(warm.tokenizer.pad_token_id)
    untrained = warm.fresh(trained_in_full=False)
    numbers: dict[str, dict[str, Any]] = {}
    sums: dict[str, str] = {}
    # Another node may do the same where its lock is not seen: neither disturbs the other.
    working = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
    for name in SPLITS:
        chosen, rejected = logps.score(untrained, columns[name], pad_token_id, asked["device"])
        columns[name]["ref_chosen_logps"] = chosen.tolist()
        columns[name]["ref_rejected_logps"] = rejected.tolist()
        Dataset.from_dict(columns[name]).save_to_disk(working / name, num_shards=1)
        (arrow,) = (working / name).glob("*.arrow")
        arrow.replace(folder / f"{name}.arrow")
        sums[f"{name}.arrow"] = checksum(folder / f"{name}.arrow")
        if name != "train":
            numbers[name] = _base_numbers(columns[name], chosen, rejected)
    pairs = {name: len(columns[name]["prompt_ids"]) for name in SPLITS}
    manifest = {
        "format": FORMAT,
        "pairs": pairs,
        "dropped": dict(dropped),
        "pad_token_id": pad_token_id,
        "base": numbers,
        "sha256": sums,
    }
    write_here(working / "manifest.json", json.dumps(manifest, indent=1))
    (working / "manifest.json").replace(folder / "manifest.json")
    shutil.rmtree(working)
    finished = _finished(folder, computed=sum(pairs.values()))
    assert finished is not None
    return finished


def _tokenise(
    rows: list[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_length_tokens: int,
    dropped: Counter[str],
) -> dict[str, list[Any]]:
    """Token ids as TRL's DPOTrainer makes them: the completion starts where the rendered prompt
    and the rendered conversation part ways."""
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("prompt_ids", "chosen_ids", "rejected_ids", "prompt", "chosen", "prompt_key")
    }
    for row in rows:
        prompt = _template(tokenizer, row.prompt, add_generation_prompt=True)
        chosen = _template(tokenizer, row.prompt + row.chosen)
        rejected = _template(tokenizer, row.prompt + row.rejected)
        start = min(shared_length(prompt, chosen), shared_length(prompt, rejected))
        chosen_ids, rejected_ids = chosen[start:], rejected[start:]
        if not prompt[:start] or not chosen_ids or not rejected_ids:
            dropped["empty after tokenising"] += 1
        elif chosen_ids == rejected_ids:
            dropped["identical after tokenising"] += 1
        elif start + max(len(chosen_ids), len(rejected_ids)) > max_length_tokens:
            dropped[f"longer than {max_length_tokens} tokens"] += 1
        else:
            columns["prompt_ids"].append(prompt[:start])
            columns["chosen_ids"].append(chosen_ids)
            columns["rejected_ids"].append(rejected_ids)
            columns["prompt"].append(json.dumps(row.prompt, ensure_ascii=False))
            columns["chosen"].append(row.chosen[-1]["content"])
            columns["prompt_key"].append(row.prompt_key)
    return columns


def _template(tokenizer: PreTrainedTokenizerBase, messages: list[Any], **options: Any) -> list[int]:
    encoded: Any = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, **options
    )
    return list(encoded["input_ids"])


def _refuse_nothing_left(columns: dict[str, dict[str, list[Any]]], dropped: Counter[str]) -> None:
    for name, split in columns.items():
        if not split["prompt_ids"]:
            took = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
            raise InputError(
                f"data: no pair is left for {name} after tokenising ({took}); raise "
                "data.max_length_tokens or give other rows"
            )


def prompt_keys(folder: Path, split: str) -> list[str]:
    """The prompt of each row of a split, in order; rows of one prompt have the same. No torch."""
    import pyarrow  # slow to import

    with pyarrow.memory_map(str(folder / f"{split}.arrow")) as file:
        table = pyarrow.ipc.open_stream(file).read_all()
        keys: list[str] = table["prompt_key"].to_pylist()
    return keys


def _base_numbers(
    columns: dict[str, list[Any]], chosen: metrics.Floats, rejected: metrics.Floats
) -> dict[str, Any]:
    won = metrics.ranking(logps.pair_logps(columns, chosen, rejected))
    return {
        "ranking": float(won.mean()),
        "interval": bootstrap_interval(won, columns["prompt_key"]),
        "pairs": len(won),
    }
