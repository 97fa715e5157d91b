"""Scenarios with winners and a Hub on loopback, each in a process of its own.

`in_child` starts the process, because the client reads HF_ENDPOINT once, on import. Nothing here
may import the client, or the fixtures that set it offline, before `served` has set the Hub.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from dpo_train import sample
from tests.helpers.finished_runs import make_run
from tests.helpers.hub_uploads import Fault, WritableHub

ROOT = Path(__file__).parents[2]
CARD = "---\nlicense: apache-2.0\n---\n# A tiny model\n"
LORA = {"r": 4, "alpha": 8}
QUESTIONS = ("Is it true that goldfish forget everything in seconds?", "Where do you live?")
FAULTS: dict[str, list[Fault]] = {
    "401 at creation": [Fault("POST", "/repos/create", 401)],
    "403 at preupload": [Fault("POST", "/preupload/", 403)],
    "409 at the commit": [Fault("POST", "/commit/", 409)],
    "412 at the commit": [Fault("POST", "/commit/", 412)],
    "429 at the commit, once": [Fault("POST", "/commit/", 429, {"Retry-After": "1"})],
    "500 at the object, once": [Fault("PUT", "/lfs/", 500)],
    "503 at the commit, once": [Fault("POST", "/commit/", 503)],
    "503 at the commit, always": [Fault("POST", "/commit/", 503, times=3)],
    "no network at the batch, once": [Fault("POST", "/objects/batch", 0)],
    "no network at the commit, always": [Fault("POST", "/commit/", 0, times=3)],
    "the commit's answer is lost": [Fault("POST", "/commit/", 0, is_after=True)],
}


def served(root: Path, **options: Any) -> WritableHub:
    """Return a Hub with a base model and its card. This process's client uses no other Hub."""
    base = root / "base"
    shutil.copytree(sample.MODEL, base)
    (base / "README.md").write_text(CARD)
    hub = WritableHub({"models/acme/base": base}, **options)
    os.environ["HF_ENDPOINT"] = hub.url
    os.environ["HF_TOKEN"] = str(hub.token)
    return hub


def round_trips(root: Path) -> dict[str, Any]:
    """Push each form of winner, load it from the Hub, and compare the answers of both."""
    outcomes: dict[str, Any] = {}
    with served(root) as hub:
        from tune import push

        adapter = make_run(root, "adapter", lora=LORA, model={"id": "acme/base"})
        # This run has data on this machine, and a trial whose error names a path.
        full = make_run(root, "full", model={"id": str(root / "base")}, data=_own_rows(root))
        (record,) = (full / "trials").glob("*-001.json")
        wrong = json.loads(record.read_text()) | {"error": f"OSError: no {root}/x on host"}
        results = json.loads((full / "results.json").read_text())
        results["trials"][1] = wrong
        (full / "results.json").write_text(json.dumps(results))
        for name, run, changes in (
            ("full", full, {"dtype": "float32", "license": "apache-2.0"}),
            ("half", full, {"license": "apache-2.0"}),
            ("adapter", adapter, {}),
            ("merged", adapter, {"merged": True, "dtype": "float32"}),
        ):
            before = len(hub.requests)
            pushed = push(run, repo=f"team/{name}", tag="v1", **changes)
            routes = Counter(_route(request.path) for request in hub.requests[before:])
            outcomes[name] = {
                "requests": routes,
                "files": {path: len(content) for path, content in hub.files(pushed.repo).items()},
                "ours": _answers(run / "winner", "bfloat16" if name == "half" else "float32"),
                "theirs": _answers(pushed.repo, None, pushed.commit),
                "served": _served(f"{pushed.repo}@{pushed.commit}"),
                "tags": hub.repositories[f"models/{pushed.repo}"].tags,
                "commit": pushed.commit,
            }
        repository = hub.files("team/adapter")
        outcomes["adapter"]["base"] = json.loads(repository["adapter_config.json"])[
            "base_model_name_or_path"
        ]
        outcomes["commits"] = hub.commits
        outcomes["card"] = hub.files("team/full")["README.md"].decode()
        repositories = {name: hub.files(f"team/{name}") for name in ("full", "adapter")}
        outcomes["traces"] = _traces(
            {f"{repo}/{path}": text for repo, files in repositories.items()
             for path, text in files.items()}, root,
        )  # fmt: skip
        # After an adapter a merged winner is pushed: the adapter's files are removed.
        push(adapter, repo="team/adapter", merged=True)
        outcomes["files after merging"] = sorted(hub.files("team/adapter"))
    return outcomes


def _own_rows(root: Path) -> dict[str, Any]:
    rows = root / "private rows" / "pairs.jsonl"
    rows.parent.mkdir()
    rows.write_text("\n".join(sample.PAIRS.read_text().splitlines()[:60]))
    return {"id": str(rows)}


def _traces(files: dict[str, bytes], root: Path) -> list[str]:
    """Return names of this machine that occur in public files."""
    names = [re.escape(str(root)), re.escape(f"{Path.home()}/"), rf"\b{os.uname().nodename}\b",
             os.environ["HF_TOKEN"], "127.0.0.1"]  # fmt: skip
    texts = {path: text.decode(errors="replace") for path, text in files.items()}
    # The tokenizer's vocabulary is the base's, and plotly.js in the report is not ours.
    texts = {path: re.sub("(?s)<script>.*?</script>", "", text) for path, text in texts.items()}
    texts = {path: text for path, text in texts.items() if path.endswith((".md", ".yaml", ".html"))
            or (path.endswith(".json") and not path.endswith("tokenizer.json"))}  # fmt: skip
    return [f"{path}: {name}" for path in texts for name in names if re.search(name, texts[path])]


def _route(path: str) -> str:
    path = re.sub(r"/team/\w+|[0-9a-f]{40,64}|\?.*", "", path)
    return path.replace("/resolve//", "/resolve/")


def _served(source: str) -> list[list[int]]:
    """Return greedy answers of our own server, which loads `source` like `python -m serve`."""
    import queue

    from serve import model_source, models
    from serve.engine import Chunk, GenerationRequest
    from serve.sampling_params import SamplingParams

    (needed,) = model_source.describe_memory([source], 2, 256)
    assert "weights 0.00" in needed
    served = next(iter(models.load([source], 2, 256, 9).values()))
    found = []
    for question in QUESTIONS:
        prompt = served.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        chunks: queue.Queue[Chunk] = queue.Queue()
        answer = GenerationRequest(
            prompt, SamplingParams(40, temperature=0.0), chunks.put, served.adapter
        )
        served.engine.submit(answer)
        while chunks.get().finish_reason is None:
            pass
        found.append([*prompt, *answer.output_ids])
    served.engine.close()
    return found


def _answers(model: Any, dtype: str | None, revision: str | None = None) -> list[list[int]]:
    """Return greedy answers of transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    at = {"revision": revision} if revision else {}
    wanted = {"dtype": getattr(torch, dtype)} if dtype else {}
    # For an adapter's repository transformers uses `revision` for the base.
    is_adapter = str(model).endswith("/adapter")
    where = {"adapter_kwargs": at} if is_adapter else at
    policy: Any = AutoModelForCausalLM.from_pretrained(model, **where, **wanted)
    tokenizer: Any = AutoTokenizer.from_pretrained(model, **at)
    found = []
    for question in QUESTIONS:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True, return_dict=True, return_tensors="pt",
        )  # fmt: skip
        output = policy.generate(**inputs, do_sample=False, max_new_tokens=40)
        found.append(output[0].tolist())
    return found


def comparisons(root: Path) -> dict[str, Any]:
    """Push with `when: improved`: the first winner, then only better ones on the same pairs."""
    with served(root) as hub:
        from tune.config.load import load_search
        from tune.publish.push import push_if_configured
        from tune.run_folder.results import load_results

        wanted = {"when": "improved", "repo": "acme/best", "private": False,
                  "license": "apache-2.0"}  # fmt: skip
        ours = _own_rows(root)  # a local dataset is redacted in the card, and compared all the same
        weak = {"optim": {"learning_rate": 1e-12}}
        made = {
            "weak": make_run(root, "weak", hub=wanted, data=ours, **weak),
            "strong": make_run(root, "strong", hub=wanted, data=ours),
            "weak again": make_run(root, "weaker", hub=wanted, data=ours, **weak),
            "of other pairs": make_run(root, "other", hub=wanted, data={**ours, "split_seed": 1}),
        }
        outcomes: dict[str, Any] = {}
        for name, run in made.items():
            results = load_results(run)
            assert results.winner is not None
            before = len(hub.commits)
            after = push_if_configured(results, load_search(run / "search.yaml"))
            outcomes[name] = {
                "accuracy": results.winner.test.metrics["accuracy"],
                "commits": len(hub.commits) - before,
                "noted": after.published is not None and not after.published.error,
            }
        outcomes["is private"] = hub.repositories["models/acme/best"].private
    return outcomes


def with_xet(root: Path) -> dict[str, Any]:
    """Push the weights to xet's store, a folder, and the other files in the commit."""
    store = root / "cas"
    with served(root, xet=store) as hub:
        from tune import push

        run = make_run(root, "full")
        push(run, repo="acme/xet", dtype="float32")
        return {
            "stored": sum(path.stat().st_size for path in store.rglob("*") if path.is_file()),
            "weights": (run / "winner" / "model.safetensors").stat().st_size,
            "files": sorted(hub.files("acme/xet")),
            "puts": sum(request.method == "PUT" for request in hub.requests),
            "commits": len(hub.commits),
        }


def failures(root: Path) -> dict[str, Any]:
    """Push a winner while one thing goes wrong, then again without a fault, for each fault.

    The waits between tries are left out.
    """
    outcomes: dict[str, Any] = {}
    with served(root) as hub, patch("time.sleep"):
        from tune import push
        from tune.errors import PushFailed

        run = make_run(root, "full")
        weights = (run / "winner" / "model.safetensors").read_bytes()
        for number, (name, faults) in enumerate(FAULTS.items()):
            repo = f"acme/case-{number}"
            hub.objects.clear()
            hub.faults.extend(faults)
            commits, error = len(hub.commits), ""
            try:
                push(run, repo=repo)
            except PushFailed as failed:
                error = str(failed)
            stored = len(hub.objects)
            hub.faults.clear()
            before = len(hub.requests)
            push(run, repo=repo)
            puts = sum(request.method == "PUT" for request in hub.requests[before:])
            outcomes[name] = {
                "error": error,
                "stored": stored,
                "put again": puts,
                "commits": len(hub.commits) - commits,
                "is whole": "README.md" in hub.files(repo),
            }
        outcomes["winner"] = (run / "winner" / "model.safetensors").read_bytes() == weights
    return outcomes


def refusals(root: Path) -> dict[str, str]:
    """Return the refusals that stop a search before it begins."""
    with served(root) as hub:
        from dpo_train.config_base import parse
        from dpo_train.errors import InputError
        from tune.config.schema import SearchConfig
        from tune.publish.push import check

        hub.repositories["models/acme/public"] = hub.repositories["models/acme/base"]
        readers = {"role": "read"}
        scoped = {"entity": {"name": "acme"}, "permissions": ["repo.content.read"]}
        narrow = {"role": "fineGrained", "fineGrained": {"scoped": [scoped]}}
        writing = {"entity": {"name": "acme"}, "permissions": ["repo.write"]}
        wide = {"role": "fineGrained", "fineGrained": {"scoped": [writing]}}
        cases: dict[str, dict[str, Any]] = {
            "right": {},
            "fine-grained": {"account": wide},
            "token may read": {"account": readers},
            "fine-grained may read": {"account": narrow},
            "another's": {"repo": "someone/model"},
            "public": {"repo": "acme/public"},
            "name": {"repo": "acme/a--b"},
            "wrong token": {"token": "hf_wrong"},
            "no answer": {"fault": Fault("GET", "/api/whoami-v2", 0, times=3)},
            "no licence": {"data": {"id": "acme/none"}},
            "two licences": {"hub": {}, "data": {"id": "acme/other"}},
        }
        other = root / "other"
        other.mkdir()
        (other / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
        (other / "train.jsonl").write_text("{}\n")
        outcomes = {}
        right = os.environ["HF_TOKEN"]
        for name, case in cases.items():
            hub.account = case.get("account", {"role": "write"})
            os.environ["HF_TOKEN"] = case.get("token", right)
            if "fault" in case:
                hub.faults.append(case["fault"])
            wanted = {"when": "always", "repo": case.get("repo", "acme/new")}
            content = {"name": "x", "trials": 1, "hub": wanted, "model": {"id": "acme/base"}}
            if name == "two licences":
                content["data"] = {"id": str(other)}
            if name == "no licence":
                (root / "rows.jsonl").write_text("{}\n")
                content["data"] = {"id": str(root / "rows.jsonl")}
            try:
                outcomes[name] = check(parse(SearchConfig, content, {}, "x.yaml"))
            except InputError as error:
                outcomes[name] = f"refused: {error}"
    return outcomes


def in_child(task: Callable[[Path], Any], root: Path, **changes: str) -> Any:
    """Run a function of this file in a process whose client knows no Hub but ours."""
    mine = {k: v for k, v in os.environ.items() if not re.match("HF_|HUGGING|.*_proxy$", k, re.I)}
    ours = {"HF_HOME": str(root / "hf"), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    code = f"import json, sys, tests.helpers.publish_scenarios as t; from pathlib import Path; \
print(json.dumps(t.{task.__name__}(Path(sys.argv[1]))))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)],
        cwd=ROOT, env={**mine, **ours, **changes}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
