"""Tokens per second and time to the first token of `python -m serve` under 16 clients, against a
Flask app that generates one request at a time and against `transformers serve`.

All three serve the same model one after the other on this machine, to the same clients and prompts:
the sample, or with `--random` a random one of 27 million weights whose answers have all 64 tokens.
Needs the extra `benchmark`. `--only` runs a part; RESULTS.md keeps what was measured.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}

import httpx  # noqa: E402

from dpo_train import sample  # noqa: E402

CLIENTS, REQUESTS, MOST_TOKENS, PORT = 16, 12, 64, 8123
URL = f"http://127.0.0.1:{PORT}"

FLASK = """
import sys
import torch
from flask import Flask, request
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
app = Flask(__name__)

@app.get("/healthz")
def healthz():
    return "ok"

@app.post("/v1/chat/completions")
def chat():
    asked = request.get_json()
    inputs = tokenizer.apply_chat_template(
        asked["messages"], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    length = inputs["input_ids"].shape[1]
    output = model.generate(**inputs, do_sample=False, max_new_tokens=asked["max_tokens"])
    text = tokenizer.decode(output[0, length:], skip_special_tokens=True)
    return {"text": text, "usage": {"completion_tokens": output.shape[1] - length}}

app.run(port=int(sys.argv[2]), threaded=False)
"""
NAMES = ("flask", "transformers", "ours")


def command(name: str, model: Path) -> list[str]:
    port = str(PORT)
    return {
        "flask": [sys.executable, "-c", FLASK, str(model), port],
        "transformers": [
            str(Path(sys.executable).parent / "transformers"), "serve", "--port", port,
            "--continuous-batching", str(model),
        ],
        "ours": [sys.executable, "-m", "serve", f"{model}={model}", "--port", port],
    }[name]  # fmt: skip


def random_model(folder: Path) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

    set_seed(0)
    config = AutoConfig.from_pretrained(sample.MODEL)
    config.update({"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6,
                   "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64,
                   "layer_types": ["full_attention"] * 6})  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(sample.MODEL).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                if any(httpx.get(f"{URL}/{path}").status_code == 200
                       for path in ("healthz", "health")):  # fmt: skip
                    break
            if process.poll() is not None:
                raise RuntimeError(f"{command[:4]} ended by itself")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def prompts() -> list[str]:
    rows = [json.loads(line) for line in sample.PAIRS.read_text().splitlines()]
    return [row["prompt"] for row in rows[: CLIENTS * REQUESTS]]


def load(model: str, stream: bool) -> dict[str, float]:
    """Tokens per second over all clients, and the median seconds to the first piece of text."""
    waiting, tokens, firsts = prompts(), 0, []
    lock = threading.Lock()

    def work() -> None:
        nonlocal tokens
        with httpx.Client(timeout=300) as client:
            while True:
                with lock:
                    if not waiting:
                        return
                    prompt = waiting.pop()
                made, first = ask(client, model, prompt, stream)
                with lock:
                    tokens += made
                    firsts.append(first)

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    return {"tokens": tokens, "tokens per second": tokens / seconds, "first": median(firsts)}


def ask(client: httpx.Client, model: str, prompt: str, stream: bool) -> tuple[int, float]:
    body: dict[str, Any] = {
        "model": model, "messages": [{"role": "user", "content": prompt}],
        "max_tokens": MOST_TOKENS, "temperature": 0,
    }  # fmt: skip
    began = time.monotonic()
    if not stream:
        answer = client.post(f"{URL}/v1/chat/completions", json=body).raise_for_status().json()
        return answer["usage"]["completion_tokens"], time.monotonic() - began
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    first, made = 0.0, 0
    with client.stream("POST", f"{URL}/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                part = json.loads(line[6:])
                if part["choices"] and part["choices"][0]["delta"].get("content"):
                    first = first or time.monotonic() - began
                made = (part.get("usage") or {}).get("completion_tokens", made)
    return made, first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=NAMES, nargs="*", default=list(NAMES))
    parser.add_argument("--random", action="store_true", help="a larger, random model")
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    scratch = tempfile.TemporaryDirectory()
    model = random_model(Path(scratch.name)) if options.random else sample.MODEL
    for name in options.only:
        with running(command(name, model)):
            with httpx.Client(timeout=300) as client:
                ask(client, str(model), "Hi", False)  # warm
            whole = load(str(model), stream=False)
            streamed = load(str(model), stream=True) if name != "flask" else whole
        found[name] = {
            "tokens": whole["tokens"],
            "tokens per second, whole answers": whole["tokens per second"],
            "seconds of a whole answer, median": whole["first"],
            "tokens per second, streamed": streamed["tokens per second"],
            "seconds to the first token, median": streamed["first"],
        }
        print(name, found[name], flush=True)
    rows = found.get("ours") or next(iter(found.values()))
    print(f"\n{CLIENTS} clients".ljust(42) + "".join(f"{name:>14}" for name in found))
    for row in rows:
        print(row.ljust(42) + "".join(f"{values[row]:14.3f}" for values in found.values()))


if __name__ == "__main__":
    main()
