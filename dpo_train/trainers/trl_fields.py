"""`python -m dpo_train.trainers.trl_fields` writes trl_fields.json: the fields of the installed
TRL's DPOConfig with their defaults.
"""

from __future__ import annotations

import dataclasses
import json

from trl import DPOConfig

from dpo_train.config_trl import TABLE


def table() -> str:
    """Return the content of the file."""
    defaults = {}
    for field in dataclasses.fields(DPOConfig):
        makes, value = field.default_factory, field.default
        value = value if makes is dataclasses.MISSING else makes()
        defaults[field.name] = None if value is dataclasses.MISSING else value
    return json.dumps(defaults, indent=1, sort_keys=True, default=str) + "\n"


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
