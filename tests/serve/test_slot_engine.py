"""Continuous batching against transformers' own generation, one prompt at a time."""

import queue
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from dpo_train import sample
from serve import slot_engine
from serve.engine import Chunk, EngineMonitor, GenerationRequest
from serve.errors import QueueFull
from serve.model_source import Checkpoint
from serve.models import load_weights
from serve.sampling_params import SamplingParams
from serve.slot_engine import SlotEngine

PROMPTS = [
    "Is it true that goldfish forget everything in seconds?",
    "Hi",
    "Where do you live, and have you ever walked through Lisbon yourself? Tell me all about it. "
    * 3,
    "What is the capital of Portugal?",
    "Do bats see?",
]


@pytest.fixture(scope="module")
def model() -> Any:
    return load_weights(Checkpoint(str(sample.MODEL), None), {})


@pytest.fixture(scope="module")
def other() -> Any:
    """Return the sample model with transformers' own attention."""
    return AutoModelForCausalLM.from_pretrained(sample.MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(sample.MODEL)


@pytest.fixture
def engine(model: Any, tokenizer: Any) -> Iterator[SlotEngine]:
    engine = SlotEngine(model, tokenizer, slots=3, context=256, max_waiting=20)
    yield engine
    engine.close()


def tokens(tokenizer: Any, prompt: str) -> list[int]:
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True
    )["input_ids"]


def ask(
    engine: SlotEngine, prompt: list[int], **sampling: Any
) -> tuple[GenerationRequest, "queue.Queue[Chunk]"]:
    stream: queue.Queue[Chunk] = queue.Queue()
    given = {"max_tokens": 30, "temperature": 0.0, **sampling}
    answer = GenerationRequest(prompt, SamplingParams(**given), stream.put)
    engine.submit(answer)
    return answer, stream


def rest(stream: "queue.Queue[Chunk]") -> list[Chunk]:
    chunks = []
    while not chunks or chunks[-1].finish_reason is None:
        chunks.append(stream.get(timeout=60))
    return chunks


def alone(other: Any, prompt: list[int], most: int = 30) -> list[int]:
    output = other.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=most)
    return output[0, len(prompt) :].tolist()


class Batches(EngineMonitor):
    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.ended_answers = 0

    def on_step(self, batch_size: int, waiting: int) -> None:
        self.sizes.append(batch_size)

    def on_end(self, request: GenerationRequest) -> None:
        assert request.first_token_at is not None
        assert request.first_token_at >= request.created_at
        self.ended_answers += 1


@pytest.mark.parametrize("at_once", [1024, 16])
def test_answers_made_together_are_those_made_alone(
    engine: SlotEngine, other: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    # With 16 each prompt is read in several parts.
    monkeypatch.setattr(slot_engine, "_MAX_PREFILL_TOKENS", at_once)
    batches = Batches()
    engine.monitor = batches
    prompts = [tokens(tokenizer, prompt) for prompt in PROMPTS]
    most = [5, 30, 12, 30, 20, 7, 30, 1, 25, 30]
    requests = [
        ask(engine, prompts[number % len(prompts)], max_tokens=length)
        for number, length in enumerate(most)
    ]
    for number, (answer, stream) in enumerate(requests):
        chunks = rest(stream)
        expected = alone(other, prompts[number % len(prompts)], most[number])
        assert answer.output_ids == expected
        text = "".join(chunk.text for chunk in chunks)
        assert text == tokenizer.decode(expected, skip_special_tokens=True)
        is_ended = expected[-1] == tokenizer.eos_token_id
        assert chunks[-1].finish_reason == ("stop" if is_ended else "length")
    assert sum(batches.sizes) > 1.5 * len(batches.sizes)
    assert batches.ended_answers == len(requests)


@pytest.mark.parametrize("at_once", [1024, 16])
def test_heads_that_share_keys_answer_as_they_do_alone(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(slot_engine, "_MAX_PREFILL_TOKENS", at_once)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, eos_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    other = LlamaForCausalLM(config).eval()
    other.save_pretrained(tmp_path)
    engine = SlotEngine(load_weights(Checkpoint(str(tmp_path), None), {}), tokenizer, 3, 256, 9)
    requests = [ask(engine, tokens(tokenizer, prompt), max_tokens=20) for prompt in PROMPTS]
    for answer, stream in requests:
        rest(stream)
        assert answer.output_ids == alone(other, answer.prompt_ids, 20)
    engine.close()


def test_a_short_answer_does_not_wait_for_a_long_one(engine: SlotEngine, tokenizer: Any) -> None:
    prompt = tokens(tokenizer, PROMPTS[0])
    _, long = ask(engine, prompt, max_tokens=200, stop=("\0",), temperature=1.0, seed=1)
    long.get(timeout=60)
    _, short = ask(engine, prompt, max_tokens=2)
    assert rest(short)[-1].finish_reason == "length"
    assert long.qsize() < 150


def test_an_answer_that_nobody_reads_ends_at_the_next_token(
    engine: SlotEngine, tokenizer: Any
) -> None:
    answer, stream = ask(engine, tokens(tokenizer, PROMPTS[2]), max_tokens=150, temperature=1.0)
    stream.get(timeout=60)
    answer.is_cancelled = True
    _, other = ask(engine, tokens(tokenizer, "Hi"), max_tokens=5)
    rest(other)
    assert len(answer.output_ids) < 150
    assert not engine._decoding


def test_a_queue_that_is_full_says_so(model: Any, tokenizer: Any) -> None:
    engine = SlotEngine(model, tokenizer, slots=1, context=128, max_waiting=1)
    prompt = tokens(tokenizer, "Hi")
    _, first = ask(engine, prompt, max_tokens=100, temperature=1.5, stop=("\0",))
    first.get(timeout=60)
    second, _ = ask(engine, prompt, max_tokens=1)
    with pytest.raises(QueueFull):
        ask(engine, prompt)
    second.is_cancelled = True  # its client has gone, so its slot is free
    _, third = ask(engine, prompt, max_tokens=1)
    rest(first)
    rest(third)
    assert not second.output_ids
    engine.close()


def test_limits_end_an_answer_with_length(engine: SlotEngine, tokenizer: Any) -> None:
    prompt = (tokens(tokenizer, PROMPTS[2]) * 9)[:250]
    answer, stream = ask(engine, prompt, max_tokens=100, temperature=1.0, seed=0)
    assert rest(stream)[-1].finish_reason in ("length", "stop")
    assert len(prompt) + len(answer.output_ids) <= 256
    late = GenerationRequest(
        tokens(tokenizer, "Hi"), SamplingParams(100, 0.0), stream.put, deadline=time.monotonic()
    )
    engine.submit(late)
    assert rest(stream)[-1].finish_reason == "length"
    assert len(late.output_ids) == 1


def test_a_failing_step_fails_its_answers_and_no_later_ones(
    engine: SlotEngine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_forward", lambda *_: 1 / 0)
        _, stream = ask(engine, tokens(tokenizer, "Hi"))
        assert rest(stream)[-1].finish_reason == "error"
    _, stream = ask(engine, tokens(tokenizer, "Hi"), max_tokens=3)
    assert rest(stream)[-1].finish_reason == "length"


def test_the_same_seed_draws_the_same_beside_any_other_requests(
    engine: SlotEngine, tokenizer: Any
) -> None:
    prompt = tokens(tokenizer, PROMPTS[0])
    alone, stream = ask(engine, prompt, temperature=1.0, top_p=0.9, seed=7)
    rest(stream)
    requests = [ask(engine, prompt, temperature=1.0, top_p=0.9, seed=seed) for seed in (5, 7, 9)]
    for _, stream in requests:
        rest(stream)
    assert requests[1][0].output_ids == alone.output_ids
    assert requests[0][0].output_ids != alone.output_ids


def test_a_request_that_can_not_be_admitted_fails_alone(
    engine: SlotEngine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("no state for it")

    answers: queue.Queue[Chunk] = queue.Queue()

    def ask() -> Chunk:
        params = SamplingParams(max_tokens=2, temperature=0)
        engine.submit(
            GenerationRequest(tokens(tokenizer, "Hi"), params, answers.put, is_streamed=False)
        )
        return answers.get(timeout=30)

    with monkeypatch.context() as broken:
        broken.setattr(slot_engine, "SamplingState", refuse)
        assert ask() == Chunk(text="no state for it", finish_reason="error")
    assert ask().finish_reason == "length"
    assert engine.is_alive
