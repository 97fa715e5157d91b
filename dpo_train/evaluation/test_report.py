"""What the evaluation on the test split found, as it lies in `results.json`."""

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
    """What is evaluated on the test split."""

    winner: Path
    prepared: Path
    """The prepared data."""
    device: str
    searched: Path | None = None
    """The best export of the search, where the winner is another."""
    sampled: Mapping[str, Path] = field(default_factory=dict)
    """By name the exports whose KL from the base is estimated on their own answers."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Difference(_Part):
    """The mean difference of two models, pair by pair."""

    difference: float
    interval: list[float]
    """Its 95 % interval over prompts."""


class SampledKl(_Part):
    """KL from the base in nats an answer, estimated on sampled answers."""

    mean: float
    interval: list[float]
    """Its 95 % interval over prompts."""


class Answer(_Part):
    """Greedy answers to one prompt of the test split."""

    prompt: str
    """Its last message."""
    base: str
    winner: str
    chosen: str
    base_is_cut: bool = False
    """Whether the base would have gone on: it was stopped after so many tokens."""
    winner_is_cut: bool = False


class Numbers(_Part):
    """What one model has on a split. In JSON the metrics stand beside the other fields."""

    metrics: dict[str, float] = {}
    """By name without the prefix `eval/`; each is the mean over the pairs."""
    interval: list[float] = []
    """The 95 % interval of `ranking` over prompts."""
    pairs: int | None = None
    answer_tokens: float | None = None
    """The mean length of greedy answers, in tokens."""
    repeating: float | None = None
    """The share of greedy answers that repeat themselves."""
    over_base: dict[str, Difference] = {}
    """By metric the difference from the base."""
    over_searched: dict[str, Difference] = {}
    """By metric the difference from the best export of the search, where the winner is another."""

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
        """With metrics that are known from elsewhere, where it does not have them itself."""
        return self.model_copy(update={"metrics": {**metrics, **self.metrics}})

    @property
    def shown(self) -> dict[str, float]:
        """The metrics, and the mean length of an answer where it was measured."""
        lengths = {} if self.answer_tokens is None else {"answer_tokens": self.answer_tokens}
        return {**self.metrics, **lengths}


class TestReport(_Part):
    test: Numbers
    """Of the winner."""
    base: Numbers
    """Of the base: what its greedy answers are like."""
    answers: list[Answer] = []
    """To the first prompts of the split."""
    searched: Numbers | None = None
    """Of the best export of the search, where the winner is another."""
    sampled_kl: dict[str, SampledKl] = {}
    """By the names of the sampled exports."""
