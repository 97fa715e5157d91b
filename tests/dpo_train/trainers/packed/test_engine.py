"""A packed trial gets the numbers that TRL would get, with any other trials beside it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_train import data, export, model, reference, sample
from dpo_train.config import OptimConfig, TrainConfig
from dpo_train.errors import Diverged, InputError, OutOfMemory
from dpo_train.memory import MemoryBounds, own_bytes
from dpo_train.scoring import logps, metrics
from dpo_train.trainers.open import open_session
from dpo_train.trainers.packed import adapters, engine, forward
from dpo_train.trainers.packed.engine import PackedEngine
from dpo_train.trainers.packed.losses import LOSSES
from dpo_train.trainers.packed.rows import collate, lay_out
from dpo_train.trainers.packed.trial import PackedTrial, learning_rate_factor
from tests.helpers.packed_trial import config
from tests.helpers.training import (
    curve,
    goes_on_from_between_two_reports,
    goes_on_to_the_last_bit,
)


@pytest.fixture
def pack(small_config: TrainConfig, small_prepared: Path) -> PackedEngine:
    return PackedEngine(small_config.model, small_prepared, "cpu")


def train(pack: PackedEngine, trial: PackedTrial, steps: int, *others: PackedTrial) -> None:
    """Trains `trial` for a number of steps, and the others with it as long as they have pairs."""
    while trial.step < steps:
        running = [t for t in (trial, *others) if t.pairs_seen < t.pairs_total]
        pack.step(running)


CASES: dict[str, dict[str, Any]] = {
    **{f"loss {name}": {"dpo__loss": name} for name in LOSSES},
    "two losses": {"dpo__loss": ["sigmoid", "sft"], "dpo__loss_weights": [1.0, 0.2]},
    "cosine over two epochs": {"optim__schedule": "cosine", "optim__epochs": 2},
    "linear, decay, a small norm": {
        "optim__schedule": "linear",
        "optim__weight_decay": 0.1,
        "optim__max_grad_norm": 0.1,
    },
    "another AdamW": {"optim__beta1": 0.5, "optim__beta2": 0.9, "optim__epsilon": 1e-4},
    "another seed, rank and size of batch": {
        "seed": 7,
        "lora": {"r": 8, "alpha": 8},
        "optim__batch_size": 12,
    },
    "some layers": {"lora": {"r": 4, "alpha": 16, "target_modules": ["q_proj", "v_proj"]}},
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_losses_and_log_ratios_equal_those_of_trl_with_peft(
    small_config: TrainConfig, small_prepared: Path, changes: dict[str, Any]
) -> None:
    name = changes.get("dpo__loss")
    smoothing = 0.1 if name in ("robust", "exo_pair") else 0.0
    trial = config(small_config, dpo__label_smoothing=smoothing, eval_every_pairs=12, **changes)
    ours = curve(trial, small_prepared)
    theirs = curve(trial.model_copy(update={"trainer": "trl"}), small_prepared)
    for own, other in zip(ours, theirs, strict=True):
        for name in ("pairs_seen", "step", "epoch"):
            assert own[name] == other[name]
        for name in ("train/loss", "eval/loss", "eval/nll"):
            assert own[name] == pytest.approx(other[name], rel=1e-4), name
        # Differences of float32 sums over tokens, which round more.
        for name in ("eval/margin", "eval/chosen_shift", "eval/rejected_shift"):
            assert own[name] == pytest.approx(other[name], rel=1e-3, abs=2e-5), name


def test_neighbours_joining_and_leaving_change_nothing(
    small_config: TrainConfig, pack: PackedEngine
) -> None:
    requested = config(small_config, optim__epochs=4, optim__learning_rate=2e-3, seed=3)
    alone = pack.join(requested)
    train(pack, alone, 20)
    others = [
        {"lora": {"r": 16, "alpha": 8}, "optim__batch_size": 2, "dpo__loss": "ipo"},
        {"dpo__beta": 0.5, "optim__batch_size": 5, "optim__schedule": "cosine"},
        {"lora": {"r": 2, "alpha": 64, "target_modules": ["o_proj"]}, "optim__batch_size": 16},
    ]
    first, second, third = (
        pack.join(config(small_config, optim__epochs=9, seed=n, **changes))
        for n, changes in enumerate(others)
    )
    trial = pack.join(requested)
    train(pack, trial, 3, first)
    train(pack, trial, 9, first, second, third)
    train(pack, trial, 12, third)
    train(pack, trial, 20, second, first)
    difference = (trial.own_weights - alone.own_weights).abs().max()
    change = (alone.own_weights - adapters.initial(alone.own_layout, 3)).abs().max()
    assert difference < 1e-5 < 1e-3 < change


def test_a_neighbour_that_is_nan_changes_no_bit(
    small_config: TrainConfig, pack: PackedEngine
) -> None:
    weights = []
    for poison in (1.0, float("nan")):
        trial = pack.join(config(small_config, optim__epochs=3))
        before = pack.join(config(small_config, optim__epochs=3, seed=1))
        after = pack.join(config(small_config, optim__epochs=3, seed=2, lora={"r": 8}))
        together = [before, trial, after]
        for _ in range(5):
            pack.step(together)
        before.weights.mul_(poison)
        after.weights.mul_(poison)
        for _ in range(5):
            pack.step(together)
        assert trial.own_weights.isfinite().all()
        weights.append(trial.own_weights)
        assert bool(before.own_weights.isnan().all()) == (poison != 1.0)
        held_out = pack.evaluate(together)
        assert [values is None for values in held_out] == [poison != 1.0, False, poison != 1.0]
        if poison != 1.0:
            with pytest.raises(Diverged, match=r"loss is nan at step 6, learning rate 0.0005"):
                before.report(held_out[0], 0.0)
    assert torch.equal(*weights)


def test_a_prompt_computed_once_gives_the_same_log_probs(
    pack: PackedEngine, small_prepared: Path
) -> None:
    rows = reference.prepare(small_prepared).split("eval")[:]
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    with torch.no_grad():
        once, twice = (
            forward.completion_logps(
                pack.base,
                collate([[lay_out(*(rows[n][i] for n in names), shared) for i in range(5)]], "cpu"),
            )
            for shared in (True, False)
        )
    assert once == pytest.approx(twice.numpy(), abs=1e-4)
    assert once.numpy() == pytest.approx(pack.eval.reference[:5], abs=1e-4)


def test_a_saved_and_restored_trial_goes_on_to_the_last_bit(
    small_config: TrainConfig, small_prepared: Path, tmp_path: Path
) -> None:
    trial = config(small_config, optim__epochs=2)
    goes_on_to_the_last_bit(trial, small_prepared, tmp_path)


def test_a_trial_saved_between_two_reports_goes_on_to_the_last_bit(
    small_config: TrainConfig, small_prepared: Path, tmp_path: Path
) -> None:
    trial = config(small_config, optim__batch_size=4, optim__epochs=2, eval_every_pairs=40)
    goes_on_from_between_two_reports(trial, small_prepared, tmp_path)


def test_passes_have_no_more_tokens_than_fit_into_memory_and_the_same_numbers(
    small_config: TrainConfig, pack: PackedEngine, small_prepared: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    configs = [config(small_config, seed=seed, optim__batch_size=8) for seed in range(2)]
    trials = [pack.join(each) for each in configs]
    train(pack, trials[0], 4, trials[1])
    free = MemoryBounds(host_bytes=own_bytes() + 40_000_000)
    little = PackedEngine(small_config.model, small_prepared, "cpu", free)
    again = [little.join(each) for each in configs]
    most = little.tokens_per_pass(again)
    assert little.train.longest <= most < pack.tokens_per_pass(trials) == 4096
    seen = []

    def watched(base: Any, rows: Any) -> Any:
        seen.append(rows.ids.numel())
        return forward.completion_logps(base, rows)

    monkeypatch.setattr(engine, "completion_logps", watched)
    train(little, again[0], 4, again[1])
    assert max(seen) <= most
    little.close()
    for one, other in zip(trials, again, strict=True):
        assert (one.own_weights - other.own_weights).abs().max() < 1e-5


def test_an_export_is_a_peft_adapter_that_scores_as_the_session_did(
    small_config: TrainConfig, small_prepared: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    session = open_session(config(small_config, optim__learning_rate=5e-3), small_prepared, "cpu")
    report = session.advance().report
    session.export(tmp_path / "export")
    session.close()
    base = AutoModelForCausalLM.from_pretrained(sample.MODEL, dtype="float32")
    policy = PeftModel.from_pretrained(base, tmp_path / "export")
    data = reference.prepare(small_prepared)
    rows = data.split("eval")[:]
    scores = logps.score(policy.get_base_model(), rows, data.pad_token_id, "cpu")
    found = metrics.means(metrics.pair_values(logps.pair_logps(rows, *scores)))
    assert report["eval/drift"] > 1e-4
    assert found["margin"] == pytest.approx(report["eval/margin"], rel=1e-4, abs=1e-5)
    assert json.loads((tmp_path / "export/manifest.json").read_text())["kind"] == "adapter"
    loaded, _ = export.load(tmp_path / "export", "cpu")  # its base is the one of the closed engine
    assert loaded.peft_config["default"].base_model_name_or_path == "sample"
    loaded.unload()


@pytest.mark.parametrize(
    "lack",
    [torch.OutOfMemoryError("out of memory"), RuntimeError("DefaultCPUAllocator: no memory")],
    ids=["gpu", "cpu"],
)
def test_memory_that_runs_out_lowers_the_tokens_of_a_pass_and_changes_no_number(
    small_config: TrainConfig, pack: PackedEngine, monkeypatch: pytest.MonkeyPatch, lack: Exception
) -> None:
    configs = [config(small_config, seed=seed, optim__batch_size=4) for seed in range(3)]
    whole = [pack.join(each) for each in configs]
    train(pack, whole[0], 10, *whole[1:])
    fits = 600

    def scarce(base: Any, rows: Any) -> Any:
        logps = forward.completion_logps(base, rows)
        if rows.ids.numel() > fits:  # in the middle of a pass, after its forward
            raise lack
        return logps

    monkeypatch.setattr(engine, "completion_logps", scarce)
    again = [pack.join(each) for each in configs]
    train(pack, again[0], 10, *again[1:])
    assert pack.tokens_per_pass(again) < 2 * fits
    for one, other in zip(whole, again, strict=True):
        assert (one.own_weights - other.own_weights).abs().max() < 1e-5
    for found, expected in zip(pack.evaluate(again), pack.evaluate(whole), strict=True):
        assert found is not None
        assert expected is not None
        assert metrics.means(found) == pytest.approx(metrics.means(expected), rel=1e-3)
    fits = 0
    with pytest.raises(OutOfMemory, match="out of memory with one pair at once"):
        train(pack, pack.join(configs[0]), 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_passes_compute_in_bfloat16_and_updates_in_float32(
    small_config: TrainConfig, small_prepared: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, dtype: str,
) -> None:  # fmt: skip
    """The CPU's autocast stands in for the GPU's: the same code runs on another device."""
    exact = curve(config(small_config), small_prepared)
    requested = config(small_config, model__dtype=dtype)
    planned = reference.plan(requested, data.load_pairs(requested.data), tmp_path, "cpu")
    monkeypatch.setitem(forward.AUTOCAST, "cpu", torch.bfloat16)
    rough = PackedEngine(requested.model, planned, "cpu")
    trial = rough.join(requested)
    while trial.pairs_seen < trial.pairs_total:
        rough.step([trial])
    (found,) = rough.evaluate([trial])
    rough.close()
    model.forget_base()
    assert found is not None
    assert trial.weights.dtype == torch.float32
    assert found["nll"].mean() == pytest.approx(exact[-1]["eval/nll"], rel=0.02)
    assert found["nll"].mean() != exact[-1]["eval/nll"]


@pytest.mark.parametrize("schedule", ["constant", "constant_with_warmup", "linear", "cosine"])
def test_schedules_equal_those_of_transformers(schedule: Any) -> None:
    from transformers import get_scheduler

    optim = OptimConfig(schedule=schedule, batch_size=3, warmup_pairs=10, learning_rate=1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_scheduler(schedule, optimizer, num_warmup_steps=4, num_training_steps=20)
    ours = learning_rate_factor(optim, 20)
    for step in range(20):
        assert ours(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_a_model_that_computes_something_else_is_refused(
    small_config: TrainConfig,
    small_prepared: Path,
    pack: PackedEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = pack.base.get_output_embeddings()
    pack.close()
    capped = torch.nn.Linear.forward

    class Softcap(torch.nn.Module):
        weight, bias = layer.weight * 1.1, None

        def forward(self, x: Any) -> Any:
            return capped(layer, x)

    monkeypatch.setattr(type(pack.base), "get_output_embeddings", lambda _: Softcap())
    with pytest.raises(InputError, match=r"packed can't train this model .* type `trainer: trl`"):
        PackedEngine(small_config.model, small_prepared, "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": None}, "trainer: packed trains adapters over one frozen base; add `lora: {}`"),
        ({"dpo__loss": "aot"}, "dpo.loss: .*packed` can't train aot .* type `trainer: trl`"),
        ({"dpo__loss": ["sigmoid", "aot_unpaired"]}, "packed` can't train aot_unpaired"),
    ],
)
def test_what_is_not_packed_is_refused_by_name(
    small_config: TrainConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        config(small_config, **changes)
