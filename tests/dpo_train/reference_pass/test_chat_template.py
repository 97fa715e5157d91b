"""Rows that a chat template can't write are reported before anything is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo_train import model
from dpo_train.config import ModelConfig
from dpo_train.data import Message, Row
from dpo_train.errors import BadRow, InputError
from dpo_train.reference_pass.chat_template import ChatTemplate
from dpo_train.reference_pass.tokenise import Tokeniser

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + CHATML
)
ALTERNATE = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + CHATML
)
THINK = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
DATED = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
TOOLS = (
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}"
    "{% if message['name'] is defined %} {{ message['name'] }}{% endif %}{{ '\n' }}"
    "{% if message['reasoning_content'] is defined %}<think>{{ message['reasoning_content'] }}"
    "</think>{% endif %}{{ message['content'] if message['content'] is defined }}"
    "{% if message['tool_calls'] is defined %}{% for call in message['tool_calls'] %}"
    "<tool_call>{{ call | tojson }}</tool_call>{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"to": 1, "by": None}}}

Make = Callable[[str], ChatTemplate]


def message(role: str, content: str | None, **more: Any) -> Message:
    return {"role": role, "content": content, **more}


def row(**more: Any) -> Row:
    parts: dict[str, Any] = {
        "prompt": [message("user", "Why?")],
        "chosen": [message("assistant", "So.")],
        "rejected": [message("assistant", "No.")],
    }
    return Row(**parts | more)


@pytest.fixture
def make() -> Make:
    def with_template(template: str) -> ChatTemplate:
        tokenizer = model.load_tokenizer(ModelConfig())
        tokenizer.chat_template = template
        return ChatTemplate(tokenizer, "'a/model'")

    return with_template


def test_a_template_that_refuses_system_prompts(make: Make) -> None:
    with_system = row(prompt=[message("system", "Be kind."), message("user", "Why?")])
    with pytest.raises(InputError) as caught:
        make(NO_SYSTEM).check([row(), with_system])
    error = str(caught.value)
    assert "'a/model' refuses system prompts (System role not supported)" in error
    assert "1 of 2 rows" in error
    assert "--set data.columns.system=null" in error
    assert make(NO_SYSTEM).check([row()]) == []
    assert make(CHATML).check([row(), with_system]) == []


def test_a_row_that_the_template_refuses_is_bad(make: Make) -> None:
    twice = row(prompt=[message("user", "Why?"), message("user", "Why not?")])
    template = make(ALTERNATE)
    assert template.check([row(), twice]) == []
    with pytest.raises(BadRow) as caught:
        template.render(twice)
    assert caught.value.detail == (
        "the chat template of 'a/model' refuses it (roles must alternate)"
    )


def test_a_template_that_opens_thoughts_which_no_answer_has(make: Make) -> None:
    with pytest.raises(InputError, match="opens <think> before an answer, but the answers have no"):
        make(THINK).check([row()])
    thought = [message("assistant", "<think>\nHm.</think>So.")]
    assert make(THINK).check([row(chosen=thought, rejected=thought)]) == []


def test_another_beginning_of_answers_is_said(make: Make) -> None:
    other = CHATML.replace("assistant\n{% endif %}", "assistant\nSay: {% endif %}")
    (note,) = make(other).check([row()])
    assert "begins an answer with '<|im_start|>assistant\\nSay: '" in note


def test_a_date_is_fixed_and_said(make: Make) -> None:
    template = make(DATED)
    assert template.prompt(row()).startswith("01 Jan 2026\n")
    (note,) = template.check([row()])
    assert "with the date 1 January 2026" in note


@pytest.mark.parametrize(
    ("name", "special"),
    [
        ("tools", row(tools=[TOOL])),
        ("tool_calls", row(chosen=[message("assistant", "", tool_calls=[CALL])])),
        ("reasoning_content", row(chosen=[message("assistant", "So.", reasoning_content="Hm.")])),
    ],
)
def test_what_the_template_leaves_out_is_refused(make: Make, name: str, special: Row) -> None:
    with pytest.raises(InputError, match=f"does not write `{name}`, which 1 of 2 rows have"):
        make(CHATML).check([row(), special])
    assert make(TOOLS).check([row(), special]) == []


@pytest.mark.parametrize("role", ["developer", "tool"])
def test_a_role_that_the_template_leaves_out_is_refused(make: Make, role: str) -> None:
    silent = CHATML.replace(
        "{% for message in messages %}",
        "{% for message in messages if message['role'] in ('user', 'assistant') %}",
    )
    special = row(prompt=[message(role, "Listen."), message("user", "Why?")])
    with pytest.raises(InputError, match=f"does not write messages of the role '{role}'"):
        make(silent).check([row(), special])
    assert make(CHATML).check([row(), special]) == []


def test_variables_that_the_template_ignores_are_said(make: Make) -> None:
    special = row(chat_template_kwargs={"enable_thinking": False})
    (note,) = make(CHATML).check([row(), special])
    assert "does not use the rows' chat_template_kwargs (enable_thinking)" in note


def test_tools_calls_and_reasoning_are_tokenised_as_by_trl(make: Make) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    answer = [
        message("assistant", None, tool_calls=[CALL], reasoning_content="One more."),
        message("tool", "2", name="add"),
        message("assistant", "It is 2."),
    ]
    rows = [
        row(chosen=answer, tools=[TOOL]),
        row(prompt=[message("system", "Be brief."), message("user", "Why?")], tools=[TOOL]),
    ]
    variables = row(chat_template_kwargs={"enable_thinking": False})
    template = make(TOOLS)
    tokenizer = template._tokenizer
    stub = object.__new__(DPOTrainer)
    stub._tokenizer = tokenizer
    config = DPOConfig(
        output_dir="unused", max_length=None, bf16=False, use_cpu=True,
        activation_checkpointing=False,
    )  # fmt: skip
    for same in (rows, [variables]):
        # Each dataset has one kind of rows: Arrow would fill the columns of other kinds with nulls.
        dataset = Dataset.from_list([each.as_json() for each in same])
        theirs = DPOTrainer._prepare_dataset(stub, dataset, tokenizer, config, "train")
        ours = Tokeniser(tokenizer, 10_000).encode([template.render(each) for each in same])
        for mine, their in zip(ours, theirs, strict=True):
            assert not isinstance(mine, str)
            assert vars(mine) == {name: their[name] for name in vars(mine)}


def test_a_tokenizer_without_a_template_is_refused(tmp_path: Path) -> None:
    tokenizer = model.load_tokenizer(ModelConfig())
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="has no chat template"):
        model.load_tokenizer(ModelConfig(id=str(tmp_path)))
