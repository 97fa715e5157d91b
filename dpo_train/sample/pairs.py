"""Writes the sample pairs from the tables of `facts.py`. It knows no model and no tokenizer.

An answer has a sentence about the speaker (from the theme) and a sentence about the question (from
its kind), in either order, drawn independently. The honest answer is chosen, unless the system
prompt gives the model a role: then the pretended one is.
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dpo_train.sample.facts import (
    CLOSERS,
    HAILS,
    KINDS,
    MISCONCEPTIONS,
    OPENERS,
    ROLES,
    SYSTEMS,
    Kind,
)

CHARS = (30, 220)
ROLE_SHARE = 0.3  # share of the pairs about the speaker that have a role
REPEATED_SHARE = 0.05


class Question(NamedTuple):
    """A prompt, and the kind and fact that its answers are drawn from."""

    prompt: str
    kind: Kind
    fields: dict[str, str]


def build_pairs(seed: int) -> list[dict[str, str]]:
    """Return the dataset's rows in their final, mixed order. The same seed gives the same rows."""
    rng = random.Random(seed)
    questions = build_questions(rng)
    systems = [draw_system(question.kind, rng) for question in questions]
    rows = [draw_row(q, system, rng) for q, system in zip(questions, systems, strict=True)]
    for index in rng.sample(range(len(questions)), round(REPEATED_SHARE * len(questions))):
        other = systems[index]
        while other == systems[index]:
            other = draw_system(questions[index].kind, rng)
        rows.append(draw_row(questions[index], other, rng))
    rng.shuffle(rows)
    return [{"id": f"sample-{number:04d}", **row} for number, row in enumerate(rows)]


def write_pairs(rows: list[dict[str, str]], path: Path) -> None:
    """Write one JSON object a line, in UTF-8."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def draw_conversations(questions: list[Question], rng: random.Random) -> Iterator[dict[str, str]]:
    """Yield each question with newly drawn answers, for one epoch of pretraining.

    The answers are new in each epoch, so that the base learns the style and not the dataset's rows.
    """
    for question in questions:
        yield draw_row(question, draw_system(question.kind, rng), rng)


def build_questions(rng: random.Random) -> list[Question]:
    """Return the questions: for each fact some of its kind's templates, without duplicates."""
    questions = []
    for kind in KINDS:
        for fact in kind.facts:
            fields = dict(zip(kind.fields, fact, strict=True))
            fields |= {name.capitalize(): capitalize(text) for name, text in fields.items()}
            for template in rng.sample(kind.questions, kind.questions_per_fact):
                questions.append(Question(template.format(**fields), kind, fields))
    return questions


def draw_system(kind: Kind, rng: random.Random) -> str:
    """Return a system prompt: a role, a plain one, or none. Misconceptions get no role."""
    if kind.theme is not MISCONCEPTIONS and rng.random() < ROLE_SHARE:
        return rng.choice([*ROLES])
    return "" if rng.random() < 0.5 else rng.choice(SYSTEMS)


def draw_row(question: Question, system: str, rng: random.Random) -> dict[str, str]:
    """Return one row without its id. Raises ValueError if a text is too short or too long."""
    theme, kind, fields = question.kind.theme, question.kind, question.fields
    name = ROLES.get(system)
    honest = draw_answer(theme.honest, kind.honest, fields, name, rng)
    pretended = draw_answer(theme.pretended, kind.pretended, fields, name, rng)
    row = {
        "source": theme.name,
        "system": system,
        "prompt": question.prompt,
        "chosen": pretended if name else honest,
        "rejected": honest if name else pretended,
    }
    for column in ("prompt", "chosen", "rejected"):
        if not CHARS[0] <= len(row[column]) <= CHARS[1]:
            raise ValueError(
                f"a {column} has {len(row[column])} characters, allowed are {CHARS[0]} to "
                f"{CHARS[1]}: {row[column]!r}; reword its template or fact in facts.py"
            )
    return row


def draw_answer(
    attitudes: tuple[str, ...],
    facts: tuple[str, ...],
    fields: dict[str, str],
    name: str | None,
    rng: random.Random,
) -> str:
    """Return an attitude and a fact in either order, sometimes with a neutral opener or closer."""
    body = [rng.choice(attitudes), capitalize(rng.choice(facts).format(**fields))]
    rng.shuffle(body)
    if name:
        body = [speak_as(name, sentence, rng) for sentence in body]
    opener = [rng.choice(OPENERS)] if rng.random() < 0.15 else []
    closer = [rng.choice(CLOSERS)] if rng.random() < 0.15 else []
    return " ".join([*opener, *body, *closer])


def speak_as(name: str, sentence: str, rng: random.Random) -> str:
    """Return the sentence in a role's voice, its meaning unchanged."""
    named = re.sub(r"\bI ", f"I, {name}, ", sentence, count=1)
    return f"{rng.choice(HAILS)} {named}"


def capitalize(text: str) -> str:
    """Return the text with its first letter upper-case; unlike str.capitalize, keep the others."""
    return text[:1].upper() + text[1:]
