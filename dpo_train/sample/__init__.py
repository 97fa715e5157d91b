"""The `sample` that ships with the project: a synthetic preference dataset and a tiny model.

They were made for this project so that a search runs within minutes, on one CPU core, without a
download. They show that the code works, and nothing about quality: the texts come from templates,
the model knows no other sentences, and numbers measured on them say nothing about a real model.
`python -m dpo_train.sample` makes both again.
"""

from pathlib import Path

PAIRS: Path = Path(__file__).with_name("pairs.jsonl")
MODEL: Path = Path(__file__).with_name("model")
