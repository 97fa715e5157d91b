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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpo_train import metrics, model
from dpo_train.config import InputError, ModelConfig, TrainConfig
from dpo_train.data import SPLITS, Pairs, Row, row_to_json

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
_TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 32768}


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
        from datasets import Dataset

        return Dataset.from_file(str(self.folder / f"{name}.arrow"))


def plan(config: TrainConfig, pairs: Pairs, root: Path, device: str) -> Path:
    """Names the prepared folder and writes into it what `prepare` needs; imports no torch.

    `config.model` must be resolved. A GPU computes under bfloat16 autocast, so the device's
    kind is part of the key.
    """
    rows = [
        json.dumps({"split": name, **row_to_json(row)}, ensure_ascii=False)
        for name in SPLITS
        for row in pairs.splits[name]
    ]
    text = "\n".join(rows) + "\n"
    recipe = {
        "format": FORMAT,
        "model": model.fingerprint(config.model),
        "dtype": config.model.dtype,
        "device": device,
        "max_length_tokens": config.data.max_length_tokens,
        "rows": hashlib.sha256(text.encode()).hexdigest(),
    }
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / key
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "plan.json").exists():
        write_atomically(folder / "rows.jsonl", text)
        asked = {**recipe, "base": config.model.model_dump(mode="json")}
        write_atomically(folder / "plan.json", json.dumps(asked, indent=1))
    return folder


def prepare(folder: Path) -> PreparedData:
    """The prepared data at a planned folder, computed if it isn't whole yet.

    Raises InputError if no pair is left after tokenising.
    """
    if finished := _finished(folder, computed=0):
        return finished
    with _one_process(folder / "lock"):
        if finished := _finished(folder, computed=0):
            return finished
        return _compute(folder)


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never a part."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


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


def checksum(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def _one_process(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compute(folder: Path) -> PreparedData:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    asked = json.loads((folder / "plan.json").read_text())
    base = ModelConfig(**asked["base"])
    if checksum(folder / "rows.jsonl") != asked["rows"]:
        (folder / "plan.json").unlink()
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
    forward = forward_pass(warm.fresh(trained_in_full=False), asked["device"])
    numbers: dict[str, dict[str, Any]] = {}
    sums: dict[str, str] = {}
    # Another node may do the same where its lock is not seen: neither disturbs the other.
    working = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
    for name in SPLITS:
        collated = batches(columns[name], pad_token_id, asked["device"])
        chosen, rejected = score_batches(collated, len(columns[name]["prompt_ids"]), forward)
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
    write_atomically(working / "manifest.json", json.dumps(manifest, indent=1))
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
        start = min(_shared_length(prompt, chosen), _shared_length(prompt, rejected))
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


def _shared_length(left: list[int], right: list[int]) -> int:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def _refuse_nothing_left(columns: dict[str, dict[str, list[Any]]], dropped: Counter[str]) -> None:
    for name, split in columns.items():
        if not split["prompt_ids"]:
            took = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
            raise InputError(
                f"data: no pair is left for {name} after tokenising ({took}); raise "
                "data.max_length_tokens or give other rows"
            )


def score_batches(
    rows_of_batches: Iterable[tuple[list[int], dict[str, torch.Tensor]]],
    rows: int,
    forward: Callable[[dict[str, torch.Tensor]], torch.Tensor],
) -> tuple[metrics.Floats, metrics.Floats]:
    """Summed completion log-probs of every pair's chosen and rejected, each of shape (rows,).

    `forward` takes a batch of TRL's preference collator and returns summed log-probs of shape
    (2B,), chosen first.
    """
    chosen: metrics.Floats = np.zeros(rows)
    rejected: metrics.Floats = np.zeros(rows)
    for members, batch in rows_of_batches:
        first, second = forward(batch).double().cpu().chunk(2)
        chosen[members], rejected[members] = first.numpy(), second.numpy()
    return chosen, rejected


def batches(
    columns: dict[str, list[Any]], pad_token_id: int, device: str
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """(row numbers, collated batch on the device), rows of like length together."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    collate = DataCollatorForPreference(pad_token_id=pad_token_id)
    names = [name for name in columns if name.endswith(("_ids", "_logps"))]
    data = {name: columns[name] for name in names}
    lengths = [
        len(prompt) + max(len(chosen), len(rejected))
        for prompt, chosen, rejected in zip(
            data["prompt_ids"], data["chosen_ids"], data["rejected_ids"], strict=True
        )
    ]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    while order:
        size = max(1, _TOKENS_PER_BATCH[device] // (2 * lengths[order[-1]]))
        members, order = order[-size:], order[:-size]
        batch = collate([{name: data[name][row] for name in names} for row in members])
        yield members, {name: tensor.to(device) for name, tensor in batch.items()}


def forward_pass(base: Any, device: str) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """The pass over a batch that `score_batches` wants, for any causal model, without gradients."""
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from dpo_train import trl_patches  # noqa: F401

    add_fused_lm_head(base)
    base.eval()

    def forward(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ids, mask = batch["input_ids"], batch["completion_mask"]
        labels = ids.masked_fill(mask == 0, -100)
        autocast = torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda")
        with torch.no_grad(), autocast:
            outputs = base(
                input_ids=ids,
                attention_mask=batch["attention_mask"],
                labels=labels,
                fused_lm_head=True,
            )
        summed: torch.Tensor = outputs.log_probs.sum(dim=1)
        return summed

    return forward


def pair_logps(
    columns: dict[str, list[Any]], chosen: metrics.Floats, rejected: metrics.Floats
) -> metrics.PairLogps:
    """A policy's scores beside the stored reference's."""
    return metrics.PairLogps(
        chosen=chosen,
        rejected=rejected,
        ref_chosen=column(columns, "ref_chosen_logps"),
        ref_rejected=column(columns, "ref_rejected_logps"),
        chosen_tokens=np.array([len(ids) for ids in columns["chosen_ids"]], dtype=np.float64),
        rejected_tokens=np.array([len(ids) for ids in columns["rejected_ids"]], dtype=np.float64),
    )


def prompt_keys(folder: Path, split: str) -> list[str]:
    """The prompt of each row of a split, in order; rows of one prompt have the same. No torch."""
    import pyarrow

    with pyarrow.memory_map(str(folder / f"{split}.arrow")) as file:
        table = pyarrow.ipc.open_stream(file).read_all()
        keys: list[str] = table["prompt_key"].to_pylist()
    return keys


def column(columns: dict[str, list[Any]], name: str) -> metrics.Floats:
    """A column of numbers, of shape (rows,)."""
    return np.array(columns[name], dtype=np.float64)


def _base_numbers(
    columns: dict[str, list[Any]], chosen: metrics.Floats, rejected: metrics.Floats
) -> dict[str, Any]:
    won = metrics.ranking(pair_logps(columns, chosen, rejected))
    return {
        "ranking": float(won.mean()),
        "interval": metrics.bootstrap_interval(won, columns["prompt_key"]),
        "pairs": len(won),
    }
