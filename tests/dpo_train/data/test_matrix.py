"""Every file format and row form of docs/data.md is read as it is meant, or refused.

All forms hold the same pairs. The tests compare the text that the chat template makes of the pairs
that are read, because a model is trained on that text.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dpo_train import model
from dpo_train.config import DataConfig, ModelConfig
from dpo_train.config_base import override
from dpo_train.data import load_pairs
from dpo_train.errors import InputError
from dpo_train.reference_pass.chat_template import ChatTemplate
from tests.helpers.preference_data import (
    COUNT,
    HISTORY,
    answers,
    array,
    ask,
    bad,
    by_user,
    card,
    changed,
    clone,
    conversations,
    early,
    good,
    guessable,
    image_part,
    in_markup,
    json_texts,
    latin,
    lines,
    message,
    nested,
    one_is_not_whole,
    one_null,
    one_transcript,
    parquet,
    python_texts,
    renamed,
    roles,
    saved,
    several,
    sharegpt,
    table,
    text,
    text_parts,
    texts,
    thoughts,
    transcript,
    truthful,
    user,
    with_prompt,
)

DOCS = Path(__file__).parents[3] / "docs" / "data.md"


class Case(NamedTuple):
    """A dataset and the result of reading it."""

    name: str
    """The name in the table of the documentation."""
    write: Callable[[Path], Path]
    """Writes the dataset into an empty folder and returns what `data.id` names."""
    refused: str = ""
    """Text of the error; empty if the dataset can be read."""
    options: dict[str, Any] = {}  # noqa: RUF012: only read
    system: str = ""
    """The system prompt of every row."""
    history: bool = False
    """Whether there is an earlier turn before the question."""


TAB, MARK = "\t", "utf-8-sig"
CASES = (
    Case("`.jsonl`, texts", lines(texts)),
    Case("`.json`, a list of rows", array("rows.json")),
    Case("`.json` with one row per line", lines(texts, "rows.json")),
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
    Case("a file that is not UTF-8", latin, "line 1: not UTF-8"),
    Case("a row that is not JSON", text('{"prompt": "a"\n', "rows.jsonl"), "line 1: not JSON"),
    Case("a list of rows that is cut", text(
        '[{"prompt": "a", "chosen": "b", "rejected": "c"},\n', "rows.json"),
         "the list does not end"),
    Case("`.tsv`, a quote that is closed only some rows later", text(
        'prompt\tchosen\trejected\nq\ta\t"b\nq2\ta2\tb2\nq3\ta3\tb3"\n', "rows.tsv"),
         "begins with a quote that ends rows later"),
    Case("a key given twice in a row", text(
        '{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}\n', "rows.jsonl"),
         "line 1: the key 'chosen' is given twice"),
    Case("half of a surrogate pair in `reasoning_content`", lines(thoughts), "half of a character"),
    Case("half of a surrogate pair", lines(changed(chosen="Yes \ud83d")),
         "half of a character"),
    Case("a folder with `train.jsonl`", several("train.jsonl", "train.bak.jsonl")),
    Case("a folder with two files of the split", several("train.jsonl", "train.json"),
         "several files of the split 'train'"),
    Case("a folder with shards in `data/`", clone),
    Case("a folder in which a shard is missing", several("train-00000-of-00002.jsonl"),
         "some are missing"),
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
         "chosen and rejected differ before their last answers"),
    Case("whole texts beside a prompt",
         lines(lambda n: {"prompt": ask(n), "chosen": f"{ask(n)}{good(n)}",
                          "rejected": f"{ask(n)}{bad(n)}"})),
    Case("whole texts beside a prompt, with which one row does not begin", lines(one_is_not_whole),
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
    Case("roles `human` and `gpt` elsewhere", lines(roles), "the role 'human' is not one of"),
    Case("an answer by the user", lines(by_user), "role 'user' where the assistant answers"),
    Case("other columns, with `data.columns`", lines(truthful),
         options={"columns": {"prompt": "question", "chosen": "best_answer",
                                   "rejected": "incorrect_answers[0]"}}),
    Case("a list of answers, without a number", lines(truthful),
         "rejected is a list of texts",
         options={"columns": {"prompt": "question", "chosen": "best_answer",
                                   "rejected": "incorrect_answers"}}),
    Case("other columns, without", lines(truthful),
         "--set data.columns.prompt=question --set data.columns.chosen=best_answer "
         "--set 'data.columns.rejected=incorrect_answers[0]'"),
    Case("`question` in place of `prompt`", lines(renamed(prompt="question")),
         "type `--set data.columns.prompt=question`"),
    Case("`Prompt`, in capitals", lines(renamed(prompt="Prompt")),
         "type `--set data.columns.prompt=Prompt`"),
    Case("a path that leads nowhere", lines(nested), "'prompt.txet' is null or missing",
         options={"columns": {"prompt": "prompt.txet"}}),
    Case("a path into a column", lines(nested), options={"columns": {"prompt": "prompt.text"}}),
    Case("a prompt that is neither text nor messages", lines(guessable),
         "neither a text nor a list of messages"),
    Case("prompts that are all null", lines(changed(prompt=None)),
         "'prompt' is null or missing in all rows"),
    Case("a null prompt in one row", lines(one_null), "line 5: prompt is null"),
    Case("a system column", lines(changed(system="Be kind.")), system="Be kind."),
    Case("a system column of messages",
         lines(changed(system=[{"role": "system", "content": "Be kind."}])), system="Be kind."),
    Case("a system column of nulls", lines(changed(system=None))),
    Case("a system column of numbers", lines(changed(system=3)), "system is 3, not a text"),
    Case("two system prompts",
         lines(lambda n: {**answers(n), "system": "Be kind.",
                          "prompt": [message("system", "Be rude."), user(n)]}),
         "the system column has 'Be kind.', and the messages have 'Be rude.'"),
    Case("images in a column", lines(changed(images=["cat.png"])), "a column 'images'"),
    Case("images in a message", lines(image_part), "a part of type 'image'"),
)  # fmt: skip


def expected(case: Case, number: int) -> tuple[str, str, str]:
    system = f"<|im_start|>system\n{case.system}<|im_end|>\n" if case.system else ""
    before = "".join(
        f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n"
        for turn in (HISTORY if case.history else [])
    )
    prompt = f"{system}{before}<|im_start|>user\n{ask(number)}<|im_end|>\n<|im_start|>assistant\n"
    return (
        prompt,
        f"{prompt}{good(number)}<|im_end|>\n",
        f"{prompt}{bad(number)}<|im_end|>\n",
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
