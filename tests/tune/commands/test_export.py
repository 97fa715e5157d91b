"""After `dpo-tune export RUN --gguf` the winner answers in llama.cpp as it does here, or nothing is
written."""

import re
from pathlib import Path

import pytest
import torch

from dpo_train import export, model
from dpo_train.errors import InputError
from tests.conftest import Run
from tests.helpers.finished_runs import make_run
from tests.helpers.llama_cpp import LlamaCpp
from tests.helpers.recorded_search import Search
from tune.commands.export import export_gguf
from tune.publish import push

QUESTION = [{"role": "user", "content": "Is it true that goldfish forget everything in seconds?"}]
pytestmark = pytest.mark.filterwarnings("ignore:the tokenizer composes characters")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exported")
    full = {"trainer": "trl", "lora": None}
    return {
        "adapter": make_run(root, "adapter", lora={"r": 4, "alpha": 64}),
        "full": make_run(root, "full", **full),
    }


@pytest.fixture(autouse=True)
def base_as_in_a_new_process() -> None:
    model.forget_base()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_the_winner_answers_in_llama_cpp_as_it_does_here(
    runs: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    policy, tokenizer = export.load(runs[kind] / "winner", "cpu")
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer(text)["input_ids"]
    with torch.no_grad():
        answer = policy.generate(torch.tensor([tokens]), do_sample=False, max_new_tokens=40)
    theirs = [token for token in answer[0, len(tokens) :].tolist() if token != 1023]
    model.forget_base()
    with LlamaCpp(export_gguf(runs[kind], "f16", tmp_path / "out")) as llama:
        assert llama.tokens(text) == tokens
        assert llama.answer(tokens, 40) == theirs
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {f"{kind}-F16.gguf", "Modelfile"}
    assert f"FROM ./{kind}-F16.gguf" in (tmp_path / "out" / "Modelfile").read_text()


@pytest.mark.slow
def test_the_command_writes_beside_where_it_is_typed_and_over_nothing(
    runs: dict[str, Path], tmp_path: Path, dpo_tune: Run
) -> None:
    done = dpo_tune("export", str(runs["full"]), "--gguf", "--quantize", "q8_0")
    assert done.returncode == 0, done.stderr
    assert "written: full-gguf/full-Q8_0.gguf, and full-gguf/Modelfile" in done.stdout
    assert "warning: the tokenizer composes characters first (NFC)" in done.stderr
    assert (tmp_path / "full-gguf" / "full-Q8_0.gguf").stat().st_size > 100_000
    again = dpo_tune("export", str(runs["full"]), "--gguf")
    assert again.returncode == 2
    assert "full-gguf is not an empty folder; name a new one" in again.stderr
    for command in (("export", "--gguf"), ("push",)):
        here = dpo_tune(command[0], str(runs["full"]), *command[1:], "--to", ".")
        assert here.returncode == 2
        assert here.stderr.startswith("error: --to: . can't be replaced; name a new folder")
    without = dpo_tune("export", str(runs["full"]))
    assert without.returncode == 2
    assert re.search(r" push \S+/full --to FOLDER`", without.stderr)


@pytest.mark.slow
def test_a_model_that_can_not_be_written_leaves_no_folder(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpo_train.gguf.write.free_bytes", lambda _: 1000)
    with pytest.raises(InputError, match="GB free; name another folder"):
        export_gguf(runs["full"], "f16", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_push_holds_the_file_beside_the_weights_and_the_card_says_so(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    wanted = {"repo": "you/won", "license": "apache-2.0", "merged": True, "gguf": "q8_0"}
    folder = push.write(runs["adapter"], tmp_path / "hub", **wanted)
    assert {"won-Q8_0.gguf", "Modelfile", "model.safetensors"} <= {
        path.name for path in folder.iterdir()
    }
    card = (folder / "README.md").read_text()
    assert "`llama-server -m won-Q8_0.gguf`; in Ollama: `ollama create won -f Modelfile`" in card
    del wanted["gguf"]
    plain = push.write(runs["adapter"], tmp_path / "plain", **wanted)
    assert not list(plain.glob("*.gguf"))
    assert "llama-server" not in (plain / "README.md").read_text()


@pytest.mark.slow
def test_a_search_that_can_not_push_its_gguf_file_is_refused_before_it_begins(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tune.config.load import load_search
    from tune.publish.repository import refuse_unpublishable_search

    config = load_search(runs["full"] / "search.yaml")
    hub = config.hub.model_copy(update={"gguf": "f16"})
    refuse_unpublishable_search(config, hub)
    monkeypatch.setattr("dpo_train.gguf.write.find_spec", lambda _: None)
    with pytest.raises(InputError, match="type `.* -m pip install"):
        refuse_unpublishable_search(config, hub)


def test_a_simulated_search_has_nothing_to_export(tmp_path: Path, dpo_tune: Run) -> None:
    search = Search(tmp_path)
    search.report(1)
    search.end()
    done = dpo_tune("export", search.folder, "--gguf")
    assert done.returncode == 2
    assert re.search("simulated search has no model", done.stderr)
    assert not (tmp_path / "x-gguf").exists()
