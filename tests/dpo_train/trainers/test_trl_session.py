"""The TRL session gives the numbers of a stock DPOTrainer, saves, and goes on."""

import inspect
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import trl.trainer.utils
from trl import DPOTrainer

from dpo_train import data, export, model, reference, sample
from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.config_loss import LOSSES
from dpo_train.errors import Diverged, InputError
from dpo_train.evaluation import test_split
from dpo_train.memory import MemoryBounds, give_back, own_bytes
from dpo_train.optimizers import TRANSFORMERS_NAMES
from dpo_train.scoring import logps
from dpo_train.trainers.open import open_session
from dpo_train.trainers.packed.session import _Shared
from tests.helpers.small_models import SMALL, save
from tests.helpers.training import (
    curve,
    goes_on_from_between_two_reports,
    goes_on_to_the_last_bit,
    numbers,
    stock_results,
)

ROOT = Path(__file__).parents[3]
LORA = {"r": 4, "alpha": 8}


def config(base: TrainConfig, **changes: Any) -> TrainConfig:
    defaults = {"optim.learning_rate": 5e-4, "optim.batch_size": 8, "optim.warmup_pairs": 16}
    values = {path.replace("__", "."): value for path, value in changes.items()}
    return override(base, {**defaults, **values})


CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "full, ipo": {"dpo__loss": "ipo", "dpo__beta": 0.5},
    "full, robust, decay": {
        "dpo__loss": "robust",
        "dpo__label_smoothing": 0.1,
        "optim__weight_decay": 0.1,
    },
    "full, two epochs, cosine": {
        "optim__epochs": 2,
        "optim__schedule": "cosine",
        "optim__batch_size": 16,
    },
    "full, two losses": {"dpo__loss": ["sigmoid", "sft"], "dpo__loss_weights": [1.0, 0.2]},
    "full, f-divergence": {"trl__f_divergence_type": "js_divergence"},
    "lora, alpha-divergence": {
        "lora": LORA,
        "trl__f_divergence_type": "alpha_divergence",
        "trl__f_alpha_divergence_coef": 0.3,
    },
    "full, weighted": {"trl__use_weighting": True},
    "full, adamw_8bit": {"optim__name": "adamw_8bit"},
    "full, another AdamW": {"optim__beta1": 0.5, "optim__beta2": 0.9, "optim__epsilon": 1e-4},
    "lora": {"lora": LORA},
    "lora, apo_zero": {"lora": LORA, "dpo__loss": "apo_zero"},
}


@pytest.mark.slow
def test_losses_and_log_ratios_are_those_of_a_stock_trainer(
    small_config: TrainConfig, small_prepared: Path
) -> None:
    pairs = data.load_pairs(small_config.data)
    rows = {name: [row.as_json() for row in each] for name, each in pairs.splits.items()}
    trials = {name: config(small_config, **changes) for name, changes in CASES.items()}
    cases = [
        {
            **rows,
            "model": str(sample.MODEL),
            "lora": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} if t.lora else None,
            "arguments": {
                "per_device_train_batch_size": t.optim.batch_size,
                "num_train_epochs": t.optim.epochs,
                "learning_rate": t.optim.learning_rate,
                "lr_scheduler_type": t.optim.schedule,
                "warmup_steps": 16 // t.optim.batch_size,
                "weight_decay": t.optim.weight_decay,
                "optim": TRANSFORMERS_NAMES[t.optim.name],
                "adam_beta1": t.optim.beta1,
                "adam_beta2": t.optim.beta2,
                "adam_epsilon": t.optim.epsilon,
                "loss_type": t.dpo.losses,
                "loss_weights": t.dpo.loss_weights,
                "beta": t.dpo.beta,
                "label_smoothing": t.dpo.label_smoothing,
                "seed": t.seed,
                **t.trl.model_dump(),
            },
        }
        for t in trials.values()
    ]
    for (name, trial), theirs in zip(trials.items(), stock_results(cases), strict=True):
        every_step = trial.model_copy(update={"eval_every_pairs": 1})
        ours = curve(every_step, small_prepared)
        losses = [report["train/loss"] for report in ours]
        assert losses == pytest.approx(theirs["losses"], rel=1e-4), name
        held_out, beta = theirs["eval"], trial.dpo.beta
        last = ours[-1]
        assert beta * last["eval/chosen_shift"] == pytest.approx(
            held_out["eval_rewards/chosen"], rel=1e-4, abs=1e-6
        ), name
        assert beta * last["eval/margin"] == pytest.approx(
            held_out["eval_rewards/margins"], rel=1e-4, abs=1e-6
        ), name
        assert last["eval/loss"] == pytest.approx(held_out["eval_loss"], rel=1e-4), name


def test_a_second_trial_in_a_process_has_the_first_ones_numbers(
    small_config: TrainConfig, small_prepared: Path
) -> None:
    full, lora = config(small_config), config(small_config, lora=LORA)
    first = [numbers(report) for report in curve(full, small_prepared)]
    between = [numbers(report) for report in curve(lora, small_prepared)]
    assert [numbers(report) for report in curve(full, small_prepared)] == first
    assert [numbers(report) for report in curve(lora, small_prepared)] == between
    assert first != between


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_saved_and_restored_trial_goes_on_to_the_last_bit(
    small_config: TrainConfig, small_prepared: Path, tmp_path: Path, lora: Any
) -> None:
    goes_on_to_the_last_bit(
        config(small_config, lora=lora, optim__epochs=2), small_prepared, tmp_path
    )


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_trial_saved_between_two_reports_goes_on_to_the_last_bit(
    small_config: TrainConfig, small_prepared: Path, tmp_path: Path, lora: Any
) -> None:
    trial = config(
        small_config, lora=lora, optim__batch_size=2, optim__epochs=3, eval_every_pairs=40
    )
    goes_on_from_between_two_reports(trial, small_prepared, tmp_path)


def test_less_memory_is_fewer_pairs_at_once_and_the_same_numbers(
    small_config: TrainConfig, small_prepared: Path
) -> None:
    trial = config(small_config, optim__batch_size=8)
    whole = curve(trial, small_prepared)
    give_back()
    little = MemoryBounds(host_bytes=own_bytes() + 20_000_000)
    session = open_session(trial, small_prepared, "cpu", memory=little)
    assert 1 <= session.pairs_at_once < 8
    report = session.advance().report
    session.close()
    assert report["eval/nll"] == pytest.approx(whole[0]["eval/nll"], abs=1e-6)
    one = open_session(trial, small_prepared, "cpu", memory=MemoryBounds(host_bytes=0))
    assert one.pairs_at_once == 1
    one.close()


def test_evaluations_stand_at_the_first_step_past_each_multiple_and_at_the_end(
    small_config: TrainConfig, small_prepared: Path
) -> None:
    trial = config(small_config, optim__batch_size=5, optim__epochs=2, eval_every_pairs=16)
    assert [r["pairs_seen"] for r in curve(trial, small_prepared)] == [20, 35, 50, 65, 80]


def test_a_smaller_last_batch_is_counted_as_what_it_is(
    small_config: TrainConfig, small_prepared: Path
) -> None:
    trial = config(small_config, optim__batch_size=12, optim__epochs=2, eval_every_pairs=12)
    seen = [r["pairs_seen"] for r in curve(trial, small_prepared)]
    assert seen == [12, 24, 36, 52, 64, 76, 80]


@pytest.mark.parametrize("lora", [None, LORA])
def test_an_export_scores_as_the_session_did(
    small_config: TrainConfig, small_prepared: Path, tmp_path: Path, lora: Any
) -> None:
    trial = config(small_config, lora=lora)
    session = open_session(trial, small_prepared, "cpu")
    report = session.advance().report
    session.export(tmp_path / "export")
    session.close()
    policy, tokenizer = export.load(tmp_path / "export", "cpu")
    prepared = reference.prepare(small_prepared)
    rows = prepared.split("eval")[:]
    is_adapter = hasattr(policy, "peft_config")
    inner = policy.get_base_model() if is_adapter else policy
    scores = logps.pair_logps(rows, *logps.score(inner, rows, prepared.pad_token_id, "cpu"))
    measured = test_split.metrics.means(test_split.metrics.pair_values(scores))
    assert measured["margin"] == pytest.approx(report["eval/margin"], rel=1e-4, abs=1e-5)
    assert tokenizer.chat_template
    if is_adapter:
        policy.unload()
        assert json.loads((tmp_path / "export/adapter_config.json").read_text())[
            "base_model_name_or_path"
        ] == "sample"  # fmt: skip


def test_a_trial_leaves_the_base_as_it_was(small_config: TrainConfig, small_prepared: Path) -> None:
    warm = model.load_base(small_config.model, "cpu")
    names = set(dict(warm.fresh(trained_in_full=True).named_parameters()))
    before = {name: weight.clone() for name, weight in warm.model.named_parameters()}
    curve(config(small_config), small_prepared)
    curve(config(small_config, lora=LORA), small_prepared)
    after = dict(warm.fresh(trained_in_full=True).named_parameters())
    assert set(after) == names
    assert all(torch.equal(before[name], weight) for name, weight in after.items())
    assert all(weight.requires_grad for weight in after.values())


def test_a_base_that_is_no_longer_used_is_freed(
    small_config: TrainConfig, small_prepared: Path
) -> None:
    _Shared._now = None  # an engine of an earlier test may share the base
    session = open_session(config(small_config, lora=LORA), small_prepared, "cpu")
    session.advance()
    policy = weakref.ref(model.load_base(small_config.model, "cpu").model)
    session.close()
    model.forget_base()
    assert policy() is None


def test_a_loss_that_is_no_number_ends_the_trial_with_step_and_learning_rate(
    small_config: TrainConfig, small_prepared: Path
) -> None:
    trial = config(small_config, optim__learning_rate=10, optim__schedule="constant")
    trial = override(trial, {"dpo.loss": "sppo_hard", "optim.max_grad_norm": 1e30})
    with pytest.raises(Diverged, match=r"loss is \S+ at step \d+, learning rate 10"):
        curve(trial, small_prepared)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_of_trl_trains(
    small_config: TrainConfig, small_prepared: Path, loss: str
) -> None:
    trial = config(small_config, dpo__label_smoothing=0.1, dpo__loss=loss)
    session = open_session(trial, small_prepared, "cpu")
    first = session.advance().report
    session.close()
    assert first["eval/drift"] > 0


def test_the_held_out_loss_of_sft_does_not_depend_on_how_pairs_are_batched(
    small_config: TrainConfig, small_prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = config(small_config, dpo__loss=["sigmoid", "sft"], dpo__loss_weights=[1.0, 0.2])
    losses = []
    for tokens in (100, 4096):
        monkeypatch.setitem(logps._tokens_per_batch, "cpu", tokens)
        session = open_session(trial, small_prepared, "cpu")
        losses.append(session.advance().report["eval/loss"])
        session.close()
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_no_trial_runs_the_reference(small_config: TrainConfig, small_prepared: Path) -> None:
    session = open_session(config(small_config), small_prepared, "cpu")
    assert session.reference_pairs == 0
    assert session._trainer.ref_model is None  # type: ignore[attr-defined]
    session.close()


def test_trl_still_has_the_hooks_that_we_rely_on() -> None:
    losses = inspect.getsource(DPOTrainer._compute_loss)
    assert 'inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]' in losses
    assert {"_prepare_dataset", "_precompute_ref_logps"} <= set(vars(DPOTrainer))
    heads = inspect.getsource(trl.trainer.utils)
    assert heads.count("_use_triton(") == 1
    assert "compact = _use_triton(hidden_states.device)" in heads
    found = [name for name in LOSSES if f'loss_type == "{name}"' in losses]
    assert found == list(LOSSES)
    assert losses.count("loss_type == ") == len(LOSSES)


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_model_whose_own_code_fails_in_training_is_refused(
    small_config: TrainConfig, tmp_path: Path, lora: Any
) -> None:
    """transformers 5.23 reads a field of Granite's mixture that its configuration does not have."""
    experts = transformers.GraniteMoeConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)
    folder = save(experts, tmp_path / "model")
    trial = override(small_config, {"model.id": str(folder), "data.limit": 12, "lora": lora})
    prepared = reference.plan(trial, data.load_pairs(trial.data), tmp_path / "data", "cpu")
    with pytest.raises(InputError, match=r"own code \(AttributeError: .*num_experts"):
        curve(trial, prepared)
    names = [name for name, _ in model.load_base(trial.model, "cpu").model.named_modules()]
    assert not any("lora" in name for name in names)
