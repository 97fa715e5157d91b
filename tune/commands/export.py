"""Writes a run's winner for other tools: a GGUF file for llama.cpp, a Modelfile for Ollama."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

from dpo_train.gguf.exported import write_exported
from dpo_train.gguf.tensors import Quantization
from dpo_train.gguf.write import file_name
from dpo_train.storage.disk import discarding_partial
from tune.config.load import load_search
from tune.publish.repository import refuse_existing, refuse_without_winner
from tune.run_folder.driver_lease import only_driver
from tune.run_folder.paths import RunLike
from tune.run_folder.results import load_results


def export_gguf(run: RunLike, quantization: Quantization, folder: Path | None = None) -> Path:
    """Write a run's winner as GGUF into a folder, by default `<name>-gguf` here; return the file.

    The folder appears once it is complete. A warning says where other tools read the file
    differently. Raises DiskFull, and InputError for a run without a winner, a folder that is not
    empty, or a model that can't be written as GGUF.
    """
    results = load_results(run)
    folder = (folder or Path(f"{results.name}-gguf")).expanduser()
    refuse_existing(folder)
    partial = folder.with_name(f".{folder.name}.part")
    with only_driver(results.folder):
        refuse_without_winner(results, load_search(results.folder.search_yaml))
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            with discarding_partial(partial):
                notes = write_exported(results.folder.winner, partial, results.name, quantization)
            shutil.rmtree(folder, ignore_errors=True)
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return folder / file_name(results.name, quantization)
