"""The embedded default: a synthetic preference dataset and a tiny model pretrained on its style.

Both were written for this project so that a search runs within minutes, on one CPU core, with
nothing to download. They prove the plumbing, not quality: the texts come from templates, the
model knows no other sentence, and a figure measured on them says nothing about a real model.
`python -m dpo_train.sample` makes both anew.
"""

from pathlib import Path

PAIRS: Path = Path(__file__).with_name("pairs.jsonl")
MODEL: Path = Path(__file__).with_name("model")
