"""Pushing the winner with the real client, unpatched, to `hub_uploads.WritableHub`."""

import re
from pathlib import Path

import pytest

from tests.conftest import Run, Start
from tests.helpers.hub_uploads import Fault, WritableHub
from tests.helpers.publish_scenarios import (
    FAULTS,
    comparisons,
    failures,
    in_child,
    refusals,
    round_trips,
    with_xet,
)
from tests.helpers.simulated_search import wait_until
from tune import load_results
from tune.__main__ import main


@pytest.mark.slow
def test_what_is_loaded_back_answers_as_the_winner_does(tmp_path: Path) -> None:
    outcomes = in_child(round_trips, tmp_path)
    for name in ("full", "half", "adapter", "merged"):
        assert outcomes[name]["theirs"] == outcomes[name]["ours"], name
        if name != "half":  # a server on a CPU always computes in float32
            assert outcomes[name]["served"] == outcomes[name]["ours"], name
        assert outcomes[name]["tags"] == {"v1": outcomes[name]["commit"]}
        files = set(outcomes[name]["files"])
        assert {"README.md", "search.yaml", "results.json", "report.html"} <= files
        assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= files
        assert not [path for path in files if path.endswith((".bin", ".pt", ".pkl"))]
        assert outcomes[name]["requests"]["/api/models/commit/main"] == 1
    assert {"model.safetensors", "generation_config.json"} <= set(outcomes["full"]["files"])
    assert {"adapter_model.safetensors", "adapter_config.json"} <= set(outcomes["adapter"]["files"])
    assert "model.safetensors" not in outcomes["adapter"]["files"]
    assert outcomes["adapter"]["base"] == "acme/base"
    half, full = (outcomes[name]["files"]["model.safetensors"] for name in ("half", "full"))
    assert half < 0.6 * full
    (first, *_) = outcomes["commits"]
    assert re.fullmatch(r"Winner of full, trial \w{6}-00[01]", first["summary"])
    assert re.match(r"eval/accuracy [01]\.\d+ on held-out pairs, ", first["description"])
    assert outcomes["traces"] == []
    assert_true_card(outcomes["card"])
    assert "adapter_model.safetensors" not in outcomes["files after merging"]
    assert "model.safetensors" in outcomes["files after merging"]


def assert_true_card(text: str) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard(text)
    front = card.data.to_dict()
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "transformers"
    assert {"dpo", "trl", "ray-tune"} <= set(front["tags"])
    numbers = {result.metric_type: result for result in card.data.eval_results}
    assert {"ranking", "accuracy", "drift"} <= numbers.keys()
    assert numbers["accuracy"].dataset_args.keys() == {"key", "pairs"}
    for phrase in (
        "# full\n",
        "On 10 test pairs that the search never used",
        "| `dpo.beta` | uniform 0.05 to 0.5 |",
        "rank 1 of 2",
        "40 train, 10 eval, 10 test",
        "2 CPU cores, no GPU",
        "trl 1.",
        'pipeline("text-generation", "team/full")',
        "## Limits",
    ):
        assert phrase in text, phrase


@pytest.mark.slow
def test_with_when_improved_only_an_improvement_is_pushed(tmp_path: Path) -> None:
    outcomes = in_child(comparisons, tmp_path)
    assert outcomes.pop("is private") is False
    assert outcomes["strong"]["accuracy"] > outcomes["weak"]["accuracy"]
    pushed = {name for name, what in outcomes.items() if what["commits"] == 1 and what["noted"]}
    assert pushed == {"weak", "strong"}
    assert {what["commits"] for name, what in outcomes.items() if name not in pushed} == {0}


@pytest.mark.slow
def test_weights_go_through_xet_where_the_hub_has_it(tmp_path: Path) -> None:
    outcome = in_child(with_xet, tmp_path, HF_HUB_DISABLE_XET="0")
    assert outcome["stored"] > 0.5 * outcome["weights"]  # it compresses
    assert outcome["puts"] == 0
    assert outcome["commits"] == 1
    assert {"model.safetensors", "README.md"} <= set(outcome["files"])


YAML = """
data: {limit: 60}
optim: {learning_rate: 2e-3}
eval_every_pairs: 40
stopping: {name: none}
space: {dpo.beta: {uniform: [0.1, 0.2]}}
trials: 1
resources: {at_once: 1}
wandb: {mode: disabled}
hub: {when: improved, repo: acme/won}
"""


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_a_search_pushes_its_winner_and_goes_on_with_that_after_a_refusal_or_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dpo_tune: Run, start: Start,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "x.yaml").write_text(YAML)
    with WritableHub({}) as hub:
        for name, value in {"HF_ENDPOINT": hub.url, "HF_TOKEN": str(hub.token),
                            "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0",
                            "HF_HUB_DISABLE_XET": "1"}.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        doctor = dpo_tune("doctor", "x.yaml")
        assert "push         acme/won: acme may write; the push will create it" in doctor.stdout
        hub.faults.append(Fault("POST", "/preupload/", 403))
        refused = dpo_tune("run", "x.yaml")
        assert refused.returncode == 3, refused.stderr
        assert "not pushed: acme/won: the token may not write there (403)" in refused.stderr
        assert re.search(r"type: .* push runs/x --repo acme/won", refused.stderr)
        again = dpo_tune("run", "x.yaml")
        assert again.returncode == 0, again.stderr
        assert len(hub.commits) == 1
        assert load_results(tmp_path / "runs/x").published.url in again.stdout
        assert "README.md" in hub.files("acme/won")

        hub.objects.clear()
        hub.faults.append(Fault("POST", "/commit/", 0, times=9))
        process = start("push", "x", "--repo", "acme/killed")
        wait_until(lambda: any("/killed/commit/" in r.path for r in [*hub.requests]), process)
        process.kill()
        process.communicate()
        hub.faults.clear()
        before = len(hub.requests)
        assert dpo_tune("push", "x", "--repo", "acme/killed").returncode == 0
        assert "PUT" not in {request.method for request in hub.requests[before:]}
        assert hub.files("acme/killed").keys() == hub.files("acme/won").keys()
    written = dpo_tune("push", "x", "--to", tmp_path / "seen", "--repo", "acme/won")
    assert written.returncode == 0, written.stderr
    seen = {path.name: path.read_bytes() for path in (tmp_path / "seen").iterdir()}
    assert seen == {k: v for k, v in hub.files("acme/won").items() if k != ".gitattributes"}
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (("--to", tmp_path / "seen"), "is not an empty folder; name a new one"),
        (("--repo", "won"), "push: hub.repo: 'won' is not owner/name; type `your-name/its-name`"),
        (("--repo", "acme/won", "--dtype", "float16"), "push: hub.dtype: must be one of bfloat16,"),
        (("--to", tmp_path / "new", "--license", "No!"), "push: hub.license: 'No!' can't be the"),
    ):
        assert main(["push", "x", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.slow
def test_a_failed_push_loses_nothing_and_sends_nothing_twice(tmp_path: Path) -> None:
    outcomes = in_child(failures, tmp_path)
    assert outcomes.pop("winner")
    for name, what in outcomes.items():
        assert what["is whole"], name
        assert what["commits"] == 1, name
        assert what["put again"] == (0 if what["stored"] else 1), name
        if what["error"]:
            assert re.search(
                r"to try again type: .*dpo-tune push \S+/full --repo acme/", what["error"]
            )
            assert "\n" not in what["error"]
    passed = {name for name, what in outcomes.items() if not what["error"]}
    assert passed == {name for name in FAULTS if "once" in name or "lost" in name}
    for status, message in (
        ("401 at", "does not accept the login (401); type `"),
        ("403 at", "may not write there (403)"),
        ("409 at", "something else there already has this name (409)"),
        ("412 at", "someone else changed it in the meantime (412)"),
        ("503 at the commit, always", "the Hub failed (503)"),
        ("no network at the commit, always", "can't be reached, or the connection"),
    ):
        (name,) = (name for name in outcomes if name.startswith(status) and outcomes[name]["error"])
        assert message in outcomes[name]["error"]


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_a_search_that_could_not_push_its_winner_is_stopped_before_it_begins(
    tmp_path: Path,
) -> None:
    outcomes = in_child(refusals, tmp_path)
    will_create = "acme/new: acme may write; the push will create it as a private repository"
    assert outcomes.pop("right") == will_create
    assert outcomes.pop("fine-grained") == will_create
    messages = {
        "token may read": "the token 'test' may only read",
        "fine-grained may read": "may not write to acme/new; give it `repo.write` for acme",
        "another's": "acme can't write to 'someone', only to acme, team; type `--repo acme/",
        "public": "acme/public is public; type `--public`",
        "name": "Cannot have -- or .. in repo_id",
        "wrong token": "does not accept the login (401); type `",
        "no answer": "the Hub can't be reached",
        "no licence": "the dataset 'rows.jsonl' states none; say under which licence",
        "two licences": "'acme/base' states apache-2.0, the dataset 'other' states cc-by-4.0",
    }
    assert outcomes.keys() == messages.keys()
    for name, message in messages.items():
        assert outcomes[name].startswith("refused: hub."), outcomes[name]
        assert message in outcomes[name]
        assert "\n" not in outcomes[name]
        assert "http" not in outcomes[name]  # the client's own texts are full of addresses
        assert str(tmp_path) not in outcomes[name]
