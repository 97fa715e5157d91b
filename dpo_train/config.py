"""The configuration of one trial: its parts, how a YAML becomes one, overriding by dotted path.

Imports nothing heavy: every mistake in a YAML is found before torch is loaded.
"""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)


COUPLED_LOSSES = ("aot", "aot_unpaired", "sft")
"""Those that sort a batch's rows, or take a mean over all its tokens: of two halves of a batch the
mean is not that of the whole."""
NOT_PACKED = ("aot", "aot_unpaired")
"""They sort over a batch, so a pair has no loss of its own."""


class InputError(ValueError):
    """What the user gave is wrong. The message is one line: given, allowed, what to type."""


def one_line(error: object, most: int = 200) -> str:
    """What an error says, on one line of at most so many characters; its kind if it is silent."""
    return " ".join(str(error).split())[:most] or type(error).__name__


class Part(BaseModel):
    """A frozen piece of configuration that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic would take `true` for 1."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {annotation, *get_args(annotation)}:
            raise ValueError(f"must be a number, not {str(value).lower()}")
        return value


class ModelConfig(Part):
    id: str = "sample"
    """A Hub id, a folder, or `sample`, the tiny model that ships with the project."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; a search resolves it to a commit before it starts."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights in memory. bfloat16 only for the frozen base of a LoRA."""


class DataConfig(Part):
    id: str = "sample"
    """A Hub id, a file (.jsonl .json .csv .parquet), a folder of such files named by split,
    or `sample`."""
    config: str | None = None
    """The dataset's configuration on the Hub."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    split: str = "train"
    """The split that is read, and cut in three unless the next two name splits of their own."""
    eval_split: str | None = None
    """The dataset's own split on which trials are compared."""
    test_split: str | None = None
    """The dataset's own split that is read once, at the end."""
    chars: tuple[int, int] | None = None
    """Fewest and most characters of prompt, of chosen and of rejected."""
    limit: int | None = Field(None, ge=3)
    """The first so many rows that passed the filters."""
    eval_fraction: float = Field(1 / 6, gt=0, lt=1)
    """Share of the rows that becomes eval, when the dataset is cut."""
    test_fraction: float = Field(1 / 6, gt=0, lt=1)
    """Share of the rows that becomes test, when the dataset is cut."""
    split_seed: int = 0
    """Decides which prompts fall into which split."""
    max_length_tokens: int = Field(1024, ge=8)
    """A pair whose prompt with its longer completion has more tokens is left out."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.eval_split is None) != (self.test_split is None):
            raise ValueError("eval_split and test_split go together: name both or neither")
        if len({self.split, self.eval_split, self.test_split}) < 3 and self.eval_split:
            raise ValueError("split, eval_split and test_split must be three different splits")
        if self.chars and self.chars[0] > self.chars[1]:
            raise ValueError(f"chars: {list(self.chars)} is [fewest, most]; swap the two")
        if self.eval_fraction + self.test_fraction >= 1:
            raise ValueError("eval_fraction and test_fraction leave nothing to train on")
        return self


class OptimConfig(Part):
    learning_rate: float = Field(1e-5, gt=0, le=10)
    """AdamW's peak learning rate."""
    batch_size: int = Field(8, ge=1)
    """Pairs per optimizer step."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Most pairs that go through the model at once; gradients of the rest of a batch are added up.
    All of a batch by default; halved by itself where memory runs out."""
    epochs: int = Field(1, ge=1)
    """Passes over the training pairs."""
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = (
        "constant_with_warmup"
    )
    """Of the learning rate. With a constant one a shorter trial is a prefix of a longer one."""
    warmup_pairs: int = Field(64, ge=0)
    """Pairs over which the learning rate rises from 0; not used by `constant`."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""

    @property
    def pairs_at_once(self) -> int:
        """The largest part of a batch, at most micro_batch_size, that divides it evenly."""
        most = min(self.micro_batch_size or self.batch_size, self.batch_size)
        return next(size for size in range(most, 0, -1) if self.batch_size % size == 0)


class DpoConfig(Part):
    loss: Literal[LOSSES] | list[Literal[LOSSES]] = "sigmoid"  # type: ignore[valid-type]
    """One of TRL's losses, or several that are added."""
    loss_weights: list[float] | None = None
    """Weights of several losses; 1 each by default."""
    beta: float = Field(0.1, gt=0, le=1000)
    """How strongly the policy is held to the reference (tau for ipo)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """For robust, exo_pair and aot, and under `trainer: packed` for sigmoid: the share of labels
    taken to be flipped. TRL's sigmoid knows none."""
    discopop_tau: float = Field(0.05, gt=0)
    """For discopop: temperature of the modulation."""

    @property
    def losses(self) -> list[str]:
        return [self.loss] if isinstance(self.loss, str) else list(self.loss)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.losses:
            raise ValueError("loss: name at least one")
        if self.loss_weights is not None and len(self.loss_weights) != len(self.losses):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} numbers for {len(self.losses)} losses"
            )
        if "exo_pair" in self.losses and self.label_smoothing == 0:
            raise ValueError("exo_pair needs label_smoothing above 0; its paper uses 1e-3")
        return self


class LoraConfig(Part):
    r: int = Field(16, ge=1)
    """Rank of the adapter."""
    alpha: float = Field(32, gt=0)
    """The adapter's output is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On the adapter's input. TRL switches dropout off in DPO, so only 0 is honest."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the layers that get an adapter; never `lm_head`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.dropout:
            raise ValueError("dropout: DPO needs log-ratios without noise; leave it at 0")
        if "lm_head" in self.target_modules:
            raise ValueError("target_modules: an adapter on lm_head would never be trained")
        return self


class SimulatedConfig(Part):
    """The curve that `trainer: simulated` follows in place of training."""

    pairs: int = Field(512, ge=1)
    """Training pairs in one epoch."""
    seconds_per_report: float = Field(0.0, ge=0)
    """How long the training between two evaluations takes."""
    noise: float = Field(0.01, ge=0)
    """Standard deviation that an evaluation adds to the accuracy, drawn from the trial's seed."""
    best_learning_rate: float = Field(1e-3, gt=0)
    """The accuracy at the end falls by 0.1 per decade away from it."""
    diverges_above: float = Field(1.0, gt=0)
    """With a larger learning rate the loss becomes NaN at the second evaluation."""
    memory_pairs: int | None = Field(None, ge=0)
    """Most pairs at once for which there is memory; with more the second evaluation has none."""


class TrainConfig(Part):
    """One trial: what `python -m dpo_train` reads, and what a search varies."""

    model: ModelConfig = ModelConfig()
    """The base model, and so the reference."""
    data: DataConfig = DataConfig()
    """The preference pairs."""
    trainer: Literal["trl", "packed", "simulated"] = "trl"
    """`trl` trains with TRL's DPOTrainer; `packed` trains many LoRA trials in one step;
    `simulated` follows a curve and needs no torch."""
    optim: OptimConfig = OptimConfig()
    """Optimizer and schedule."""
    dpo: DpoConfig = DpoConfig()
    """The loss."""
    lora: LoraConfig | None = None
    """Null trains all weights."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Order of the data and the adapter's first weights."""
    eval_every_pairs: int = Field(64, ge=1, le=10**9)
    """A trial is evaluated at the first step at or past each multiple."""
    simulated: SimulatedConfig = SimulatedConfig()
    """Used by `trainer: simulated` alone."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.model.dtype == "bfloat16" and self.lora is None:
            raise ValueError(
                "model.dtype: bfloat16 weights can't be trained in full (at learning rate 1e-5 "
                "most updates round to nothing); type float32, on a GPU the computing is in "
                "bfloat16 all the same, or add `lora: {}`"
            )
        if self.trainer == "packed" and self.lora is None:
            raise ValueError(
                "trainer: packed trains adapters over one frozen base; add `lora: {}`, or type "
                "`trainer: trl` to train all weights"
            )
        unpacked = [name for name in self.dpo.losses if name in NOT_PACKED]
        if self.trainer == "packed" and unpacked:
            raise ValueError(
                f"dpo.loss: {', '.join(unpacked)} is not packed (it compares the pairs of a "
                "batch); type `trainer: trl`, or another loss"
            )
        if self.optim.batch_size > self.eval_every_pairs:
            raise ValueError(
                f"optim.batch_size {self.optim.batch_size} is larger than eval_every_pairs "
                f"{self.eval_every_pairs}: rungs would be skipped; raise eval_every_pairs"
            )
        coupled = [loss for loss in self.dpo.losses if loss in COUPLED_LOSSES]
        if coupled and self.optim.pairs_at_once < self.optim.batch_size:
            raise ValueError(
                f"optim.micro_batch_size: {coupled[0]} couples the rows of a batch, so a batch of "
                f"{self.optim.batch_size} can't be split; lower optim.batch_size"
            )
        return self


Config = TypeVar("Config", bound=Part)


def load_train(path: Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Reads one trial's YAML. Raises InputError."""
    return parse(TrainConfig, read_yaml(path), overrides or {}, str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a mapping by YAML 1.2's rules: `1e-5` is a number, `off` a word, no key twice."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(
            f"{path}: can't be read ({reason}); give the path of a YAML file"
        ) from None
    try:
        content = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = (getattr(error, "problem", None) or str(error)).split("\n")[0]
        place = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"{path}: {place}{problem}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{path}: must be a mapping of keys to values, like `trials: 24`")
    return content


def parse_value(text: str) -> Any:
    """Reads one value as YAML would: for `--set a.b=VALUE`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError):
        raise InputError(f"--set: {text!r} is not a YAML value") from None


def parse(
    kind: type[Config], content: Mapping[str, Any], overrides: Mapping[str, Any], where: str
) -> Config:
    """Validates content with overrides applied. Raises InputError with one line of cause."""
    merged = {key: value for key, value in content.items()}
    known = field_paths(kind)
    for path, value in overrides.items():
        if path not in known:
            raise InputError(f"{where}: unknown path {path!r}; {_nearest(path, known)}")
        merged = _with_value(merged, path.split("."), value)
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise InputError(f"{where}: {_fault(error, kind)}") from None


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of the config with the values at the dotted paths. Raises InputError."""
    return parse(type(config), config.model_dump(mode="json"), values, "override")


def field_paths(kind: type[BaseModel], prefix: str = "") -> dict[str, type[BaseModel] | None]:
    """Every dotted path of a config class, with the class of the part that stands there."""
    paths: dict[str, type[BaseModel] | None] = {}
    for name, field in kind.model_fields.items():
        part = next(_parts(field.annotation), None)
        paths[prefix + name] = part
        if part:
            paths |= field_paths(part, f"{prefix}{name}.")
    return paths


def unknown_path(path: str, known: Mapping[str, Any]) -> str:
    """The sentence that says what could have been meant."""
    return f"unknown path {path!r}; {_nearest(path, known)}"


def _parts(annotation: Any) -> Iterator[type[BaseModel]]:
    union = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    for kind in (annotation, *union):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind


def _with_value(tree: Mapping[str, Any], keys: list[str], value: Any) -> dict[str, Any]:
    copy = dict(tree)
    if len(keys) == 1:
        copy[keys[0]] = value
    else:
        below = copy.get(keys[0])
        below = below if isinstance(below, Mapping) else {}
        copy[keys[0]] = _with_value(below, keys[1:], value)
    return copy


def _nearest(key: str, known: Mapping[str, Any] | list[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Allowed: {', '.join(known)}"


def _fault(error: ValidationError, kind: type[BaseModel]) -> str:
    problems = error.errors(include_url=False)
    first = problems[0]
    location = [str(key) for key in first["loc"]]
    path = ".".join(location)
    rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        part: type[BaseModel] | None = field_paths(kind).get(".".join(location[:-1]), kind)
        allowed = list(part.model_fields) if part else []
        return f"unknown key {path!r}; {_nearest(location[-1], allowed)}{rest}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = first.get("input")
    shown = "" if isinstance(given, dict) or given is None else f" (given: {str(given)[:60]!r})"
    return (f"{path}: " if path else "") + " ".join(message.split()) + shown + rest
