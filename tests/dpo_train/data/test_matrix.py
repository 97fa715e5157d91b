"""Files and forms of preference data, each read as it is meant or refused; docs/data.md lists them.

Every form holds the same pairs. What is read is compared as the text that the chat template makes
of it, which is what a model is trained on.
"""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
import pytest

from dpo_train import model
from dpo_train.config import DataConfig, ModelConfig
from dpo_train.config_base import override
from dpo_train.data import load_pairs
from dpo_train.errors import InputError
from dpo_train.reference_pass.chat_template import ChatTemplate

DOCS = Path(__file__).parents[3] / "docs" / "data.md"
COUNT = 12
Record = dict[str, Any]


class Case(NamedTuple):
    """A dataset and what becomes of it."""

    name: str
    """As the table of the documentation has it."""
    write: Callable[[Path], Path]
    """Writes the dataset into an empty folder and returns what `data.id` names."""
    refused: str = ""
    """What the error says; empty if the dataset is read."""
    options: dict[str, Any] = {}  # noqa: RUF012: only read
    system: str = ""
    """The system prompt of every row."""
    history: bool = False
    """Whether an earlier turn stands before the question."""


# --- the same pairs in every form ----------------------------------------------------------------


def ask(number: int) -> str:
    return f"Which number follows {number}?"


def good(number: int) -> str:
    return f"The answer is {number + 1}."


def bad(number: int) -> str:
    return f"It must be {number}, so sure."


def said(role: str, content: str) -> Record:
    return {"role": role, "content": content}


def user(number: int) -> Record:
    return said("user", ask(number))


HISTORY = [said("user", "Do you know numbers?"), said("assistant", "The whole ones.")]


def texts(number: int) -> Record:
    return {"prompt": ask(number), "chosen": good(number), "rejected": bad(number)}


def answers(number: int) -> Record:
    return {
        "prompt": [user(number)],
        "chosen": [said("assistant", good(number))],
        "rejected": [said("assistant", bad(number))],
    }


def conversations(number: int, history: bool = False) -> Record:
    before = [*(HISTORY if history else []), user(number)]
    return {
        "chosen": [*before, said("assistant", good(number))],
        "rejected": [*before, said("assistant", bad(number))],
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
    """As a clone from the Hub has it: shards in data/."""
    (folder / "data").mkdir()
    rows = [texts(number) for number in range(COUNT)]
    for shard in range(2):
        part = pyarrow.Table.from_pylist(rows[shard::2])
        name = f"train-0000{shard}-of-00002.parquet"
        pyarrow.parquet.write_table(part, folder / "data" / name)
    return folder


def card(folder: Path) -> Path:
    """A clone whose card says which file is which split."""
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
    return {**answers(number), "chosen": [said("user", good(number))]}


def roles(number: int) -> Record:
    row = json.dumps(answers(number)).replace('"user"', '"human"').replace('"assistant"', '"gpt"')
    return dict(json.loads(row))


def image_part(number: int) -> Record:
    parts = [{"type": "image", "image": "cat.png"}, {"type": "text", "text": ask(number)}]
    return {**answers(number), "prompt": [{"role": "user", "content": parts}]}


def text_parts(number: int) -> Record:
    parts = [{"type": "text", "text": ask(number)}]
    return {**answers(number), "prompt": [{"role": "user", "content": parts}]}


def early(number: int) -> Record:
    """The conversations differ before their last answers."""
    row = conversations(number)
    more = [said("user", "And then?"), said("assistant", "No more.")]
    return {name: [*messages, *more] for name, messages in row.items()}


def nested(number: int) -> Record:
    row = texts(number)
    return {**row, "prompt": {"text": row["prompt"]}}


def guessable(number: int) -> Record:
    """Answers with a beginning in common, beside a prompt that can't be read."""
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


TAB, MARK = "\t", "utf-8-sig"
CASES = (
    Case("`.jsonl`, texts", lines(texts)),
    Case("`.json`, a list of rows", array("rows.json")),
    Case("`.json` with a row a line", lines(texts, "rows.json")),
    Case("`.jsonl` that is a list", array("rows.jsonl")),
    Case("`.jsonl.gz`", lines(texts, "rows.jsonl.gz")),
    Case("`.json.gz`", array("rows.json.gz")),
    Case("`.JSONL`, an ending in capitals", lines(texts, "ROWS.JSONL")),
    Case("`.csv`", table()),
    Case("`.csv` with a byte order mark", table(encoding=MARK)),
    Case("`.csv` with a field of 200,000 letters",
         table(make=lambda n: {**texts(n), "source": "long " * 40_000})),
    Case("`.tsv`", table("rows.tsv", delimiter=TAB)),
    Case("`.csv`, columns separated by `;`", table(delimiter=";"), "separated by ';'"),
    Case("`.csv`, a field too many in a row", text(
        "prompt,chosen,rejected\nSay 1, please,Yes.,No.\n"), "row 1 (line 2): 4 fields under 3"),
    Case("`.csv`, a field too few in a row", text(
        "prompt,chosen,rejected\nSay 1,Yes.\n"), "row 1 (line 2): 2 fields under 3"),
    Case("`.csv`, two columns of one name", text(
        "prompt,chosen,chosen\na,b,c\n"), "two columns 'chosen'"),
    Case("`.csv`, a quote that never ends", text(
        'prompt,chosen,rejected\na,"b,c\n'), "line 2: unexpected end of data"),
    Case("`.csv` of messages as JSON", table(make=json_texts)),
    Case("`.csv` of messages as Python prints them", table(make=python_texts),
         "not JSON: \"[{'role': 'user'"),
    Case("`.parquet`", parquet(texts)),
    Case("`.parquet` of messages", parquet(with_prompt)),
    Case("`.parquet` of messages as JSON", parquet(json_texts)),
    Case("a file that is not UTF-8", lambda folder: _latin(folder), "line 1: not UTF-8"),
    Case("a row that is not JSON", text('{"prompt": "a"\n', "rows.jsonl"), "line 1: not JSON"),
    Case("a list of rows that is cut", text(
        '[{"prompt": "a", "chosen": "b", "rejected": "c"},\n', "rows.json"),
         "the list does not end"),
    Case("`.tsv`, a quote that ends rows later", text(
        'prompt\tchosen\trejected\nq\ta\t"b\nq2\ta2\tb2\nq3\ta3\tb3"\n', "rows.tsv"),
         "a quote at its beginning ends rows later"),
    Case("a key given twice in a row", text(
        '{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}\n', "rows.jsonl"),
         "line 1: the key 'chosen' stands twice"),
    Case("half of a surrogate pair in a thought", lines(thoughts), "half of a letter"),
    Case("half of a surrogate pair", lines(changed(chosen="Yes \ud83d")),
         "half of a letter"),
    Case("a folder with `train.jsonl`", several("train.jsonl", "train.bak.jsonl")),
    Case("a folder with two files of the split", several("train.jsonl", "train.json"),
         "several files of the split 'train'"),
    Case("a folder with shards in `data/`", clone),
    Case("a folder in which a shard is missing", several("train-00000-of-00002.jsonl"),
         "others are missing"),
    Case("a folder whose card names the files", card),
    Case("a folder by `save_to_disk`", saved),
    Case("prompt + answers as messages", lines(answers)),
    Case("content in parts of type text", lines(text_parts)),
    Case("prompt + whole conversations (UltraFeedback)", lines(with_prompt)),
    Case("prompt + whole conversations of several turns",
         lines(lambda n: {"prompt": [*HISTORY, user(n)], **conversations(n, history=True)}),
         history=True),
    Case("a prompt with which the conversation doesn't begin",
         lines(lambda n: {"prompt": ask(n + 1), **conversations(n)}),
         "begins with 'Which number follows 0?' and not with the prompt"),
    Case("whole conversations", lines(conversations)),
    Case("whole conversations that differ too early", lines(early),
         "the conversations differ before their last answers"),
    Case("whole texts beside a prompt",
         lines(lambda n: {"prompt": ask(n), "chosen": f"{ask(n)}{good(n)}",
                          "rejected": f"{ask(n)}{bad(n)}"})),
    Case("whole texts beside a prompt, one row without", lines(one_is_not_whole),
         "line 5: chosen does not begin with the prompt"),
    Case("transcripts (HH-RLHF)", lines(transcript)),
    Case("a prompt as a transcript + answers",
         lines(lambda n: {"prompt": f"\n\nHuman: {ask(n)}\n\nAssistant:",
                          "chosen": f" {good(n)}", "rejected": f" {bad(n)}"})),
    Case("one prompt that is a transcript", lines(one_transcript),
         "line 5: prompt is transcripts, where most rows have texts"),
    Case("turns in another form of text",
         lines(lambda n: {"chosen": f"User: {ask(n)}\nBot: {good(n)}",
                          "rejected": f"User: {ask(n)}\nBot: {bad(n)}"}),
         "chosen begins with 'User:'"),
    Case("texts in a chat template's markup", lines(in_markup), "begins with '<|im_start|>'"),
    Case("ShareGPT, with `data.columns`", lines(sharegpt),
         options={"columns": {"prompt": "conversations"}}),
    Case("ShareGPT, without", lines(sharegpt),
         "type `--set data.columns.prompt=conversations`"),
    Case("roles `human` and `gpt` elsewhere", lines(roles), "the role 'human' is none of"),
    Case("an answer by the user", lines(by_user), "role 'user' where the assistant answers"),
    Case("other columns, with `data.columns`", lines(truthful),
         options={"columns": {"prompt": "question", "chosen": "best_answer",
                                   "rejected": "incorrect_answers[0]"}}),
    Case("other columns, without", lines(truthful),
         "--set data.columns.prompt=question --set data.columns.chosen=best_answer "
         "--set 'data.columns.rejected=incorrect_answers[0]'"),
    Case("`question` in place of `prompt`", lines(renamed(prompt="question")),
         "type `--set data.columns.prompt=question`"),
    Case("`Prompt`, in capitals", lines(renamed(prompt="Prompt")),
         "type `--set data.columns.prompt=Prompt`"),
    Case("a path that leads nowhere", lines(nested), "'prompt.txet' is null or not there",
         options={"columns": {"prompt": "prompt.txet"}}),
    Case("a path into a column", lines(nested), options={"columns": {"prompt": "prompt.text"}}),
    Case("a prompt that is neither text nor messages", lines(guessable),
         "neither a text nor a list of messages"),
    Case("prompts that are all null", lines(changed(prompt=None)),
         "'prompt' is null or not there in all rows"),
    Case("a null prompt in one row", lines(one_null), "line 5: prompt is null"),
    Case("a system column", lines(changed(system="Be kind.")), system="Be kind."),
    Case("a system column of messages",
         lines(changed(system=[{"role": "system", "content": "Be kind."}])), system="Be kind."),
    Case("a system column of nulls", lines(changed(system=None))),
    Case("a system column of numbers", lines(changed(system=3)), "system is 3, not a text"),
    Case("two system prompts",
         lines(lambda n: {**answers(n), "system": "Be kind.",
                          "prompt": [said("system", "Be rude."), user(n)]}),
         "the system column has 'Be kind.', the messages 'Be rude.'"),
    Case("images in a column", lines(changed(images=["cat.png"])), "a column 'images'"),
    Case("images in a message", lines(image_part), "a part of type 'image'"),
)  # fmt: skip


def _latin(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_bytes(json.dumps({**texts(0), "chosen": "é"}, ensure_ascii=False).encode("latin-1"))
    return path


def expected(case: Case, number: int) -> tuple[str, str, str]:
    system = f"<|im_start|>system\n{case.system}<|im_end|>\n" if case.system else ""
    before = "".join(
        f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
        for message in (HISTORY if case.history else [])
    )
    asked = f"{system}{before}<|im_start|>user\n{ask(number)}<|im_end|>\n<|im_start|>assistant\n"
    return (
        asked,
        f"{asked}{good(number)}<|im_end|>\n",
        f"{asked}{bad(number)}<|im_end|>\n",
    )


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(model.load_tokenizer(ModelConfig()), "sample")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_form_is_read_as_it_is_meant_or_refused(
    case: Case, tmp_path: Path, template: ChatTemplate
) -> None:
    config = override(DataConfig(id=str(case.write(tmp_path))), case.options)
    if case.refused:
        with pytest.raises(InputError) as caught:
            load_pairs(config)
        assert case.refused in str(caught.value)
        return
    rows = [row for split in load_pairs(config).splits.values() for row in split]
    read = [template.render(row) for row in rows]
    assert sorted((each.prompt, each.chosen, each.rejected) for each in read) == sorted(
        expected(case, number) for number in range(COUNT)
    )


def test_the_documentation_lists_every_case() -> None:
    rows = DOCS.read_text().splitlines()
    assert len(CASES) >= 35
    for case in CASES:
        outcome = "refused" if case.refused else "read"
        assert any(row.startswith(f"| {case.name} | {outcome}") for row in rows), case.name
