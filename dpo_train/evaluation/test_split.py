"""Evaluates exported models on the test split: metrics of its pairs, and greedy answers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpo_train import export, model, reference
from dpo_train.config import ModelConfig
from dpo_train.data import Row
from dpo_train.data.row import text_of
from dpo_train.evaluation import sampled_kl
from dpo_train.evaluation.test_report import (
    Answer,
    Difference,
    Numbers,
    TestFolders,
    TestReport,
)
from dpo_train.reference_pass.chat_template import ChatTemplate
from dpo_train.scoring import logps, metrics
from dpo_train.scoring.intervals import difference_interval, share_interval

SHOWN = 5
"""How many answers are shown to people."""
MEASURED = 32
"""How many answers are measured. Their length matters: a judge may prefer long answers as such."""
MOST_TOKENS = 128
"""Most tokens of one answer. Longer ones are cut, and count as this long."""


def evaluate_on_test(folders: TestFolders, base: ModelConfig) -> TestReport:
    """Compare the winner with the base on the test split, pair by pair.

    If the winner is not the best export of the search, compare it with that one, too. Estimate the
    KL of the sampled exports.
    """
    # The prompts to answer: a prompt with several pairs is answered once.
    device = folders.device
    data = reference.prepare(folders.prepared)
    rows = data.split("test")[:]
    first: dict[str, int] = {}
    for number, prompt in enumerate(rows["prompt"]):
        first.setdefault(prompt, number)
    answered = dict(list(first.items())[:MEASURED])
    prompts = [Row.from_json(json.loads(prompt)) for prompt in answered]
    references = [rows["chosen"][number] for number in answered.values()]

    # The base comes first, because it may carry an adapter later.
    warm = model.load_base(base, device, folders.prepared)
    untrained = warm.fresh(trained_in_full=False).eval()
    base_answers = _answers(untrained, warm.tokenizer, prompts)
    base_numbers = Numbers(
        answer_tokens=_mean_length(base_answers), repeating=_repeating(base_answers)
    )
    reference_logps = [np.array(rows[f"ref_{name}_logps"]) for name in ("chosen", "rejected")]
    base_ranking = metrics.ranking(logps.pair_logps(rows, *reference_logps))

    # The winner, and the best export of the search if that is another model.
    winner = _evaluate_one(folders.winner, rows, prompts, data.pad_token_id, device)
    over_base = _over(rows, ranking=winner.values["ranking"] - base_ranking)
    over_searched: dict[str, Difference] = {}
    searched = None
    if folders.searched is not None:
        best = _evaluate_one(folders.searched, rows, prompts, data.pad_token_id, device)
        names = ("ranking", "accuracy")
        differences = {name: winner.values[name] - best.values[name] for name in names}
        over_searched = _over(rows, **differences)
        searched = best.numbers(_over(rows, ranking=best.values["ranking"] - base_ranking))
    return TestReport(
        test=winner.numbers(over_base, over_searched),
        base=base_numbers,
        answers=[
            Answer(
                prompt=prompt,
                base=base_answers[number].text,
                winner=winner.answers[number].text,
                chosen=references[number],
                base_is_cut=base_answers[number].is_cut,
                winner_is_cut=winner.answers[number].is_cut,
            )
            for prompt, number in shown_prompts(prompts).items()
        ],
        searched=searched,
        sampled_kl={
            name: sampled_kl.estimate(folder, base, folders.prepared, device)
            for name, folder in folders.sampled.items()
        },
    )


def shown_prompts(prompts: list[Row]) -> dict[str, int]:
    """Return the last messages of the first SHOWN prompts, and the prompts' indices.

    Different conversations may have the same last message, which is what people read. So each text
    comes once.
    """
    first: dict[str, int] = {}
    for number, row in enumerate(prompts):
        first.setdefault(text_of(row.prompt[-1:]).strip(), number)
    return dict(list(first.items())[:SHOWN])


@dataclass(frozen=True)
class _GreedyAnswer:
    """A greedy answer."""

    text: str
    tokens: int
    is_cut: bool
    """Whether it was cut before its end."""


@dataclass(frozen=True)
class _Evaluated:
    """The metrics and greedy answers of one model."""

    values: dict[str, metrics.Floats]
    """The value of each test pair, by metric."""
    prompt_keys: list[str]
    answers: list[_GreedyAnswer]

    def numbers(
        self,
        over_base: dict[str, Difference],
        over_searched: dict[str, Difference] | None = None,
    ) -> Numbers:
        return Numbers(
            metrics=metrics.means(self.values),
            interval=share_interval(self.values["ranking"], self.prompt_keys),
            pairs=len(self.prompt_keys),
            answer_tokens=_mean_length(self.answers),
            repeating=_repeating(self.answers),
            over_base=over_base,
            over_searched=over_searched or {},
        )


def _evaluate_one(
    folder: Path, rows: dict[str, list[Any]], prompts: list[Row], pad_token_id: int, device: str
) -> _Evaluated:
    policy, tokenizer = export.load(folder, device)
    answers = _answers(policy, tokenizer, prompts)
    is_adapter = hasattr(policy, "peft_config")
    inner = policy.get_base_model() if is_adapter else policy
    scores = logps.score(inner, rows, pad_token_id, device)
    if is_adapter:
        policy.unload()
    values = metrics.pair_values(logps.pair_logps(rows, *scores))
    return _Evaluated(values, rows["prompt_key"], answers)


def _over(rows: dict[str, list[Any]], **differences: metrics.Floats) -> dict[str, Difference]:
    return {
        name: Difference(
            difference=float(each.mean()), interval=difference_interval(each, rows["prompt_key"])
        )
        for name, each in differences.items()
    }


def repeats_itself(text: str) -> bool:
    """Return whether one to four words come four times in a row, like "air air air air"."""
    return _REPEATED.search(text) is not None


_REPEATED = re.compile(r"(?<!\S)(\S+(?:\s+\S+){0,3}?)(?:\s+\1){3}(?!\S)")


def _repeating(answers: list[_GreedyAnswer]) -> float:
    """Return the share of answers that repeat themselves."""
    return sum(repeats_itself(answer.text) for answer in answers) / len(answers)


def _mean_length(answers: list[_GreedyAnswer]) -> float:
    return sum(answer.tokens for answer in answers) / len(answers)


def _answers(policy: Any, tokenizer: Any, prompts: list[Row]) -> list[_GreedyAnswer]:
    """Return one greedy answer to each prompt."""
    template = ChatTemplate(tokenizer, "the model")
    texts = [template.prompt(row) for row in prompts]
    prompt_ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    greedy = {"do_sample": False, "max_new_tokens": MOST_TOKENS}
    ends = sampled_kl.end_tokens(policy, tokenizer)
    answers = []
    for row in sampled_kl.generate(policy, tokenizer, prompt_ids, **greedy):
        tokens = [token for token in row if token not in tokenizer.all_special_ids]
        is_cut = len(row) == MOST_TOKENS and not set(row) & set(ends)
        answers.append(_GreedyAnswer(str(tokenizer.decode(tokens)).strip(), len(tokens), is_cut))
    return answers
