"""Trains tiny models of many architectures with a stock DPOTrainer and by us, and compares.

The stock trainer runs in a process of its own (stock_architecture.py), which imports this module
but never the project, so neither our patches nor our changes to a model affect it.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

ROOT = Path(__file__).parents[2]
IDS: dict[str, Any] = {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 259}
SIZES: dict[str, Any] = {
    "vocab_size": 260, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "attention_dropout": 0.1, **IDS,
}  # fmt: skip
"""The sizes of a Llama-like configuration. Our trainers must switch its dropout off."""
GPT_SIZES: dict[str, Any] = {
    "vocab_size": 260, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, **IDS
}  # fmt: skip
WINDOW_TOKENS = 24
"""A sliding window that is smaller than every row."""

COMMON: dict[str, transformers.PretrainedConfig] = {
    "llama": transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "mistral_window": transformers.MistralConfig(**SIZES, sliding_window=WINDOW_TOKENS),
    "mixtral": transformers.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True),
    "gemma2": transformers.Gemma2Config(
        **SIZES, head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW_TOKENS,
        final_logit_softcapping=5.0, attn_logit_softcapping=5.0,
    ),
    "phi3": transformers.Phi3Config(**SIZES, resid_pdrop=0.1, embd_pdrop=0.1),
    "granite": transformers.GraniteConfig(
        **SIZES, logits_scaling=4.0, residual_multiplier=0.5, attention_multiplier=0.2
    ),
    "cohere": transformers.CohereConfig(**SIZES, logit_scale=0.25, use_qk_norm=True),
    "gpt2": transformers.GPT2Config(**GPT_SIZES),
    "bloom": transformers.BloomConfig(
        vocab_size=260, hidden_size=32, n_layer=2, n_head=4, hidden_dropout=0.1, **IDS
    ),
    "opt": transformers.OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=16, dropout=0.1),
}  # fmt: skip
"""The architectures that tests train; benchmarks/architectures.py has more."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
LEARNING_RATE = 2e-3
BATCH_SIZE = 4
BETA = 0.1
SEED = 3
SIDES = ("chosen", "rejected")
TOLERANCE = 1e-4
"""The largest allowed difference of a step's loss, and of held-out log-probs in nats per token."""


@dataclass(frozen=True)
class Run:
    """One of our trainers and the layers that get a LoRA: all, those of the attention, or none."""

    trainer: str
    adapted: str | None


RUNS = {
    "trl, all weights": Run("trl", None),
    "trl, LoRA": Run("trl", "all-linear"),
    "packed, all-linear": Run("packed", "all-linear"),
    "packed, attention only": Run("packed", "attention"),
}


@dataclass(frozen=True)
class Case:
    """A tiny model on disk, and the rows on which it is trained."""

    folder: str
    """Has the folders `model`, with the tokenizer, and `rows`, with a file for each split."""
    epochs: int
    attention_layers: list[str]
    """The last parts of the names of linear layers that only the attention has."""

    def lora(self, adapted: str | None) -> dict[str, Any] | None:
        """Return the adapter's configuration, with the field names of TrainConfig."""
        targets = self.attention_layers if adapted == "attention" else adapted
        return None if adapted is None else {"r": 4, "alpha": 8, "target_modules": targets}


@dataclass(frozen=True)
class Result:
    """The result of a training. Log-probs of each pair (chosen, rejected) are in nats per token."""

    losses: list[float]
    """The loss of each step."""
    logps: list[list[float]]
    """Log-probs of the held-out completions under the trained model, for ours under its export."""
    shifts: list[list[float]]
    """How much they rose above the reference's; for ours, as the session reported it."""
    matrices: list[str]
    """The names of the adapter's matrices; empty if all weights are trained."""


@dataclass(frozen=True)
class Failure:
    """A training that ended with an error: the error's class and message."""

    kind: str
    text: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Make the failure of an error."""
        return cls(type(error).__name__, " ".join(str(error).split())[:300])


def make(config: transformers.PretrainedConfig, folder: Path, pairs: int, epochs: int) -> Case:
    """Write a model of this configuration, with a vocabulary of 260, and the rows."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            # Fresh weights are small, and fresh norms and biases are ones and zeros. A model that
            # left some of them out would give the same numbers, so we add noise.
            weight.add_(torch.randn_like(weight) * (0.15 if weight.ndim > 1 else 0.05))
    model.save_pretrained(folder / "model")
    _tokenizer().save_pretrained(folder / "model")
    _write_rows(folder / "rows", pairs)
    return Case(str(folder), epochs, _attention_layers(model))


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer in which every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, "<|pad|>", "<|bos|>", "<|start|>", "<|end|>"]
    made = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|end|>",
        additional_special_tokens=["<|start|>"], chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def _write_rows(folder: Path, pairs: int) -> None:
    """Write rows of 45 to 130 tokens, in the form that TRL's documentation recommends."""
    draw = random.Random(0)
    words = ["when", "does", "the", "small", "grey", "owl", "fly", "over", "a", "river", "dark"]

    def message(role: str, most_words: int) -> list[dict[str, str]]:
        chosen = draw.choices(words, k=draw.randint(1, most_words))
        return [{"role": role, "content": " ".join(chosen)}]

    folder.mkdir()
    for split, count in (("train", pairs), ("validation", 6), ("test", 2)):
        rows = []
        for number in range(count):
            prompt = message("user", 8)
            prompt[0]["content"] += f" in the {split} row {number}?"
            chosen, rejected = message("assistant", 6), message("assistant", 9)
            rejected[0]["content"] += "!"
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _attention_layers(model: Any) -> list[str]:
    """Return the last names of attention layers, or of other layers that mix tokens."""
    inside: set[str] = set()
    outside = {"lm_head", "embed_out"}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | transformers.pytorch_utils.Conv1D):
            is_mixing = any(word in name for word in ("attn", "attention", "mixer", "temporal"))
            (inside if is_mixing else outside).add(name.rpartition(".")[2])
    return sorted(inside - outside)


def read_rows(case: Case, split: str) -> list[dict[str, Any]]:
    """Return the rows of a split."""
    lines = Path(case.folder, "rows", f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def held_out_logps(case: Case, model: Any) -> torch.Tensor:
    """Return log-probs of the held-out completions under a model, (pairs, 2), in nats per token.

    Each row goes through the model alone and without padding, which is the plain definition.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(f"{case.folder}/model")
    model.eval()
    values = []
    for row in read_rows(case, "validation"):
        prompt = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_dict=False
        )
        for side in SIDES:
            ids = tokenizer.apply_chat_template(row["prompt"] + row[side], return_dict=False)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
            scores = torch.log_softmax(logits.float(), dim=-1)
            targets = torch.tensor(ids[1:])[:, None]
            values.append(scores.gather(1, targets)[len(prompt) - 1 :].mean())
    return torch.stack(values).view(-1, 2)


def stock(cases: list[Case], adapted: list[str | None]) -> list[dict[str | None, Result | Failure]]:
    """Return the results of a stock trainer for each case, by the layers that get a LoRA."""
    request = {"cases": [asdict(case) for case in cases], "adapted": adapted}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "helpers" / "stock_architecture.py")],
        input=json.dumps(request), capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode:
        lost = Failure("exit status", f"{done.returncode}: {done.stderr[-300:]}")
        return [dict.fromkeys(adapted, lost) for _ in cases]
    answers = json.loads(done.stdout.splitlines()[-1])
    return [
        {
            layers: (Failure if "kind" in each else Result)(**each)
            for layers, each in zip(adapted, answer, strict=True)
        }
        for answer in answers
    ]


def ours(case: Case, run: Run, scratch: Path) -> Result | Failure:
    """Return the result of our trainer. Runs of a case share their prepared data in `scratch`."""
    # The stock process imports this module, and must not import the project.
    from dpo_train import data, reference
    from dpo_train.config import TrainConfig
    from dpo_train.trainers.open import open_session

    lora = case.lora(run.adapted)
    config = TrainConfig.model_validate(
        {
            "model": {"id": f"{case.folder}/model"},
            "data": {"id": f"{case.folder}/rows", "eval_split": "validation", "test_split": "test"},
            "trainer": run.trainer,
            "optim": {"learning_rate": LEARNING_RATE, "batch_size": BATCH_SIZE,
                      "epochs": case.epochs, "schedule": "constant"},
            "dpo": {"beta": BETA},
            "lora": lora,
            "seed": SEED,
            "eval_every_pairs": BATCH_SIZE,
        }
    )  # fmt: skip
    export = scratch / "export"
    try:
        prepared = reference.plan(config, data.load_pairs(config.data), scratch, "cpu")
        session = open_session(config, prepared, "cpu")
        try:
            found = [session.advance()]
            while found[-1].pairs_seen < session.pairs_total:
                found.append(session.advance())
            session.export(export)
        finally:
            session.close()
        rows = reference.prepare(prepared).split("eval")[:]
        tokens = torch.tensor([[len(ids) for ids in rows[f"{side}_ids"]] for side in SIDES])
        shifts = torch.tensor([found[-1].held_out[f"eval/{side}_shift"].tolist() for side in SIDES])
        # Load the export as somebody without this project would.
        loaded_from = f"{case.folder}/model" if lora else export
        policy = transformers.AutoModelForCausalLM.from_pretrained(loaded_from, dtype=torch.float32)
        if lora:
            policy = peft.PeftModel.from_pretrained(policy, export)
        return Result(
            losses=[each.report["train/loss"] for each in found],
            logps=held_out_logps(case, policy).tolist(),
            shifts=(shifts / tokens).T.tolist(),
            matrices=sorted(load_file(export / "adapter_model.safetensors")) if lora else [],
        )
    except Exception as error:
        return Failure.of(error)


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison: equal, refused, DIFFERENT, ERROR or no oracle."""

    kind: str
    text: str
    """How far apart the two are, or the error."""


def compare(ours: Result | Failure, stock: Result | Failure) -> Verdict:
    """Compare our result with the stock trainer's."""
    if isinstance(ours, Failure):
        if ours.kind == "InputError":
            return Verdict("refused", ours.text)
        too = " (the stock trainer fails too)" if isinstance(stock, Failure) else ""
        return Verdict("ERROR", f"from inside{too}: {ours.kind}: {ours.text}")
    if isinstance(stock, Failure):
        return Verdict("no oracle", f"the stock trainer fails: {stock.kind}: {stock.text}")
    if ours.matrices != stock.matrices:
        apart = sorted(set(ours.matrices) ^ set(stock.matrices))
        return Verdict("DIFFERENT", f"in {len(apart)} trained matrices, such as {apart[0]}")
    worst = {
        name: _apart(getattr(ours, name), getattr(stock, name))
        for name in ("losses", "logps", "shifts")
    }
    text = ", ".join(f"{name} {value:.1g}" for name, value in worst.items())
    is_equal = all(value <= TOLERANCE for value in worst.values())
    return Verdict("equal" if is_equal else "DIFFERENT", text)


def _apart(left: list[Any], right: list[Any]) -> float:
    """Return the largest difference of two lists of the same shape; NaN if either has a NaN."""
    return float((torch.tensor(left) - torch.tensor(right)).abs().max())
