"""Measures reading, checking and tokenising a large dataset in UltraFeedback's form.

    python benchmarks/data_size.py [ROWS] [MODEL]

Writes made-up rows (a prompt beside two whole conversations, about 1,100 tokens over the three
texts of a row), then reads and plans them in one process and tokenises them in another, as a search
does. Prints CPU seconds of both and the largest resident memory of either.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dpo_train import data, model_source, reference, sample
from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.reference_pass.tokens import IDS, TokenFile, read_summary

PROMPT_WORDS, ANSWER_WORDS = 120, 200


def main(rows: int, model: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "train.jsonl", rows)
        size = (folder / "train.jsonl").stat().st_size
        config = override(
            TrainConfig(),
            {"model.id": model, "data.id": str(folder / "train.jsonl"),
             "data.max_length_tokens": 4096},
        )  # fmt: skip
        config = config.model_copy(update={"model": model_source.resolve(config.model)})
        began, cpu = time.monotonic(), cpu_seconds()
        pairs = data.load_pairs(config.data)
        read = cpu_seconds() - cpu
        planned = reference.plan(config, pairs, folder / "prepared", "cpu")
        print(f"{pairs.read_as}; {size / 1e6:.0f} MB")
        del pairs
        subprocess.run(
            [sys.executable, "-m", "dpo_train.reference_pass", str(planned)],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        seconds, total = time.monotonic() - began, cpu_seconds() - cpu
        summary = read_summary(planned)
        assert summary is not None
        tokens = TokenFile(planned, summary.pad_token_id)
        columns = tokens.columns(range(1000))
        prompt, chosen, rejected = (sum(map(len, columns[each])) / 1000 for each in IDS)
    peaks = [
        resource.getrusage(who).ru_maxrss / 1e6
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    print(
        f"{rows:,} rows of {3 * prompt + chosen + rejected:.0f} tokens over three texts: "
        f"{total:.0f} CPU seconds ({read:.0f} to read and filter), {seconds:.0f} s; at most "
        f"{peaks[0]:.2f} GB to read, {peaks[1]:.2f} GB to tokenise"
    )


def write(path: Path, rows: int) -> None:
    """Write made-up rows."""
    draw = random.Random(0)
    known = [json.loads(line) for line in sample.PAIRS.read_text().splitlines()]
    words = " ".join(f"{row['prompt']} {row['chosen']} {row['rejected']}" for row in known).split()

    def text(average: int) -> str:
        count = draw.randint(average // 2, average * 3 // 2)
        first = draw.randrange(len(words) - count)
        return " ".join(words[first : first + count])

    with path.open("w") as file:
        for number in range(rows):
            prompt = f"{number}: {text(PROMPT_WORDS)}"
            user = {"role": "user", "content": prompt}
            row: dict[str, object] = {"prompt": prompt}
            for side in ("chosen", "rejected"):
                row[side] = [user, {"role": "assistant", "content": text(ANSWER_WORDS)}]
            file.write(json.dumps({**row, "messages": row["chosen"], "score_chosen": 8.0}) + "\n")


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 60_000,
        sys.argv[2] if len(sys.argv) > 2 else "sample",
    )
