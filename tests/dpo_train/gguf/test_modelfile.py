"""A Modelfile writes a prompt as the model's own chat template does, or says that it can't."""

from pathlib import Path
from typing import Any

import pytest

from dpo_train.gguf.write import write
from tests.helpers import go_template
from tests.helpers.gguf_models import CHATML, small, tokenizer

LLAMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim"
    " %}{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "<|head|>system<|end|>\n\nToday Date: {{ strftime_now('%d %b %Y') }}\n\n{{ system }}<|eot|>"
    "{% for message in messages %}<|head|>{{ message.role }}<|end|>\n\n"
    "{{ message.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|end|>\n\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}"
    + CHATML
)
NO_SYSTEM = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no') }}"
    "{% endif %}[{{ message.role }}]{{ message.content }}[/]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
CONVERSATIONS = (
    [("user", "Hi {{ there }}")],
    [("system", "Be brief."), ("user", "Hi")],
    [("user", "one"), ("assistant", "two\nlines"), ("user", "three")],
    [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"),
     ("user", "e")],
)  # fmt: skip


def modelfile(folder: Path, template: str, **generation: Any) -> str:
    write(small(tokenizer(chat_template=template), **generation), folder, "tiny", "f16")
    return (folder / "Modelfile").read_text()


def template_of(text: str) -> str:
    return text.partition('TEMPLATE """')[2].partition('"""')[0]


@pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM, LLAMA, NO_SYSTEM])
def test_ollama_writes_the_prompt_that_the_chat_template_writes(
    tmp_path: Path, template: str
) -> None:
    for_ollama = template_of(modelfile(tmp_path, template.replace("{{ bos_token }}", "<|b|>")))
    reader = tokenizer(chat_template=template.replace("{{ bos_token }}", "<|b|>"))
    for turns in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in turns]
        if template == NO_SYSTEM and turns[0][0] == "system":
            continue
        theirs = reader.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert go_template.render(for_ollama, messages) == theirs


def test_a_template_with_a_date_is_written_with_the_date_of_the_training(tmp_path: Path) -> None:
    text = modelfile(tmp_path, LLAMA.replace("{{ bos_token }}", ""))
    assert "Today Date: 01 Jan 2026" in template_of(text)
    assert "# the chat template writes today's date; in TEMPLATE it stays 1 January 2026" in text
    assert "# the chat template takes white space off the ends of messages" in text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (NO_SYSTEM, "takes no system prompt"),
        (CHATML.replace("message['content']", "message['content'].split('</think>')[-1]"),
         "takes thoughts out of earlier answers"),
    ],
)  # fmt: skip
def test_what_the_modelfile_does_not_do_is_said_in_it(
    tmp_path: Path, template: str, message: str
) -> None:
    text = modelfile(tmp_path, template)
    assert message in text
    assert template_of(text)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHATML.replace("message['content']", "message['content'] | upper"), "can't be found"),
        (CHATML.replace("message['content']", "message['content'][:20]"), "more than fixed texts"),
        ("{{ messages[0].content }}", "can't be found"),
        (CHATML.replace("<|im_end|>", "{{"), "it writes {{, }} or three quotes"),
    ],
)
def test_a_chat_template_that_ollama_can_not_have_is_left_out_with_a_line(
    tmp_path: Path, template: str, message: str
) -> None:
    text = modelfile(tmp_path, template)
    assert 'TEMPLATE """' not in text
    (line,) = [line for line in text.splitlines() if line.startswith("# TEMPLATE: ")]
    assert message in line
    assert "docs.ollama.com/modelfile" in line


@pytest.mark.parametrize(
    ("generation", "parameters"),
    [
        ({}, set()),
        ({"do_sample": False, "max_new_tokens": 96}, {"temperature 0", "num_predict 96"}),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.05},
         {"temperature 0.6", "top_p 0.95", "top_k 20", "min_p 0.05"}),
        ({"repetition_penalty": 1.1}, {"repeat_penalty 1.1"}),
    ],
)  # fmt: skip
def test_what_generation_config_states_is_a_parameter_and_nothing_else(
    tmp_path: Path, generation: dict[str, Any], parameters: set[str]
) -> None:
    text = modelfile(tmp_path, CHATML, **generation)
    found = {line.removeprefix("PARAMETER ") for line in text.splitlines() if "PARAMETER" in line}
    assert found == {*parameters, 'stop "<|im_end|>"'}


def test_every_token_that_ends_an_answer_is_a_stop(tmp_path: Path) -> None:
    text = modelfile(tmp_path, CHATML, eos_token_id=[1021, 1023])
    assert text.startswith("FROM ./tiny-F16.gguf\n")
    assert text.endswith('PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"\n')
