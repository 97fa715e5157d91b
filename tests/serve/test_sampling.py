"""Drawing the next token: penalties, bias, truncation and log-probs."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from serve.sampling import TokenChoice, sample_next_tokens
from serve.sampling_params import SamplingParams, SamplingState

LOGITS = torch.tensor([[3.0, 2.9, 0.0, -1.0]])


def state(
    params: SamplingParams, prompt_ids: list[int] | None = None, output_ids: tuple[int, ...] = ()
) -> SamplingState:
    made = SamplingState(params, prompt_ids or [])
    for token in output_ids:
        made.append(token)
    return made


def next_token(params: SamplingParams, *output_ids: int) -> TokenChoice:
    (choice,) = sample_next_tokens(LOGITS, [state(params, output_ids=output_ids)])
    return choice


def test_penalties_lower_tokens_that_were_written() -> None:
    frequency = SamplingParams(1, 0.0, frequency_penalty=0.1)
    assert next_token(frequency, 0, 0).id == 1
    presence = SamplingParams(1, 0.0, presence_penalty=0.05)
    assert next_token(presence, 0, 0).id == 0


def test_a_bias_is_added_to_the_logits_of_its_tokens() -> None:
    biased = SamplingParams(1, 0.0, logit_bias={2: 3.5, 0: -1}, frequency_penalty=0.2)
    assert next_token(biased).id == 2
    assert next_token(biased, 2, 2).id == 2
    assert next_token(biased, 2, 2, 2, 2).id == 1


def test_a_repetition_penalty_is_that_of_transformers() -> None:
    params = SamplingParams(1, 0.0, repetition_penalty=1.3, logprobs=4)
    (choice,) = sample_next_tokens(LOGITS, [state(params, [0], (3, 3))])
    other = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([[0, 3, 3]]), LOGITS)
    expected = other.log_softmax(dim=-1).sort(descending=True)
    assert [token for token, _ in choice.alternatives] == expected.indices[0].tolist()
    assert [logprob for _, logprob in choice.alternatives] == pytest.approx(
        expected.values[0].tolist()
    )


def test_a_narrow_nucleus_and_extreme_settings_take_the_likeliest() -> None:
    narrow = state(SamplingParams(1, 5.0, top_p=0.01, seed=0))
    assert {sample_next_tokens(LOGITS, [narrow])[0].id for _ in range(50)} == {0}
    for extreme in (SamplingParams(1, 1.0, top_p=5e-324), SamplingParams(1, 1e-300)):
        assert next_token(extreme).id == 0


def test_logprobs_are_those_of_the_whole_vocabulary() -> None:
    choice = next_token(SamplingParams(1, 0.0, logprobs=2))
    assert [token for token, _ in choice.alternatives] == [0, 1]
    assert choice.logprob == pytest.approx(float(LOGITS.log_softmax(-1)[0, 0]))


def test_equal_logits_stand_in_the_order_of_their_ids() -> None:
    logits = torch.zeros(1, 700)
    logits[0, 5] = -1
    params = SamplingParams(1, 0.0, logprobs=8)
    (choice,) = sample_next_tokens(logits, [state(params)])
    assert [token for token, _ in choice.alternatives] == [0, 1, 2, 3, 4, 6, 7, 8]


def drawn(params: SamplingParams, logits: torch.Tensor, times: int) -> torch.Tensor:
    """Return how often each token is drawn by `times` requests at once, each with its own seed."""
    states = [state(replace(params, seed=seed)) for seed in range(times)]
    choices = sample_next_tokens(logits.expand(times, -1), states)
    return torch.bincount(torch.tensor([choice.id for choice in choices]), minlength=len(logits))


TRUNCATIONS: list[dict[str, Any]] = [
    {},
    {"top_p": 0.7},
    {"top_k": 7},
    {"top_k": 50},
    {"top_k": 50, "top_p": 0.8},
    {"min_p": 0.02},
    {"top_p": 0.9, "min_p": 0.1},
    {"top_k": 900, "top_p": 0.99, "min_p": 0.001},
    {"top_k": 5000},
]


@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_tokens_are_drawn_by_the_probability_that_transformers_gives_them(
    truncation: dict[str, Any],
) -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(1000)  # four blocks, of which the last is not full
    warpers = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}
    processors = LogitsProcessorList(
        [TemperatureLogitsWarper(0.8), *(warpers[name](n) for name, n in truncation.items())]
    )
    scores = processors(torch.tensor([[0]]), logits[None].double())
    expected = scores.softmax(dim=-1)[0]
    times = 4000
    counts = drawn(SamplingParams(1, 0.8, **truncation), logits, times)
    assert counts[expected == 0].sum() == 0
    often = expected * times > 5
    spread = (times * expected * (1 - expected)).sqrt()
    assert ((counts - times * expected).abs()[often] < 4.5 * spread[often]).all()
    rare = counts[~often].sum() - times * expected[~often].sum()
    assert rare.abs() < 4.5 * (times * expected[~often].sum()).sqrt() + 1


def test_a_nucleus_of_half_the_vocabulary_is_exact() -> None:
    """The nucleus has more tokens than the first guess considers."""
    counts = drawn(SamplingParams(1, 1.0, top_p=0.5), torch.linspace(0, -1e-4, 3000), 3000)
    assert (counts > 0).sum() == pytest.approx(1500 * (1 - math.exp(-2)), abs=80)
    assert counts[1500:].sum() == 0


def test_top_k_counts_tokens_that_lie_beside_each_other_and_are_alike() -> None:
    counts = drawn(SamplingParams(1, 1.0, top_k=9, top_p=0.5), torch.zeros(3000), 300)
    assert (counts > 0).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]


MIXES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.2, "logprobs": 3},
    {"temperature": 0.7},
    {"temperature": 2.0, "logprobs": 20},
    {"top_p": 0.9},
    {"top_p": 0.5, "temperature": 50.0},  # nearly all tokens are alike
    {"top_k": 40},
    {"top_k": 5, "top_p": 0.8, "min_p": 0.1},
    {"top_k": 2000, "top_p": 0.99},
    {"min_p": 0.05},
    {"min_p": 0.001, "top_p": 0.95, "logprobs": 0},
    {"frequency_penalty": 0.5, "presence_penalty": -0.3},
    {"repetition_penalty": 1.3, "top_p": 0.9},
    {"logit_bias": {3: 5.0, 2999: -100.0}, "top_k": 20},
    {"logit_bias": {7: 2.0}, "frequency_penalty": 0.2, "repetition_penalty": 0.9, "logprobs": 5},
    {"temperature": 0.3, "top_p": 0.2, "logprobs": 1},
]


def test_a_request_draws_the_same_beside_any_other_requests() -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(16, 3001)).bfloat16()  # many are equal
    ids = [torch.randint(3000, (20,)).tolist() for _ in MIXES]

    def states() -> list[SamplingState]:
        return [
            state(SamplingParams(**{"max_tokens": 1, "seed": n, **mix}), ids[n][:9], tuple(ids[n]))
            for n, mix in enumerate(MIXES)
        ]

    together, alone = states(), states()
    for _ in range(8):
        choices = sample_next_tokens(logits, together)
        for n, choice in enumerate(choices):
            assert sample_next_tokens(logits[n : n + 1], [alone[n]]) == [choice]
            together[n].append(choice.id)
            alone[n].append(choice.id)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {}, {"top_p": 0.9}])
def test_logits_that_are_no_numbers_are_an_error(bad: float, settings: dict[str, float]) -> None:
    logits = torch.zeros(2, 600)
    logits[1, 3] = bad
    states = [state(SamplingParams(1, seed=n, **settings)) for n in range(2)]
    with pytest.raises(FloatingPointError, match="no numbers"):
        sample_next_tokens(logits, states)
    logits[1, 3] = -math.inf  # a token that can not be drawn
    sample_next_tokens(logits, states)
