"""The command `python -m dpo_train` on a machine with several GPUs."""

from __future__ import annotations

import os

import pytest

from dpo_train import __main__


@pytest.mark.parametrize(("visible", "taken"), [(None, "0"), ("3,1", "3")])
def test_one_trial_takes_the_first_gpu(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    visible: str | None,
    taken: str,
) -> None:
    monkeypatch.setattr(os, "environ", {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    __main__._take_the_first_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == taken
    assert f"this one uses GPU {taken}" in capsys.readouterr().out
