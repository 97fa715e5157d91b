"""The real huggingface_hub, datasets and transformers, unpatched, against `hub_server.HubServer`.

They run in child processes of this file, because they read HF_ENDPOINT once, on import.
"""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from tests.helpers.hub_server import HubServer

TOKEN = "hf_of_the_test"
COLUMNS = ["id", "source", "system", "prompt", "chosen", "rejected"]  # as truthy-dpo-v0.1's
PAIRS = [{column: f"{column} of pair {i}" for column in COLUMNS} for i in range(7)]
MODEL, PARQUET, LINES = "models/acme/tiny", "datasets/acme/truthy", "datasets/acme/lines"


def write_model(folder: Path) -> None:
    """Write a random Qwen2 of a few kB and a byte-level BPE tokenizer with a ChatML template.

    This uses no torch or transformers: importing them would double the time of these tests.
    """
    import numpy
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir()
    end, start, stop = special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["The cat sat on the mat.", "No, it did not."], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    turn = f"{start}{{{{ m.role }}}}\n{{{{ m.content }}}}{stop}\n"
    template = f"{{% for m in messages %}}{turn}{{% endfor %}}"
    kind = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": stop, "pad_token": end}
    write_json(folder / "tokenizer_config.json", kind | {"chat_template": template})

    vocabulary, hidden, inner, heads = tokenizer.get_vocab_size(), 16, 32, 2
    sizes = {"vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": inner}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": heads, "num_key_value_heads": heads}
    kind = {"model_type": "qwen2", "dtype": "float32"}
    rest = {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True}
    write_json(folder / "config.json", kind | sizes | rest)
    layer, square = "model.layers.0", (hidden, hidden)
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    shapes |= {f"{layer}.self_attn.{name}_proj.weight": square for name in "qkvo"}
    shapes |= {f"{layer}.self_attn.{name}_proj.bias": (hidden,) for name in "qkv"}
    shapes |= {f"{layer}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
    shapes |= {f"{layer}.mlp.down_proj.weight": (hidden, inner)}
    norms = ("input", "post_attention")
    shapes |= {f"{layer}.{name}_layernorm.weight": (hidden,) for name in norms}
    random = numpy.random.default_rng(0)
    weights = {name: random.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value))


# Functions that the children run. Each result is printed as one line of JSON.


def load_all() -> dict[str, Any]:
    """Load both datasets, the tokenizer and the model by their Hub names."""
    from datasets import load_dataset
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.hub import cached_file, extract_commit_hash

    parquet, lines = (load_dataset(name, split="train") for name in ("acme/truthy", "acme/lines"))
    tokenizer = AutoTokenizer.from_pretrained("acme/tiny")
    load_model: Any = AutoModelForCausalLM.from_pretrained  # its type forgets the loading info
    model, loading = load_model("acme/tiny", output_loading_info=True)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    resolved = HfApi().resolve_revision("acme/tiny", local_files_only=HF_HUB_OFFLINE)
    return {
        "parquet": parquet.to_list(),
        "lines": lines.to_list(),
        "parquet_cache": parquet.cache_files[0]["filename"],
        "text": text,
        "decoded": tokenizer.decode(tokenizer("The cat sat")["input_ids"]),
        "logits": list(model(**tokenizer("The cat sat", return_tensors="pt")).logits.shape),
        "amiss": {name: list(keys) for name, keys in loading.items() if keys},
        "resolved": resolved.resolved,
        "config_from": extract_commit_hash(cached_file("acme/tiny", "config.json"), None),
    }


def load_missing() -> dict[str, Any]:
    """Load missing and private repositories with datasets and transformers."""
    from datasets import load_dataset
    from transformers import AutoConfig, AutoTokenizer

    attempts: dict[str, Callable[[], Any]] = {
        "dataset": lambda: load_dataset("acme/none"),
        "dataset revision": lambda: load_dataset("acme/truthy", revision="none"),
        "private dataset": lambda: load_dataset("acme/secret"),
        "model": lambda: AutoConfig.from_pretrained("acme/none"),
        "model revision": lambda: AutoConfig.from_pretrained("acme/tiny", revision="none"),
        "private model": lambda: AutoTokenizer.from_pretrained("acme/secret"),
    }
    return {name: _error_of(attempt) for name, attempt in attempts.items()}


def load_all_and_missing() -> dict[str, Any]:
    """Do both in one process, because its imports take most of the time."""
    return {"found": load_all(), "missing": load_missing()}


def ask_hub() -> dict[str, Any]:
    """Call huggingface_hub itself with the token, without it, and with a wrong one."""
    from huggingface_hub import HfApi, snapshot_download

    none, right, wrong = HfApi(token=False), HfApi(token=TOKEN), HfApi(token="hf_wrong")
    attempts: dict[str, Callable[[], Any]] = {
        "missing": lambda: none.model_info("acme/none"),
        "missing, signed in": lambda: right.model_info("acme/none"),
        "revision": lambda: none.hf_hub_download("acme/tiny", "config.json", revision="a/b"),
        "entry": lambda: none.hf_hub_download("acme/tiny", "none.json"),
        "private": lambda: none.hf_hub_download("acme/secret", "config.json"),
        "private, signed in": lambda: right.hf_hub_download("acme/secret", "config.json"),
        "gated": lambda: none.hf_hub_download("acme/gated", "config.json"),
        "gated, listed": lambda: none.list_repo_files("acme/gated"),
        "wrong token": lambda: wrong.hf_hub_download("acme/tiny", "config.json"),
        "whoami": lambda: right.whoami()["name"],
        "upload": lambda: right.create_repo("acme/new"),
        "refs": lambda: none.list_repo_refs("acme/tiny").branches[0].target_commit,
        "snapshot": lambda: snapshot_download("acme/tiny"),
    }
    return {name: _error_of(attempt) for name, attempt in attempts.items()}


def _error_of(attempt: Callable[[], Any]) -> Any:
    """Return the name of the raised exception and of its cause, or the result if none is raised."""
    try:
        return attempt()
    except Exception as error:
        cause = f" from {type(error.__cause__).__name__}" if error.__cause__ else ""
        status = getattr(getattr(error, "response", None), "status_code", "")
        return f"{type(error).__name__}{cause} {status}".strip()


# The tests.


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    import pyarrow
    import pyarrow.parquet

    root = tmp_path_factory.mktemp("repositories")
    write_model(root / "model")
    for name in ("parquet", "lines"):
        (root / name).mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PAIRS), root / "parquet/truthy.parquet")
    (root / "lines/truthy.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    folders = {MODEL: root / "model", PARQUET: root / "parquet", LINES: root / "lines"}
    folders |= {"models/acme/secret": root / "model", "models/acme/gated": root / "model"}
    folders |= {"datasets/acme/secret": root / "lines"}
    private = {"models/acme/secret", "datasets/acme/secret"}
    with HubServer(folders, token=TOKEN, private=private, gated={"models/acme/gated"}) as hub:
        yield hub


def run_child(
    task: Callable[[], dict[str, Any]], hub: HubServer, home: Path, **env: str
) -> dict[str, Any]:
    """Run a function of this file in a process that knows only our Hub; return its JSON."""
    # A developer's own HF_TOKEN would be refused, and a proxy would not reach the server.
    ours = {k: v for k, v in os.environ.items() if not re.match("HF_|HUGGING|.*_proxy$", k, re.I)}
    ours |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_DATASETS_CACHE": str(home / "data")}
    ours |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    module = f"tests.helpers.{Path(__file__).stem}"
    code = f"import json, {module} as t; print(json.dumps(t.{task.__name__}()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=ours | env,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def online(hub: HubServer, home: Path) -> dict[str, Any]:
    """Return the results of the first loads, their errors, and the requests that they made."""
    return run_child(load_all_and_missing, hub, home) | {"requests": list(hub.requests)}


def test_load_dataset_reads_parquet_and_json_lines(online, hub):
    found = online["found"]
    assert found["parquet"] == found["lines"] == PAIRS
    assert list(found["parquet"][0]) == COLUMNS
    assert hub.sha(PARQUET) in found["parquet_cache"]


def test_from_pretrained_loads_tokenizer_and_model(online):
    found = online["found"]
    assert found["text"] == "<|im_start|>user\nHi<|im_end|>\n"
    assert found["decoded"] == "The cat sat"
    assert found["logits"][0] == 1
    assert len(found["logits"]) == 3
    assert found["amiss"] == {}, "weights that the server's file lacks were made up"


def test_the_resolved_commit_is_the_servers(online, hub):
    # transformers 5.23 sets no `config._commit_hash`, but the cached file's path has the commit.
    assert re.fullmatch("[0-9a-f]{40}", hub.sha(MODEL))
    assert online["found"]["resolved"] == online["found"]["config_from"] == hub.sha(MODEL)


def test_every_file_is_downloaded_once_and_every_call_has_a_route(online):
    requests = online["requests"]
    gets = [path for method, path, _ in requests if method == "GET" and "/resolve/" in path]
    assert len(gets) == len(set(gets))
    assert any(path.endswith("/model.safetensors") for path in gets)
    assert {request.status for request in requests} == {200, 401, 404}


@pytest.mark.usefixtures("online")
def test_the_client_remembers_which_files_are_absent(hub, home):
    absent = home / "hub/models--acme--tiny/.no_exist" / hub.sha(MODEL)
    assert (absent / "adapter_config.json").exists()


def test_a_second_load_offline_asks_nothing(online, hub, home):
    before = list(hub.requests)
    assert run_child(load_all, hub, home, HF_HUB_OFFLINE="1") == online["found"]
    assert hub.requests == before


def test_what_is_missing_or_private_is_the_libraries_own_error(online):
    assert online["missing"] == {
        "dataset": "DatasetNotFoundError",
        "dataset revision": "DatasetNotFoundError from RevisionNotFoundError",
        "private dataset": "DatasetNotFoundError",
        "model": "OSError from RepositoryNotFoundError",
        "model revision": "OSError from RevisionNotFoundError",
        "private model": "OSError from RepositoryNotFoundError",
    }


def test_huggingface_hub_meets_the_hubs_refusals(hub, tmp_path):
    found = run_child(ask_hub, hub, tmp_path)
    assert Path(found.pop("private, signed in")).name == "config.json"
    assert Path(found.pop("snapshot")).name == found.pop("refs") == hub.sha(MODEL)
    assert "config.json" in found.pop("gated, listed")
    assert found == {
        "missing": "RepositoryNotFoundError from HTTPStatusError 401",
        "missing, signed in": "RepositoryNotFoundError from HTTPStatusError 404",
        "revision": "RevisionNotFoundError from HTTPStatusError 404",
        "entry": "RemoteEntryNotFoundError from HTTPStatusError 404",
        "private": "RepositoryNotFoundError from HTTPStatusError 401",
        "gated": "GatedRepoError from HTTPStatusError 401",
        "wrong token": "HfHubHTTPError from HTTPStatusError 401",
        "whoami": "acme",
        "upload": "HfHubHTTPError from HTTPStatusError 501",
    }


def test_resolve_answers_ranges_and_refuses_one_past_the_end(hub):
    url = f"{hub.url}/datasets/acme/lines/resolve/main/truthy.jsonl"
    content = urllib.request.urlopen(url).read()
    for span, expected in (("0-9", content[:10]), ("5-", content[5:]), ("0-999999", content)):
        request = urllib.request.Request(url, headers={"Range": f"bytes={span}"})
        with urllib.request.urlopen(request) as answer:
            assert (answer.status, answer.read()) == (206, expected)
            assert answer.headers["Content-Range"].endswith(f"/{len(content)}")
            assert answer.headers["X-Repo-Commit"] == hub.sha(LINES)
    request = urllib.request.Request(url, headers={"Range": f"bytes={len(content)}-"})
    with pytest.raises(HTTPError, match="416"):
        urllib.request.urlopen(request)


def test_the_commit_follows_the_content(tmp_path):
    shas = []
    for content in ("one", "one", "two"):
        (tmp_path / "file.txt").write_text(content)
        with HubServer({MODEL: tmp_path}) as hub:
            shas.append(hub.sha(MODEL))
    assert shas[0] == shas[1] != shas[2]


@pytest.mark.parametrize("key", ["acme/tiny", "models/tiny", "spaces/acme/tiny"])
def test_a_key_without_its_kind_is_refused(key, tmp_path):
    with pytest.raises(ValueError, match="models/owner/name"):
        HubServer({key: tmp_path})
