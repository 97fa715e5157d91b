"""Checks of every row, whatever form its dataset has."""

from __future__ import annotations

from dpo_train.data.row import Row, texts_in
from dpo_train.errors import BadRow

_ANSWER_ROLES = {"assistant", "tool"}


def check_row(row: Row) -> None:
    """Raise BadRow unless a row has a question and answers of the right roles, in valid Unicode."""
    _check_turns(row)
    _check_letters(row)


def _check_turns(row: Row) -> None:
    if row.prompt and row.prompt[-1]["role"] not in ("user", "tool"):
        last = row.prompt[-1]["role"]
        raise BadRow(
            "a prompt that does not end with a question",
            f"the prompt ends with a message of role {last!r}; it must end with user or tool",
        )
    for part, answer in (("chosen", row.chosen), ("rejected", row.rejected)):
        roles = [message["role"] for message in answer]
        if not roles:
            continue  # the filters leave out empty answers
        if "user" in roles[1:]:
            raise BadRow(
                "a question inside an answer",
                f"{part}: chosen and rejected differ before their last answers, so the model would "
                "learn to write the user's words",
            )
        if roles[0] != "assistant" or roles[-1] != "assistant" or not {*roles} <= _ANSWER_ROLES:
            wrong = next((role for role in roles if role not in _ANSWER_ROLES), roles[-1])
            raise BadRow(
                "an answer by another role",
                f"{part} has a message of role {wrong!r} where the assistant answers",
            )


def _check_letters(row: Row) -> None:
    """Raise BadRow for half of a surrogate pair, which no tokenizer can read."""
    for text in texts_in(row.as_json()):
        if text.isascii():
            continue
        try:
            text.encode()
        except UnicodeEncodeError as error:
            letter = error.object[error.start]
            raise BadRow(
                "half of a surrogate pair",
                f"a text has {letter!a}, which is half of a character; the text was cut inside one",
            ) from None
