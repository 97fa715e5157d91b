"""The results of the evaluation on the test split, as they are stored in `results.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)


@dataclass(frozen=True)
class TestFolders:
    """The folders of the models that are evaluated on the test split."""

    winner: Path
    prepared: Path
    """The folder of the prepared data."""
    device: str
    searched: Path | None = None
    """The best export of the search, if the winner is another."""
    sampled: Mapping[str, Path] = field(default_factory=dict)
    """By name, the exports whose KL from the base is estimated on answers they sample."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Difference(_Part):
    """The mean difference of two models, pair by pair."""

    difference: float
    interval: list[float]
    """Its 95 % interval over prompts."""


class SampledKl(_Part):
    """KL from the base in nats per answer, estimated on sampled answers."""

    mean: float
    interval: list[float]
    """Its 95 % interval over prompts."""


class Answer(_Part):
    """Greedy answers to one prompt of the test split."""

    prompt: str
    """The last message of the prompt."""
    base: str
    winner: str
    chosen: str
    base_is_cut: bool = False
    """Whether the base's answer was cut at the most tokens allowed."""
    winner_is_cut: bool = False


class Numbers(_Part):
    """The results of one model on a split. In JSON the metrics are beside the other fields."""

    metrics: dict[str, float] = {}
    """The mean of each metric over the pairs, by name without the prefix `eval/`."""
    interval: list[float] = []
    """The 95 % interval of `ranking` over prompts."""
    pairs: int | None = None
    answer_tokens: float | None = None
    """The mean length of greedy answers, in tokens."""
    repeating: float | None = None
    """The share of greedy answers that repeat themselves."""
    over_base: dict[str, Difference] = {}
    """The difference from the base, by metric."""
    over_searched: dict[str, Difference] = {}
    """The difference from the best export of the search, by metric, if the winner is another."""

    @model_validator(mode="before")
    @classmethod
    def _gather_metrics(cls, content: Any) -> Any:
        if not isinstance(content, Mapping) or "metrics" in content:
            return content
        fields = {name: value for name, value in content.items() if name in cls.model_fields}
        numbers = {name: x for name, x in content.items() if isinstance(x, int | float)}
        metrics = {name: x for name, x in numbers.items() if name not in fields}
        return {**fields, "metrics": metrics}

    @model_serializer(mode="wrap")
    def _spread_metrics(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content = handler(self)
        metrics = content.pop("metrics")
        return {
            **metrics,
            **{name: each for name, each in content.items() if each not in (None, [], {})},
        }

    def with_others(self, metrics: Mapping[str, float]) -> Numbers:
        """Return a copy with further metrics. Metrics that it has already stay."""
        return self.model_copy(update={"metrics": {**metrics, **self.metrics}})

    @property
    def shown(self) -> dict[str, float]:
        """The metrics, and the mean length of an answer if it was measured."""
        lengths = {} if self.answer_tokens is None else {"answer_tokens": self.answer_tokens}
        return {**self.metrics, **lengths}


class TestReport(_Part):
    """The results of all models that were evaluated on the test split."""

    test: Numbers
    """The results of the winner."""
    base: Numbers
    """Length and repetition of the base's greedy answers."""
    answers: list[Answer] = []
    """Answers to the first prompts of the split."""
    searched: Numbers | None = None
    """The results of the best export of the search, if the winner is another."""
    sampled_kl: dict[str, SampledKl] = {}
    """The KL from the base, by the names of the sampled exports."""
