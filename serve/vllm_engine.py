"""vLLM as an Engine: its own scheduler, paged cache and kernels, for GPUs.

vLLM pins other versions of transformers than training needs, so it lives in an environment of its
own (deploy/vllm.txt); nothing else imports this file.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoConfig
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from serve.engine import Answer, Chunk, Full, Unwatched, Watch
from serve.sampling import Sampling, TokenChoice
from serve.sources import Copy, ModelError, Source, one_line

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM has kernels for."""


class VllmEngine:
    """Owns vLLM's engine and the thread of its event loop."""

    def __init__(
        self,
        copy: Copy,
        adapters: list[Source],
        slots: int,
        context: int,
        most_waiting: int,
        memory: float,
    ) -> None:
        """Fills `memory` of the GPU, 0 to 1, with weights and cache. Raises ModelError."""
        self.watch: Watch = Unwatched()
        self.slots, self.most_waiting = slots, most_waiting
        self._asked = 0
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        rank = max((source.rank for source in adapters), default=0)
        self._adapters = {
            source.name: LoRARequest(source.name, number, _folder(source))
            for number, source in enumerate(adapters, start=1)
        }
        lora = {"max_loras": len(adapters), "max_lora_rank": _rank(rank)} if adapters else {}
        arguments = AsyncEngineArgs(
            model=copy.place, revision=copy.revision, max_num_seqs=slots,
            load_format="safetensors", max_model_len=_context(copy, context),
            gpu_memory_utilization=0.9 * memory, enable_lora=bool(adapters),
            disable_log_stats=True, **lora,
        )  # fmt: skip
        try:
            self._vllm = asyncio.run_coroutine_threadsafe(_start(arguments), self._loop).result()
        except Exception as error:  # of many kinds: the model, the memory, the device
            reason = one_line(error, 300)
            raise ModelError(f"vLLM can't serve {copy.place!r}: {reason}") from None
        self.context = self._vllm.model_config.max_model_len

    @property
    def is_alive(self) -> bool:
        return not self._vllm.errored

    def submit(self, answer: Answer) -> None:
        """Queues an answer. Raises Full."""
        with self._lock:
            if self._asked >= self.slots + self.most_waiting:
                raise Full
            self._asked += 1
        asyncio.run_coroutine_threadsafe(self._answer(answer), self._loop)

    def close(self) -> None:
        """Ends vLLM's processes after the answers that were asked for."""
        while self._asked:
            time.sleep(0.01)
        self._vllm.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _answer(self, answer: Answer) -> None:
        untold = Chunk()
        try:
            made = self._vllm.generate(
                {"prompt_token_ids": answer.prompt},
                _parameters(answer.sampling, answer.end_token),
                str(next(self._ids)),
                lora_request=self._adapters.get(answer.model or ""),
            )
            async with contextlib.aclosing(made):  # which ends it inside vLLM too
                async for output in made:
                    (part,) = output.outputs
                    untold.add(_chunk(part, answer.deadline, answer.sampling.logprobs or 0))
                    answer.ids += part.token_ids
                    answer.first_at = answer.first_at or time.monotonic()
                    if answer.is_dropped:
                        return
                    if answer.in_parts or untold.finish_reason:
                        answer.send(untold)
                        if untold.finish_reason:
                            return
                        untold = Chunk()
        except Exception as error:  # its engine has ended, or refuses what ours would take
            answer.send(Chunk(text=str(error), finish_reason="error"))
        finally:
            with self._lock:
                self._asked -= 1
            self.watch.ended(answer)


async def _start(arguments: AsyncEngineArgs) -> AsyncLLM:
    return AsyncLLM.from_engine_args(arguments)  # takes the running loop as its own


def _parameters(sampling: Sampling, end: int | None) -> SamplingParams:
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        stop=list(sampling.stop),
        stop_token_ids=[] if end is None else [end],
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        logprobs=sampling.logprobs,
        output_kind=RequestOutputKind.DELTA,
    )


def _chunk(part: Any, deadline: float, alternatives: int) -> Chunk:
    reason = part.finish_reason
    if reason is None and time.monotonic() > deadline:
        reason = "length"
    if reason not in (None, "stop", "length"):
        raise RuntimeError(f"vLLM ended it with {reason!r}")
    told = part.logprobs or [{}] * len(part.token_ids)
    tokens = [
        _token(id, likely, alternatives) for id, likely in zip(part.token_ids, told, strict=True)
    ]
    return Chunk(part.text, tokens, reason)


def _token(id: int, likely: dict[int, Any], most: int) -> TokenChoice:
    """vLLM tells the token's own log-prob among those of the likeliest, which have ranks."""
    if not likely:
        return TokenChoice(id)
    best = sorted(likely.items(), key=lambda item: item[1].rank)
    alternatives = [(other, found.logprob) for other, found in best[:most]]
    return TokenChoice(id, likely[id].logprob, alternatives)


def _context(copy: Copy, wanted: int) -> int:
    config: Any = AutoConfig.from_pretrained(copy.place, revision=copy.revision)
    return min(wanted, int(config.max_position_embeddings))


def _folder(source: Source) -> str:
    if Path(source.place).is_dir():
        return source.place
    return snapshot_download(source.place, revision=source.revision)


def _rank(wanted: int) -> int:
    found = [rank for rank in _RANKS if rank >= wanted]
    if not found:
        raise ModelError(f"an adapter of rank {wanted}; vLLM takes at most {_RANKS[-1]}")
    return found[0]
