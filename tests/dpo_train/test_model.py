"""Loading a base: processes share converted weights, and GPUs get pinned copies."""

import multiprocessing
from pathlib import Path

import pytest

from dpo_train import converted_weights, model, sample
from dpo_train.config import ModelConfig


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """Return a random model whose file holds 26 MB of bfloat16 weights."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=20000, hidden_size=512, intermediate_size=1024, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("half")
    Qwen2ForCausalLM(config).bfloat16().save_pretrained(folder)
    AutoTokenizer.from_pretrained(sample.MODEL).save_pretrained(folder)
    return ModelConfig(id=str(folder))


def _load(config: ModelConfig, prepared: Path | None) -> tuple[int, list[float]]:
    """Return the kilobytes of private memory that the weights took, and the log-probs of a text."""
    import torch
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(sample.MODEL)  # imports everything that a load imports
    before = _own_kilobytes()
    base = model.load_base(config, "cpu", prepared).model.eval()
    sum(weight.detach().sum() for weight in base.parameters())  # reads each page of memory
    took = _own_kilobytes() - before
    assert base.config._name_or_path == config.id
    with torch.no_grad():
        logits = base(input_ids=torch.arange(20)[None]).logits.log_softmax(-1)
    return took, logits[0, :, 7].tolist()


def _own_kilobytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0])


@pytest.mark.slow
def test_processes_map_one_converted_file_in_place_of_a_copy_each(
    half: ModelConfig, tmp_path: Path
) -> None:
    with multiprocessing.get_context("spawn").Pool(3, maxtasksperchild=1) as pool:
        load = [(half, None), (half, tmp_path), (half, tmp_path)]
        own, first, second = pool.starmap(_load, load, chunksize=1)
    assert first[1] == second[1] == own[1]
    weights = 12.5e6 * 4 / 1024
    assert own[0] > 0.8 * weights
    assert min(first[0], second[0]) < 0.4 * weights
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights", "weights.lock"]


def test_weights_that_have_the_dtype_are_not_copied(tmp_path: Path) -> None:
    assert converted_weights.converted(ModelConfig(), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_weights_are_not_rounded_for_all_processes(tmp_path: Path) -> None:
    assert converted_weights.converted(ModelConfig(dtype="bfloat16"), tmp_path) is None


def test_a_conversion_that_was_killed_is_begun_anew(half: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / ".weights.part").mkdir()
    (tmp_path / ".weights.part" / "model.safetensors").write_bytes(b"cut")
    folder = converted_weights.converted(half, tmp_path)
    assert folder == tmp_path / "weights"
    assert not (tmp_path / ".weights.part").exists()


def test_without_disk_space_for_a_converted_copy_loading_still_works(
    half: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpo_train.storage.disk.free_bytes", lambda _: 1 << 20)
    assert converted_weights.converted(half, tmp_path) is None


@pytest.mark.parametrize("is_cuda", [False, True])
def test_the_host_copy_of_a_gpus_weight_is_pinned(
    is_cuda: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    requests: list[object] = []

    def empty_like(weight: torch.Tensor, device: str, pin_memory: bool) -> torch.Tensor:
        requests.append((device, pin_memory))
        return torch.empty(weight.shape)  # no memory can be pinned without a GPU

    class Weight(torch.Tensor):
        """A weight that reports that it is on a GPU, or that it isn't."""

    Weight.is_cuda = is_cuda  # type: ignore[assignment,misc]
    monkeypatch.setattr(torch, "empty_like", empty_like)
    copy = model._host_copy(torch.arange(3.0).as_subclass(Weight))
    assert copy.tolist() == [0, 1, 2]
    assert requests == [("cpu", is_cuda)]


def test_a_full_fine_tuning_restores_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(model.activation_checkpointing, "switch_off", lambda _: None)
    layer = torch.nn.Linear(2, 2)
    own = [weight.detach().clone() for weight in layer.parameters()]
    warm = model.WarmBase(layer, None, None)  # type: ignore[arg-type]
    for _ in range(2):
        fresh = warm.fresh(trained_in_full=True)
        for weight, as_loaded in zip(fresh.parameters(), own, strict=True):
            assert torch.equal(weight, as_loaded)
            weight.detach().fill_(7)
