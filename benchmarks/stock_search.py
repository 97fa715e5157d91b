"""B1: the search as Ray's documentation would have it written, with nothing of this project.

A function trainable builds a stock DPOTrainer with its own reference model in every trial and
reports each evaluation. ASHA stops weak trials. Reads its request as JSON from stdin.
"""

import json
import os
import sys
import time
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def train_trial(config: dict[str, Any]) -> None:
    """Train one trial as a function trainable."""
    import tempfile

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from ray import tune
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(1)

    class Report(TrainerCallback):
        """Reports each evaluation to Tune and times the steps."""

        steps = evaluations = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            Report.steps += time.perf_counter() - self.began
            self.evaluating = time.perf_counter()

        def on_evaluate(self, args: Any, state: Any, *_: Any, metrics: Any, **__: Any) -> None:
            Report.evaluations += time.perf_counter() - self.evaluating
            tune.report(
                {
                    "pairs_seen": state.global_step * args.train_batch_size,
                    "margin": metrics["eval_rewards/margins"] / config["beta"],
                    "step_seconds": Report.steps,
                    "evaluation_seconds": Report.evaluations,
                }
            )

    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    lora = config["lora"] and {**config["lora"], "target_modules": "all-linear"}
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(config["model"], dtype="float32"),
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=config["batch_size"],
            per_device_eval_batch_size=32,
            learning_rate=config["learning_rate"],
            num_train_epochs=config["epochs"],
            beta=config["beta"],
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=-(-config["warmup_pairs"] // config["batch_size"]),
            eval_strategy="steps",
            eval_steps=config["eval_every_pairs"] // config["batch_size"],
            activation_checkpointing=False,
            save_strategy="no",
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            report_to=[],
        ),
        train_dataset=Dataset.from_list(config["rows"]["train"]),
        eval_dataset=Dataset.from_list(config["rows"]["eval"]),
        processing_class=tokenizer,
        peft_config=lora and LoraConfig(task_type="CAUSAL_LM", **lora),
        callbacks=[Report()],
    )
    trainer.train()


def search(request: dict[str, Any]) -> dict[str, Any]:
    """Run the search and return its numbers."""
    began = time.perf_counter()
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    ray.init("local", log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_with_rows, shared=request["shared"]), {"cpu": 1}),
        param_space={"point": tune.grid_search(request["points"])},
        tune_config=tune.TuneConfig(
            metric="margin",
            mode="max",
            scheduler=ASHAScheduler(
                time_attr="pairs_seen",
                max_t=request["max_pairs"],
                grace_period=request["grace_pairs"],
                reduction_factor=request["reduction"],
            ),
        ),
        run_config=tune.RunConfig(verbose=0),
    )
    grid = tuner.fit()
    seconds = time.perf_counter() - began
    ray.shutdown()
    assert not grid.errors, grid.errors[0]
    last = [result.metrics for result in grid]
    return {
        "seconds": seconds,
        "trials": len(last),
        "pairs": sum(metrics["pairs_seen"] for metrics in last),
        "step_seconds": sum(metrics["step_seconds"] for metrics in last),
        "evaluation_seconds": sum(metrics["evaluation_seconds"] for metrics in last),
    }


def _with_rows(config: dict[str, Any], shared: dict[str, Any]) -> None:
    train_trial({**shared, **config["point"]})


if __name__ == "__main__":
    print("\n" + json.dumps(search(json.load(sys.stdin))))
