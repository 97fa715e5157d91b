"""The server's self-check finds and reports answers that differ from those of transformers."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from dpo_train import sample
from serve import attention, self_check
from serve.errors import ModelError
from serve.slot_engine import SlotEngine
from tests.helpers.small_models import SMALL


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(sample.MODEL)


@pytest.fixture
def model(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, vocab_size=len(tokenizer), initializer_range=0.3)
    return AutoModelForCausalLM.from_config(config).eval()


def take(model: Any, tokenizer: Any, **sizes: int) -> None:
    SlotEngine(model, tokenizer, **{"slots": 3, "context": 64, "max_waiting": 1, **sizes}).close()


def wrong_attention(*given: Any, **options: Any) -> torch.Tensor:
    """Let an answer attend to cache entries behind the end of its tokens."""
    return RIGHT_ATTENTION(*given, **{**options, "attn_mask": None})


RIGHT_ATTENTION = attention.scaled_dot_product_attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_that_are_wrong_are_refused_and_right_ones_are_not(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    model = model.to(dtype)
    take(model, tokenizer)
    monkeypatch.setattr(attention, "scaled_dot_product_attention", wrong_attention)
    with pytest.raises(ModelError, match="LlamaForCausalLM can't be served here: its answers diff"):
        take(model, tokenizer)


@pytest.mark.parametrize("sizes", [{"slots": 1}, {"context": 16}])
def test_a_small_server_is_checked_too(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int]
) -> None:
    take(model, tokenizer, **sizes)
    monkeypatch.setattr(attention, "scaled_dot_product_attention", wrong_attention)
    with pytest.raises(ModelError, match="its answers differ"):
        take(model, tokenizer, **sizes)


def test_an_answer_is_checked_to_its_full_length(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []
    right = self_check._size

    def size(differences: list[torch.Tensor], dtype: torch.dtype) -> float:
        lengths.append([len(one) for one in differences])
        return right(differences, dtype)

    monkeypatch.setattr(self_check, "_size", size)
    model.generation_config.eos_token_id = list(range(len(tokenizer)))  # every token ends an answer
    take(model, tokenizer)
    assert lengths == [[3, 3, 3]]


def test_an_error_from_inside_is_refused_without_its_words(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("size of tensor a must match tensor b")

    monkeypatch.setattr(attention.SlotCache, "write", fail)
    with pytest.raises(ModelError) as refused:
        take(model, tokenizer)
    assert "it does not run with the server's attention; vLLM" in str(refused.value)
    assert "tensor" not in str(refused.value)
    assert "tensor" in str(refused.value.__cause__)  # the replica's log has the details


def test_too_little_memory_is_said_as_such(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(attention.SlotCache, "write", fail)
    with pytest.raises(ModelError, match="not enough memory for 3 answers at once of 64 tokens"):
        take(model, tokenizer)


def test_a_refused_model_is_as_it_was(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    before = model(ids).logits
    with monkeypatch.context() as patch:
        patch.setattr(attention, "scaled_dot_product_attention", wrong_attention)
        with pytest.raises(ModelError):
            take(model, tokenizer)
    assert model(ids).logits.equal(before)
