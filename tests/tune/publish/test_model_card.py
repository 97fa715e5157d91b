"""The model card is made from the results alone."""

from typing import Any

import pytest

from tests.helpers.simulated_results import simulated
from tune.publish import model_card
from tune.publish.model_card import License, Publishing
from tune.run_folder.results import Results

HOSTILE = "</p><script>alert(1)</script>](x) | ```"


@pytest.fixture(scope="module")
def results() -> Results:
    found = simulated(24)
    assert found.winner is not None
    test = found.winner.test.with_others({"nll": 0.6, "margin": -2.0})
    return found.model_copy(
        update={
            "winner": found.winner.model_copy(update={"test": test}),
            "data": {
                "pairs": {"train": 40, "eval": 10, "test": 99},
                "dropped": {"longer than 512 tokens": 3},
            },
        }
    )


def publishing(**changes: Any) -> Publishing:
    content = {"repo": "me/x", "base": None, "dataset": None, "license": License("mit"),
               "kind": "full", "dtype": "float32", "pages": {}}  # fmt: skip
    return Publishing(**{**content, **changes})


def sections(text: str) -> dict[str, str]:
    """Map each heading to the lines below it."""
    body = text.split("\n---\n", 1)[1]
    return dict(
        section.split("\n", 1) for section in body.strip().removeprefix("# ").split("\n## ")
    )


def test_the_card_has_its_sections_and_tables(results: Results) -> None:
    card = sections(str(model_card.render(results, publishing())))
    assert list(card) == [
        "x", "Results", "How to use it", "How it was found", "Train it again", "Limits",
        "Made with",
    ]  # fmt: skip
    reached = card["Results"]
    assert "| 99 test pairs | base | this model |\n| --- | --- | --- |\n| ranking: " in reached
    assert "| 0.500 [0.40, 0.60] | 0.850 [0.80, 0.90] |" in reached
    assert "in nats, not multiplied" not in reached
    assert "| 0.000 | -2.000 |" in reached
    found = card["How it was found"]
    assert (
        "- **pairs**: 40 train, 10 eval, 99 test; no prompt is in two splits; left out: 3 " in found
    )
    assert "| `lora` | one of null, alpha=32 | " in found
    assert "\n\nAnd 4 more in `results.json`." in found
    assert found.count("\n| abc123-") == 20
    assert "\n- The base's faults may remain." in card["Limits"]
    assert "\n\n\n" not in "".join(card.values())


@pytest.mark.parametrize(
    ("kind", "phrase"),
    [
        ("full", "All weights were tuned."),
        ("adapter", "With transformers and peft:"),
        ("merged", "A LoRA adapter was tuned and added"),
    ],
)
def test_what_the_weights_are_is_said(results: Results, kind: str, phrase: str) -> None:
    assert phrase in str(model_card.render(results, publishing(kind=kind)))


def test_base_and_dataset_are_linked(results: Results) -> None:
    text = str(model_card.render(results, publishing(base="Qwen/Qwen2_x", dataset="a/b")))
    assert "This is [Qwen/Qwen2_x](https://huggingface.co/Qwen/Qwen2_x), tuned with" in text
    assert " on [a/b](https://huggingface.co/datasets/a/b). All weights" in text


def test_what_comes_from_the_search_makes_no_markup(results: Results) -> None:
    search = {**results.search, "data": {**results.search["data"], "id": HOSTILE}}
    hostile = results.model_copy(update={
        "search": search, "ended": HOSTILE,
        "data": {"pairs": {"eval": 1}, "dropped": {HOSTILE: 1}},
    })  # fmt: skip
    card = sections(str(model_card.render(hostile, publishing(pages={"W&B": "https://x.y/z_1"}))))
    text = "".join(section for name, section in card.items() if name != "Train it again")
    for at in range(len(text)):
        if text.startswith("<script", at):
            # It may stand there escaped, or inside code.
            line = text[text.rfind("\n", 0, at) + 1 : text.find("\n", at)]
            assert text[at - 1] == "\\" or line.count("````") == 2
    assert "- **W&B**: https://x.y/z_1" in text
    recipe = card["Train it again"]
    assert "\n````yaml\n" in recipe
    assert recipe.rstrip().endswith("````")
    assert list(card)[-1] == "Made with"


def test_the_front_matter_is_yaml_whatever_it_holds(results: Results) -> None:
    search = {**results.search, "data": {**results.search["data"], "id": "a: [b\n---\n# 'c'"}}
    card = model_card.render(results.model_copy(update={"search": search}), publishing())
    (number, *_) = card.data.eval_results or []
    assert number.dataset_name == "a: [b\n---\n# 'c'"
    assert card.data.license == "mit"
