"""Twelve pairs, written as files of every format and rows of every form.

Functions of a number make one row. Functions of a folder write a dataset into it and return the
path for `data.id`.
"""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

COUNT = 12
Record = dict[str, Any]


# --- the same pairs in every form ----------------------------------------------------------------


def ask(number: int) -> str:
    return f"Which number follows {number}?"


def good(number: int) -> str:
    return f"The answer is {number + 1}."


def bad(number: int) -> str:
    return f"It must be {number}, so sure."


def message(role: str, content: str) -> Record:
    return {"role": role, "content": content}


def user(number: int) -> Record:
    return message("user", ask(number))


HISTORY = [message("user", "Do you know numbers?"), message("assistant", "The whole ones.")]


def texts(number: int) -> Record:
    return {"prompt": ask(number), "chosen": good(number), "rejected": bad(number)}


def answers(number: int) -> Record:
    return {
        "prompt": [user(number)],
        "chosen": [message("assistant", good(number))],
        "rejected": [message("assistant", bad(number))],
    }


def conversations(number: int, history: bool = False) -> Record:
    before = [*(HISTORY if history else []), user(number)]
    return {
        "chosen": [*before, message("assistant", good(number))],
        "rejected": [*before, message("assistant", bad(number))],
    }


def with_prompt(number: int) -> Record:
    return {"prompt": ask(number), **conversations(number), "score_chosen": 8.0}


def sharegpt(number: int) -> Record:
    return {
        "conversations": [{"from": "human", "value": ask(number)}],
        "chosen": {"from": "gpt", "value": good(number)},
        "rejected": {"from": "gpt", "value": bad(number)},
    }


def transcript(number: int) -> Record:
    before = f"\n\nHuman: {ask(number)}\n\nAssistant: "
    return {"chosen": before + good(number), "rejected": before + bad(number)}


# --- files -----------------------------------------------------------------------------------


def write_text(path: Path, content: str) -> None:
    raw = content.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def lines(make: Callable[[int], Record], name: str = "rows.jsonl") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(make(number)) + "\n" for number in range(COUNT))
        write_text(path, text)
        return path

    return write


def array(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        content = json.dumps([texts(number) for number in range(COUNT)], indent=1)
        write_text(path, content)
        return path

    return write


def table(
    name: str = "rows.csv",
    make: Callable[[int], Record] = texts,
    delimiter: str = ",",
    encoding: str = "utf-8",
) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        with path.open("w", newline="", encoding=encoding) as file:
            writer = csv.DictWriter(file, list(make(0)), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(make(number) for number in range(COUNT))
        return path

    return write


def text(content: str, name: str = "rows.csv") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return write


def parquet(make: Callable[[int], Record], name: str = "rows.parquet") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        rows = [make(number) for number in range(COUNT)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path

    return write


def clone(folder: Path) -> Path:
    """Write shards in data/, as in a clone from the Hub."""
    (folder / "data").mkdir()
    rows = [texts(number) for number in range(COUNT)]
    for shard in range(2):
        rows_of_shard = pyarrow.Table.from_pylist(rows[shard::2])
        name = f"train-0000{shard}-of-00002.parquet"
        pyarrow.parquet.write_table(rows_of_shard, folder / "data" / name)
    return folder


def card(folder: Path) -> Path:
    """Write a clone whose card says which file is which split."""
    lines(texts, "pairs/first.jsonl")(folder)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n"
        "    path: pairs/first.jsonl\n---\n# Pairs\n"
    )
    return folder


def saved(folder: Path) -> Path:
    import datasets

    rows = datasets.Dataset.from_list([texts(number) for number in range(COUNT)])
    datasets.DatasetDict({"train": rows}).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def several(*names: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        for name in names:
            lines(texts, name)(folder)
        return folder

    return write


# --- rows with something special ------------------------------------------------------------------


def one_null(number: int) -> Record:
    return {**texts(number), "prompt": None if number == 4 else ask(number)}


def renamed(**names: str) -> Callable[[int], Record]:
    return lambda number: {names.get(name, name): each for name, each in texts(number).items()}


def truthful(number: int) -> Record:
    return {
        "question": ask(number),
        "best_answer": good(number),
        "incorrect_answers": [bad(number), "Another."],
    }


def changed(**columns: Any) -> Callable[[int], Record]:
    return lambda number: {**texts(number), **columns}


def json_texts(number: int) -> Record:
    return {name: json.dumps(value) for name, value in answers(number).items()}


def python_texts(number: int) -> Record:
    return {name: str(value) for name, value in answers(number).items()}


def in_markup(number: int) -> Record:
    row = texts(number)
    return {**row, "prompt": f"<|im_start|>user\n{row['prompt']}<|im_end|>\n"}


def by_user(number: int) -> Record:
    return {**answers(number), "chosen": [message("user", good(number))]}


def roles(number: int) -> Record:
    row = json.dumps(answers(number)).replace('"user"', '"human"').replace('"assistant"', '"gpt"')
    return dict(json.loads(row))


def image_part(number: int) -> Record:
    content = [{"type": "image", "image": "cat.png"}, {"type": "text", "text": ask(number)}]
    return {**answers(number), "prompt": [{"role": "user", "content": content}]}


def text_parts(number: int) -> Record:
    content = [{"type": "text", "text": ask(number)}]
    return {**answers(number), "prompt": [{"role": "user", "content": content}]}


def early(number: int) -> Record:
    """Return a row whose conversations differ before their last answers."""
    row = conversations(number)
    more = [message("user", "And then?"), message("assistant", "No more.")]
    return {name: [*messages, *more] for name, messages in row.items()}


def nested(number: int) -> Record:
    row = texts(number)
    return {**row, "prompt": {"text": row["prompt"]}}


def guessable(number: int) -> Record:
    """Return answers with a common beginning, beside a prompt that can't be read."""
    return {"prompt": [ask(number)], "chosen": f"So: {good(number)}", "rejected": "So: no."}


def one_is_not_whole(number: int) -> Record:
    row = texts(number)
    if number == 4:
        return row
    return {**row, **{side: row["prompt"] + row[side] for side in ("chosen", "rejected")}}


def thoughts(number: int) -> Record:
    row = answers(number)
    row["chosen"][0]["reasoning_content"] = "Hm \ud83d"
    return row


def one_transcript(number: int) -> Record:
    row = texts(number)
    return {**row, "prompt": f"\n\nHuman: {ask(4)}\n\nAssistant:"} if number == 4 else row


def latin(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_bytes(json.dumps({**texts(0), "chosen": "é"}, ensure_ascii=False).encode("latin-1"))
    return path
