"""A model that can't be served is refused before anything is loaded."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import LlamaConfig, Phi3Config

from dpo_train import sample
from serve.errors import ModelError
from serve.model_source import describe_memory, read_sources, served_context
from tests.helpers.small_models import SMALL

HALF = [1.0] * 8


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./none", "./none: no such folder"),
        (str(Path(__file__).parent), "neither config.json nor adapter_config.json"),
        ("s3://bucket/runs/x/winner", "this is a URL; copy the folder to this machine first"),
    ],
)
def test_a_model_that_can_not_be_served_is_refused_in_one_line(source: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        describe_memory([source], 1, 128)


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(ModelError, match="two models of one name"):
        read_sources(["a=sample", "a=sample"])


def test_a_checkpoint_of_two_models_is_counted_once() -> None:
    (line,) = describe_memory(["a=sample", "b=sample"], 16, 2048)
    assert "for 16 answers at once of" in line


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the sample model, with a Python file as for code of its own."""
    folder = tmp_path / "own"
    shutil.copytree(sample.MODEL, folder)
    (folder / "own.py").write_text("raise SystemExit('code of the model ran')\n")
    return folder


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def no_question(*_: object) -> str:
    raise AssertionError("there was a question whether to run the code")


def test_a_model_with_code_of_its_own_is_refused_without_a_question(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", no_question)
    change(copy / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})
    with pytest.raises(ModelError) as refused:
        describe_memory([str(copy)], 1, 128)
    assert str(refused.value) == (
        f"{str(copy)!r} has no configuration to load: it needs its own Python code, which "
        "this server does not run; vLLM may serve it: deploy/serve_llm.yaml says how"
    )


def test_the_context_ends_where_the_rope_would_follow_the_longest_row(tmp_path: Path) -> None:
    config = Phi3Config(
        **SMALL,
        original_max_position_embeddings=64,
        rope_scaling={"type": "longrope", "short_factor": HALF, "long_factor": HALF},
        pad_token_id=2,
    )
    assert served_context(config, 2048) == 64
    assert served_context(config, 32) == 32
    config.save_pretrained(tmp_path / "phi")
    memory, context = describe_memory([str(tmp_path / "phi")], 16, 2048)
    assert "answers at once of 64 tokens" in memory
    assert context.startswith("phi: the context is 64 tokens, because a longer request would")
    assert len(describe_memory([str(tmp_path / "phi")], 16, 64)) == 1


def test_a_dynamic_rope_has_the_context_that_the_model_was_trained_with(tmp_path: Path) -> None:
    config = LlamaConfig(**SMALL, rope_scaling={"rope_type": "dynamic", "factor": 4.0})
    assert served_context(config, 2048) == SMALL["max_position_embeddings"]
    config.save_pretrained(tmp_path)
    assert "the context is 512 tokens" in describe_memory([str(tmp_path)], 16, 2048)[1]
