"""Builds the sample model: its tokenizer and weights, and measures the ranking that it starts from.

It is trained on chosen and rejected answers alike, so the base prefers neither, and every later
preference comes from DPO.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from dpo_train.sample.pairs import Question, draw_conversations

VOCABULARY = 1024
# These get the last ids, because TRL takes a pad token with id 0 for a missing one.
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
IGNORED = -100

Row = dict[str, str]
Example = tuple[list[int], int]  # token ids, and how many of them are the prompt's


def build_tokenizer(rows: Sequence[Row], vocabulary: int = VOCABULARY) -> Qwen2Tokenizer:
    """Learn a byte-level BPE from the rows' texts.

    A model of type qwen2 is always loaded with the normalizer and pre-tokenizer of Qwen2Tokenizer,
    whatever tokenizer.json says. So the merges are learned with exactly those two.
    """
    backend = Qwen2Tokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE())
    learner.normalizer, learner.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [row[c] for row in rows for c in ("system", "prompt", "chosen", "rejected")]
    learner.train_from_iterator([*texts, *("system", "user", "assistant") * len(rows)], trainer)
    learned = json.loads(learner.to_str())["model"]
    specials = {token: len(learned["vocab"]) + number for number, token in enumerate(SPECIALS)}
    return Qwen2Tokenizer(
        vocab=learned["vocab"] | specials,
        merges=[tuple(pair) for pair in learned["merges"]],
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )


def build_model(tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2ForCausalLM:
    """Return a small Qwen2 with random float32 weights and tied embeddings."""
    torch.manual_seed(seed)
    special_ids = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        **special_ids,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(max_new_tokens=96, do_sample=False, **special_ids)
    return model


@dataclass(frozen=True)
class Recipe:
    """How the model learns the answers."""

    epochs: int
    batch_size: int
    learning_rate: float
    """The highest learning rate of the schedule."""
    seed: int
    """The seed of the drawn answers and of their order."""


def pretrain(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, questions: list[Question], recipe: Recipe
) -> list[float]:
    """Train in place on the answers' tokens; return each epoch's mean loss in nats per token."""
    rng = random.Random(recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    steps = recipe.epochs * -(-2 * len(questions) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.1
    )
    model.train()
    means = []
    for _ in range(recipe.epochs):
        examples = [
            encode(tokenizer, row, side)
            for row in draw_conversations(questions, rng)
            for side in ("chosen", "rejected")
        ]
        rng.shuffle(examples)
        losses = []
        for batch in _batches(examples, recipe.batch_size, rng):
            loss = -_answer_logps(model, tokenizer, batch, reduction="token").mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        means.append(sum(losses) / len(losses))
    model.eval()
    return means


def _batches(examples: list[Example], size: int, rng: random.Random) -> list[list[Example]]:
    """Cut shuffled examples into batches of about equal length, which need less padding."""
    pool = 8 * size
    batches = []
    for start in range(0, len(examples), pool):
        near = sorted(examples[start : start + pool], key=lambda example: len(example[0]))
        batches += [near[first : first + size] for first in range(0, len(near), size)]
    rng.shuffle(batches)
    return batches


@torch.no_grad()
def measure_ranking(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, rows: Sequence[Row]
) -> list[bool]:
    """Return for each row whether its chosen answer has the higher mean log-prob per token."""
    better: list[bool] = []
    for start in range(0, len(rows), 32):
        batch = rows[start : start + 32]
        chosen, rejected = (
            _answer_logps(
                model, tokenizer, [encode(tokenizer, row, s) for row in batch], reduction="answer"
            )
            for s in ("chosen", "rejected")
        )
        better += (chosen > rejected).tolist()
    return better


def to_messages(row: Row, side: str) -> list[dict[str, str]]:
    """Return the conversation that ends in the row's chosen or rejected answer."""
    system = [{"role": "system", "content": row["system"]}] if row["system"] else []
    return [
        *system,
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row[side]},
    ]


def encode(tokenizer: Qwen2Tokenizer, row: Row, side: str) -> Example:
    """Tokenize as TRL's DPOTrainer does: the completion is what follows the generation prompt."""
    messages = to_messages(row, side)
    render = partial(tokenizer.apply_chat_template, tokenize=False)
    prompt = render(messages[:-1], add_generation_prompt=True)
    return tokenizer(render(messages))["input_ids"], len(tokenizer(prompt)["input_ids"])


def _answer_logps(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, batch: Sequence[Example], reduction: str
) -> Tensor:
    """Return log-probs of the answers' tokens, shape (tokens,), or their means, shape (batch,)."""
    width = max(len(ids) for ids, _ in batch)
    inputs = torch.full((len(batch), width), tokenizer.pad_token_id)
    labels = torch.full((len(batch), width), IGNORED)
    for row, (ids, prompt) in enumerate(batch):
        inputs[row, : len(ids)] = torch.tensor(ids)
        labels[row, prompt : len(ids)] = torch.tensor(ids[prompt:])
    # Padding is on the right and attention is causal, so no mask is needed.
    logits = model(input_ids=inputs).logits[:, :-1]
    labels = labels[:, 1:]
    kept = labels != IGNORED
    logps = -cross_entropy(logits[kept], labels[kept], reduction="none")
    if reduction == "token":
        return logps
    sums = torch.zeros(len(batch)).index_add(0, kept.nonzero()[:, 0], logps)
    return sums / kept.sum(dim=1)
