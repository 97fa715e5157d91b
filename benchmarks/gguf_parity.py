"""Compares llama.cpp on our GGUF files with transformers on the model folder: the tokens of 50
texts and greedy answers to 20 questions.

    pip install -c constraints.txt -e .[gguf] cyllama    # llama.cpp with bindings; `dev` has both
    python -m benchmarks.gguf_parity FOLDER [--answers 20] [--tokens 64]

FOLDER is a model with its tokenizer, as save_pretrained writes it. Answers may differ because of
rounding. The line of such an answer says by how many nats transformers preferred its own token, and
the largest difference of the log-probs of likely tokens before that token. Rounding explains a gap
of up to twice this difference.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from dpo_train.gguf import sampling, write
from dpo_train.gguf.tensors import Quantization
from tests.helpers.llama_cpp import LlamaCpp
from tests.helpers.varied_texts import TEXTS, with_special

QUESTIONS = (
    "What is the capital of France?", "Name three primary colours.", "What is 7 times 8?",
    "Write a haiku about autumn.", "Why is the sky blue?", "Translate 'good morning' into Spanish.",
    "List the planets of the solar system.", "Who wrote Romeo and Juliet?",
    "Explain photosynthesis in one sentence.", "What does HTTP stand for?",
    "Give me a recipe for pancakes.", "How many legs does a spider have?",
    "Write a Python function that reverses a string.", "What is the largest ocean?",
    "Tell me a short story about a dragon.", "What are the benefits of exercise?",
    "Can goldfish remember things?", "How do I boil an egg?", "What is a black hole?",
    "Suggest a name for a cat.",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--answers", type=int, default=len(QUESTIONS), help="questions to answer")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    options = parser.parse_args()
    source = write.from_folder(options.folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32)
    chats = [_chat(source.tokenizer, question) for question in QUESTIONS[: options.answers]]
    theirs = [_answer(model, source, chat, options.tokens) for chat in chats]
    quantizations: tuple[Quantization, ...] = ("f16", "q8_0")
    for quantization in quantizations:
        with tempfile.TemporaryDirectory() as folder:
            for note in write.write(source, Path(folder), "model", quantization):
                print(f"note: {note}")
            path = Path(folder) / f"model-{quantization.upper()}.gguf"
            print(f"\n{quantization}: {path.stat().st_size / 1e6:.1f} MB")
            with LlamaCpp(path, 2048) as llama:
                _compare_tokens(llama, source.tokenizer)
                ours = [llama.answer(chat, options.tokens) for chat in chats]
                for question, chat, one, two in zip(QUESTIONS, chats, theirs, ours, strict=False):
                    _show(question, _Difference.between(model, llama, chat, (one, two)))
            print(f"equal answers: {sum(map(list.__eq__, theirs, ours))} of {len(chats)}")


def _compare_tokens(llama: LlamaCpp, tokenizer: Any) -> None:
    equal = 0
    for text in TEXTS:
        text = with_special(text, tokenizer)
        theirs = tokenizer(text, add_special_tokens=False)["input_ids"]
        ours = llama.tokens(text)
        equal += theirs == ours
        if theirs != ours:
            print(f"tokens differ: {text!r}: transformers {theirs}, llama.cpp {ours}")
    print(f"equal tokens: {equal} of {len(TEXTS)} texts")


def _chat(tokenizer: Any, question: str) -> list[int]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _answer(model: Any, source: write.Source, prompt: list[int], most: int) -> list[int]:
    """Return transformers' most probable tokens, until one ends the answer."""
    ends = {source.tokenizer.eos_token_id, *sampling.ends(source.generation)}
    found: list[int] = []
    fed, cache = prompt, None
    with torch.no_grad():
        while len(found) < most:
            step = model(torch.tensor([fed]), past_key_values=cache, use_cache=True)
            cache, token = step.past_key_values, int(step.logits[0, -1].argmax())
            if token in ends:
                break
            found.append(token)
            fed = [token]
    return found


@dataclass(frozen=True)
class _Difference:
    """Where two answers begin to differ."""

    at: int
    """Number of equal tokens before the difference."""
    gap: float
    """How many nats transformers prefers its own token to llama.cpp's."""
    rounding: float
    """The largest difference, in nats, of likely tokens' log-probs after the equal tokens."""

    @classmethod
    def between(
        cls, model: Any, llama: LlamaCpp, chat: list[int], answers: tuple[list[int], list[int]]
    ) -> _Difference | None:
        """Compare two answers."""
        theirs, ours = answers
        if theirs == ours:
            return None
        at = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b),
                  min(len(theirs), len(ours)))  # fmt: skip
        before = chat + theirs[:at]
        with torch.no_grad():
            one = model(torch.tensor([before])).logits[0].log_softmax(-1)
        two = torch.tensor(llama.logits(before)).log_softmax(-1)
        best = one[:-1].argmax(-1, keepdim=True)
        rounding = (one[:-1].gather(1, best) - two[:-1].gather(1, best)).abs().max()
        gap = one[-1].max() - one[-1, two[-1].argmax()]
        return cls(at, float(gap), float(rounding))


def _show(question: str, difference: _Difference | None) -> None:
    if difference is None:
        print(f"  {question:50} equal")
    else:
        print(f"  {question:50} differs after {difference.at:3} tokens: gap {difference.gap:.4f} "
              f"nats, before it apart {difference.rounding:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
