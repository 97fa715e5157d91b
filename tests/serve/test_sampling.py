"""The next token by penalties, nucleus and log-probs."""

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
