"""Plain texts: finds where the prompt ends that both texts begin with."""

from __future__ import annotations

import re

from dpo_train.data.row import shared_length
from dpo_train.errors import BadRow

_LOOKED_AT = 60
_TURN = re.compile(r"(#+\s*)?(Human|User|USER|Instruction|System|Prompter)\s*:")
_ANSWER = re.compile(r"^(#+ *)?(Assistant|ASSISTANT|Response|Output|Bot|GPT) *:", re.MULTILINE)
_TEMPLATE = re.compile(
    r"<\|im_start\|>|(<s>)?\s*\[INST\]|<\|(user|system|assistant|begin_of_text)\|>"
    r"|<start_of_turn>|<\|start_header_id\|>"
)


def refuse_markup(text: str, part: str) -> None:
    """Raise BadRow for a text that has the marks of a chat template, or that holds several turns.

    `part` names the text in errors.
    """
    beginning = text.lstrip()[:_LOOKED_AT]
    if mark := _TEMPLATE.match(beginning):
        raise BadRow(
            "written in a chat template already",
            f"{part} begins with {mark[0].strip()!r}, the mark of a chat template; give plain "
            "texts, because the model's own template is written around them",
        )
    if (mark := _TURN.match(beginning)) and _ANSWER.search(text):
        raise _turns_in_text(part, mark[0])


def _turns_in_text(part: str, mark: str) -> BadRow:
    return BadRow(
        "turns in an unknown form",
        f"{part} begins with {mark.strip()!r}; turns in a text can be read only if they begin with "
        "'Human:' and 'Assistant:' after an empty line, in most rows; or give lists of messages",
    )


def cut_whole_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Return prompt, chosen and rejected: the common beginning of two texts is their prompt.

    The prompt ends before a space or a line break. TRL's `extract_prompt` ends it at the first
    letter that differs, which may be in the middle of a word. Raises BadRow if there is no prompt,
    or if the texts are conversations in an unknown form.
    """
    if mark := _TURN.match(chosen.lstrip()[:_LOOKED_AT]):
        raise _turns_in_text("chosen", mark[0])
    shared = chosen[: shared_length(chosen, rejected)]
    following = chosen[len(shared) :][:1], rejected[len(shared) :][:1]
    if all(letter.isspace() for letter in following):
        end = len(shared)  # one text goes on with a space, the other with a line break
    else:
        end = max(shared.rfind(space) for space in " \n\t\r")
    if end <= 0 or not shared[:end].strip():
        raise BadRow("no prompt", "no prompt: chosen and rejected begin differently")
    return chosen[:end], chosen[end:], rejected[end:]
