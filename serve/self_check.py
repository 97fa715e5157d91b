"""Checks when a model is loaded that the server's answers are those of transformers.

A few short random prompts are answered together in the slots of an engine. Their log-probs must
equal those that the model computes with its own attention, for each prompt alone and without a
cache. So we need no list of supported architectures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import DynamicCache

from serve.attention import base_of, set_attention
from serve.engine import Chunk, GenerationRequest
from serve.errors import ModelError, UnsupportedAttention
from serve.model_source import MERGE_ADAPTER, refusal
from serve.sampling_params import SamplingParams

_PROMPT_TOKENS = (3, 13, 5)
_ANSWER_TOKENS = 3
_MAX_PREFILL_TOKENS = 8
"""The first step prefills the first prompt and a part of the second, the next step the rest."""
_ALTERNATIVES = 50
"""How many log-probs are compared for each token."""
_TOLERANCE = 1e-3
"""It is in nats. Under float32 supported models differ by 1e-5, others by 0.1 and more."""

Generate = Callable[[list[GenerationRequest], int], None]
"""Generates answers together. The number is the most prompt tokens of a step."""


class _Sample:
    """A random prompt and the server's answer."""

    def __init__(self, prompt_ids: list[int], adapter: str | None) -> None:
        self.answer = Chunk()
        sampling = SamplingParams(_ANSWER_TOKENS, temperature=0.0, logprobs=_ALTERNATIVES)
        self.request = GenerationRequest(
            prompt_ids, sampling, self.answer.append, adapter, is_streamed=False
        )

    def served(self) -> torch.Tensor:
        """Returns the server's log-probs, of shape (tokens, alternatives)."""
        tokens = self.answer.tokens
        return torch.tensor([[logprob for _, logprob in token.alternatives] for token in tokens])

    def expected(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns the log-probs of the same alternatives from other logits.

        The logits have the shape (tokens, vocabulary), the result (tokens, alternatives).
        """
        ids = [[id for id, _ in token.alternatives] for token in self.answer.tokens]
        return logits.log_softmax(dim=-1).gather(1, torch.tensor(ids))


def check(model: Any, generate: Generate, slots: int, context: int) -> None:
    """Compares the answers of `generate` with those that the model computes alone.

    Raises ModelError, which names the model, if they differ or something fails.
    """
    # The log-probs of both.
    with _errors_refused(model, slots, context):
        _refuse_other_layers(base_of(model))
        samples = _random_samples(model, context)
        generate([sample.request for sample in samples], _MAX_PREFILL_TOKENS)
        logits = [_logits_alone(model, sample.request) for sample in samples]
        differences = [
            sample.served() - sample.expected(alone)
            for sample, alone in zip(samples, logits, strict=True)
        ]
        tolerance = _tolerance(model, samples, logits)
    # The comparison, first of the base's answers, then of the adapters'.
    for has_adapter in (False, True):
        group = [
            difference
            for sample, difference in zip(samples, differences, strict=True)
            if (sample.request.adapter is not None) == has_adapter
        ]
        # A NaN is not `<=` anything, so it is refused too.
        if group and not (nats := _size(group, model.dtype)) <= tolerance:
            reason = f"differ from transformers' by {nats:.2g} nats per token"
            if has_adapter:
                raise _refusal(model, f"its answers with an adapter {reason}", MERGE_ADAPTER)
            raise _refusal(model, f"its answers {reason}")


def _random_samples(model: Any, context: int) -> list[_Sample]:
    """Returns prompts of different lengths, at least one for the base and one for each adapter."""
    adapters = [None, *getattr(model, "peft_config", {})]
    vocabulary = model.config.get_text_config().vocab_size
    draw = torch.Generator().manual_seed(0)
    samples = []
    for number in range(max(len(_PROMPT_TOKENS), len(adapters))):
        most = _PROMPT_TOKENS[number % len(_PROMPT_TOKENS)]
        length = max(1, min(most, context - _ANSWER_TOKENS))
        ids = torch.randint(vocabulary, (length,), generator=draw).tolist()
        samples.append(_Sample(ids, adapters[number % len(adapters)]))
    return samples


@contextlib.contextmanager
def _errors_refused(model: Any, slots: int, context: int) -> Iterator[None]:
    """Turns all errors into ModelError."""
    try:
        yield
    except UnsupportedAttention as error:
        raise _refusal(model, str(error)) from None
    except Exception as error:
        if _is_out_of_memory(error):
            raise ModelError(
                f"{base_of(model).name_or_path}: there is not enough memory for {slots} answers at "
                f"once of {context} tokens; type smaller numbers for slots and context"
            ) from error
        if hasattr(model, "peft_config"):
            reason = "it does not run beside other answers with its adapter"
            raise _refusal(model, reason, MERGE_ADAPTER) from error
        raise _refusal(model, "it does not run with the server's attention") from error


def _refusal(model: Any, reason: str, *advice: str) -> ModelError:
    base = base_of(model)
    return refusal(base.name_or_path, type(base).__name__, reason, *advice)


def _is_out_of_memory(error: Exception) -> bool:
    words = ("out of memory", "DefaultCPUAllocator")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _refuse_other_layers(base: Any) -> None:
    """Raises UnsupportedAttention for kinds of layers that short prompts don't reveal.

    transformers has a kind of cache for each kind of layer, so we look at a model's cache.
    """
    cache = DynamicCache(config=base.config)
    if any(cache.is_sliding):
        raise UnsupportedAttention("some of its layers see only a window of the tokens")
    if any(cache.is_linear):
        raise UnsupportedAttention("some of its layers have a state in place of attention")


@torch.inference_mode()
def _logits_alone(model: Any, request: GenerationRequest) -> torch.Tensor:
    """Returns the logits of the answer's tokens, float32, of shape (tokens, vocabulary)."""
    ids = request.prompt_ids + request.output_ids[:-1]
    with _adapter_alone(model, request.adapter):
        output = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    logits: torch.Tensor = output.logits[0, -len(request.output_ids) :].float().cpu()
    return logits


@contextlib.contextmanager
def _adapter_alone(model: Any, adapter: str | None) -> Iterator[None]:
    """In this context, the whole model computes with this adapter, or as the base."""
    if adapter is not None:
        model.set_adapter(adapter)
    base_alone = hasattr(model, "peft_config") and adapter is None
    with model.disable_adapter() if base_alone else contextlib.nullcontext():
        yield


def _tolerance(model: Any, samples: list[_Sample], logits: list[torch.Tensor]) -> float:
    """Returns how much log-probs may differ from those of `logits`.

    Under bfloat16 this is three times the difference between two attentions of transformers, but at
    least two roundings of the largest logit.
    """
    if model.dtype == torch.float32:
        return _TOLERANCE
    own = set_attention(base_of(model), "eager")
    try:
        others = [_logits_alone(model, sample.request) for sample in samples]
    finally:
        set_attention(base_of(model), own)
    noise = [
        sample.expected(one) - sample.expected(other)
        for sample, one, other in zip(samples, logits, others, strict=True)
    ]
    rounding = torch.finfo(model.dtype).eps * max(float(one.abs().max()) for one in logits)
    return max(_TOLERANCE, 3 * _size(noise, model.dtype), 2 * rounding)


def _size(differences: list[torch.Tensor], dtype: torch.dtype) -> float:
    """Returns the size of differences of shape (tokens, alternatives).

    Under float32 this is the largest one. Under bfloat16 rounding sometimes sends a token to
    another expert of a mixture, and all later tokens differ. So there it is the median over tokens.
    """
    tokens = torch.cat(differences).abs().amax(dim=1)
    return float(tokens.max() if dtype == torch.float32 else tokens.median())
