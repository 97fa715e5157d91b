"""`python -m dpo_train.sample` writes pairs.jsonl and model/ again, and prints measurements."""

import os
import random
import time

# These must be set before torch is imported. More than one thread would change the order of sums,
# and so the weights.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch

from dpo_train.sample import MODEL, PAIRS
from dpo_train.sample.pairs import build_pairs, build_questions, write_pairs
from dpo_train.sample.pretrain import (
    Recipe,
    build_model,
    build_tokenizer,
    measure_ranking,
    pretrain,
)

SEED = 7


def main() -> None:
    """Rebuild everything in place."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    started = time.perf_counter()
    rows = build_pairs(SEED)
    write_pairs(rows, PAIRS)
    tokenizer = build_tokenizer(rows)
    model = build_model(tokenizer, SEED)
    # The same seed gives the same questions as in the rows. The answers are drawn again.
    questions = build_questions(random.Random(SEED))
    recipe = Recipe(epochs=24, batch_size=32, learning_rate=5e-3, seed=SEED)
    losses = pretrain(model, tokenizer, questions, recipe)
    model.save_pretrained(MODEL)
    tokenizer.save_pretrained(MODEL)

    better = measure_ranking(model, tokenizer, rows)
    print("loss per epoch, nats per token:", " ".join(f"{loss:.3f}" for loss in losses))
    for theme in (None, *sorted({row["source"] for row in rows})):
        ours = [b for b, row in zip(better, rows, strict=True) if theme in (None, row["source"])]
        name = theme or "all pairs"
        print(f"base ranking, {name}: {sum(ours) / len(ours):.3f} of {len(ours)}")
    for path in sorted([PAIRS, *MODEL.iterdir()]):
        print(f"{path.stat().st_size:>9,} bytes  {path.name}")
    print(f"{model.num_parameters():,} parameters, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
