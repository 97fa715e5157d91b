"""GPUs as nvidia-smi lists them. A script stands in for nvidia-smi."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_train.errors import InputError
from tune.search import gpus

H200 = "0, GPU-6e9b51ec, NVIDIA H200, 580.159.04, 9.0, 143000, 143771"
T4 = "1, GPU-7d4d5738, Tesla T4, 580.159.04, 7.5, 15000, 15360"
UNKNOWN = "2, GPU-11111111, NVIDIA GB10, 580.159.04, 12.1, [N/A], [N/A]"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only folder with programs: an nvidia-smi with three GPUs, and a compiler."""
    for name, text in (("nvidia-smi", "\n".join((H200, T4, UNKNOWN))), ("gcc", "")):
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\n/bin/cat <<END\n{text}\nEND\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").touch()
    monkeypatch.setattr(gpus.sysconfig, "get_path", lambda _: str(tmp_path / "include"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CC", raising=False)
    return tmp_path


@pytest.mark.usefixtures("machine")
def test_memory_capability_and_driver_of_a_gpu_are_shown() -> None:
    first, _, last = map(str, gpus.visible_gpus())
    assert first == (
        "NVIDIA H200: 149.9 of 150.8 GB free, compute capability 9.0, driver 580.159.04"
    )
    assert last == "NVIDIA GB10: compute capability 12.1, driver 580.159.04"


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1,0", ["Tesla T4", "NVIDIA H200"]),
        ("GPU-7d4d", ["Tesla T4"]),
        ("MIG-5c8d, MIG-9a1b", ["NVIDIA H200", "NVIDIA H200"]),
        ("", []),
        ("7", []),
        ("0,-1,1", ["NVIDIA H200"]),
    ],
)
def test_only_visible_gpus_count(
    monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in gpus.visible_gpus()] == names


def test_settings_that_a_trial_can_t_have_are_refused(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"^resources.gpus: a trial wants 4, this machine has 3; "):
        gpus.refuse_unfit(4)
    with pytest.raises(InputError, match=r"^resources.gpus: Tesla T4 has compute capability 7.5 "):
        gpus.refuse_unfit(1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    gpus.refuse_unfit(2)
    (machine / "gcc").unlink()
    with pytest.raises(InputError, match=r"^resources.gpus: there is no C compiler, .*apt-get"):
        gpus.refuse_unfit(2)
    monkeypatch.setenv("CC", "/opt/bin/cc")
    gpus.refuse_unfit(2)
    monkeypatch.setattr(gpus.sysconfig, "get_path", lambda _: str(machine))
    with pytest.raises(InputError, match=r"^resources.gpus: there is no .*/Python.h, which "):
        gpus.refuse_unfit(2)
    (machine / "nvidia-smi").unlink()
    assert gpus.visible_gpus() == []
