"""Writes Ollama's Modelfile for a GGUF file: chat template, sampling, ends of an answer.

Problem: Ollama does not run Jinja. Without a TEMPLATE it compares the file's Jinja template with
those that it knows, letter by letter, and uses the most similar one; if none is similar, it sends
the user's text without a template. So we write a TEMPLATE. llama.cpp runs Jinja, and needs no
Modelfile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dpo_train.gguf.turns import Reading, Turns

_UNWRITABLE = ("{{", "}}", '"""')
"""Texts that have a special meaning in a Go template, or end a text in a Modelfile."""


def render(
    file: str,
    reading: Reading,
    sampling: Mapping[str, float | int],
    ends: Sequence[str],
    notes: Sequence[str],
) -> str:
    """Return the Modelfile of a GGUF file.

    `ends` are the texts of the tokens that end an answer; `notes` become comments.
    """
    lines = [f"FROM ./{file}"]
    lines += [f"# {note}" for note in notes]
    template = None if reading.turns is None else go_template(reading.turns)
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    else:
        why = reading.why_not or "it writes {{, }} or three quotes"
        lines.append(
            f"# TEMPLATE: the model's chat template can't be written as one of Ollama's ({why}). "
            "Write one here (see docs.ollama.com/modelfile), or use llama.cpp, which can read the "
            "model's."
        )
    lines += [f"PARAMETER {name} {value:g}" for name, value in sampling.items()]
    lines += [f'PARAMETER stop "{end}"' for end in ends]
    return "\n".join(lines) + "\n"


def go_template(turns: Turns) -> str | None:
    """Return Ollama's template of these turns; None if one of their texts can't be written."""
    texts = [turns.without_system, turns.answer, *(text for pair in turns.around.values()
                                                   for text in pair)]  # fmt: skip
    if any(mark in text for mark in _UNWRITABLE for text in texts):
        return None
    first = turns.without_system
    if first and "system" in turns.around:
        first = "{{ if not .System }}" + first + "{{ end }}"
    branches = [
        f'{{{{ if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
        for role, (before, after) in turns.around.items()
    ]
    turn = "{{ else ".join(branch if at == 0 else branch[3:] for at, branch in enumerate(branches))
    return f"{first}{{{{ range .Messages }}}}{turn}{{{{ end }}}}{{{{ end }}}}{turns.answer}"
