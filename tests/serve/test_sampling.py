"""The next token by penalties, nucleus and log-probs."""

import math
from dataclasses import replace

import pytest
import torch

from serve.sampling import SamplingParams, TokenChoice, sample_next_tokens

LOGITS = torch.tensor([[3.0, 2.9, 0.0, -1.0]])


def next_token(
    params: SamplingParams,
    generator: torch.Generator | None = None,
    output_ids: tuple[int, ...] = (),
) -> TokenChoice:
    (choice,) = sample_next_tokens(LOGITS, [params], [generator], [list(output_ids)])
    return choice


def test_penalties_lower_tokens_that_were_written() -> None:
    frequency = SamplingParams(1, 0.0, frequency_penalty=0.1)
    assert next_token(frequency, output_ids=(0, 0)).id == 1
    presence = SamplingParams(1, 0.0, presence_penalty=0.05)
    assert next_token(presence, output_ids=(0, 0)).id == 0


def test_a_narrow_nucleus_and_extreme_settings_take_the_likeliest() -> None:
    narrow = SamplingParams(1, 5.0, top_p=0.01, seed=0)
    generator = narrow.generator()
    assert {next_token(narrow, generator).id for _ in range(50)} == {0}
    for extreme in (SamplingParams(1, 1.0, top_p=5e-324), SamplingParams(1, 1e-300)):
        assert next_token(extreme, generator).id == 0


def test_logprobs_are_those_of_the_whole_vocabulary() -> None:
    choice = next_token(SamplingParams(1, 0.0, logprobs=2))
    assert [token for token, _ in choice.alternatives] == [0, 1]
    assert choice.logprob == pytest.approx(float(LOGITS.log_softmax(-1)[0, 0]))


def drawn(params: SamplingParams, logits: torch.Tensor, times: int) -> torch.Tensor:
    """How often each token is drawn, by so many requests with seeds of their own at once."""
    requests = [replace(params, seed=seed) for seed in range(times)]
    choices = sample_next_tokens(
        logits.expand(times, -1), requests, [p.generator() for p in requests], [[]] * times
    )
    return torch.bincount(torch.tensor([choice.id for choice in choices]), minlength=len(logits))


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_tokens_are_drawn_by_their_probability(top_p: float) -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(1000)  # of four blocks, the last one not full
    expected = (logits.double() / 0.8).softmax(dim=-1)
    ordered, order = expected.sort(descending=True)
    beyond = ordered.cumsum(dim=-1) - ordered >= top_p
    expected[order[beyond]] = 0
    expected = expected / expected.sum()
    times = 4000
    counts = drawn(SamplingParams(1, 0.8, top_p=top_p), logits, times)
    assert counts[expected == 0].sum() == 0
    often = expected * times > 5
    spread = (times * expected * (1 - expected)).sqrt()
    assert ((counts - times * expected).abs()[often] < 4.5 * spread[often]).all()
    rare = counts[~often].sum() - times * expected[~often].sum()
    assert rare.abs() < 4.5 * (times * expected[~often].sum()).sqrt() + 1


def test_a_nucleus_of_half_the_vocabulary_is_exact() -> None:
    counts = drawn(SamplingParams(1, 1.0, top_p=0.5), torch.zeros(600), 3000)
    assert (counts > 0).sum() == 300


def test_a_request_draws_the_same_whoever_is_beside_it() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(16, 3000)
    ids = [torch.randint(3000, (20,)).tolist() for _ in range(16)]
    requests = [
        SamplingParams(
            1,
            temperature=(0.0, 0.7, 1.0, 2.0)[n % 4],
            top_p=(1.0, 0.9, 0.2)[n % 3],
            seed=n,
            frequency_penalty=0.5 * (n % 2),
            presence_penalty=0.3 * (n % 5 == 0),
            logprobs=3 if n % 6 == 0 else None,
        )
        for n in range(16)
    ]
    together = sample_next_tokens(logits, requests, [p.generator() for p in requests], ids)
    for n, (params, choice) in enumerate(zip(requests, together, strict=True)):
        (alone,) = sample_next_tokens(logits[n : n + 1], [params], [params.generator()], [ids[n]])
        assert alone.id == choice.id
        assert alone.logprob == pytest.approx(choice.logprob)
        assert [token for token, _ in alone.alternatives] == [t for t, _ in choice.alternatives]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_logits_that_are_no_numbers_are_an_error(bad: float, top_p: float) -> None:
    logits = torch.zeros(2, 600)
    logits[1, 3] = bad
    params = [SamplingParams(1, 1.0, top_p=top_p, seed=n) for n in range(2)]
    with pytest.raises(FloatingPointError, match="no numbers"):
        sample_next_tokens(logits, params, [p.generator() for p in params], [[], []])
    logits[1, 3] = -math.inf  # a word that is ruled out
    sample_next_tokens(logits, params, [p.generator() for p in params], [[], []])
