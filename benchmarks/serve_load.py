"""Tokens per second and time to the first token of `python -m serve` under 16 clients, against a
Flask app that generates one request at a time and against `transformers serve`; and of the same on
Ray Serve.

All serve the same model one after the other on this machine, to the same clients and prompts: the
sample, or with `--random` a random one of 27 million weights whose answers have all 64 tokens; with
`--long` prompts of some 300 tokens. Each is measured `--rounds` times, and the best round stands: a
shared machine only ever takes time away. Needs the extra `benchmark`; RESULTS.md keeps what was
measured.
"""

import argparse
import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}

from dpo_train import sample  # noqa: E402

CLIENTS, REQUESTS, MOST_TOKENS, PORT = 16, 12, 64, 8123

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
ON_RAY = """
import signal
import sys
from ray import serve
from serve.app import build
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
serve.run(build({"model": sys.argv[1]}))
signal.pause()
"""
NAMES = ("flask", "transformers", "ours", "on ray")


def command(name: str, model: Path) -> list[str]:
    port = str(PORT)
    return {
        "flask": [sys.executable, "-c", FLASK, str(model), port],
        "transformers": [
            str(Path(sys.executable).parent / "transformers"), "serve", "--port", port,
            "--continuous-batching", str(model),
        ],
        "ours": [sys.executable, "-m", "serve", f"{model}={model}", "--port", port],
        "on ray": [sys.executable, "-c", ON_RAY, f"{model}={model}", port],
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
        while not any(is_there(path) for path in ("/healthz", "/health")):
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


def is_there(path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        return connection.getresponse().status == 200
    return False


def prompts(is_long: bool) -> list[str]:
    rows = [json.loads(line)["prompt"] for line in sample.PAIRS.read_text().splitlines()]
    count = CLIENTS * REQUESTS
    if not is_long:
        return rows[:count]
    return [" ".join(rows[number % 900 : number % 900 + 20]) for number in range(count)]


def load(model: str, waiting: list[str], stream: bool) -> dict[str, float]:
    """Tokens per second over all clients, and the median seconds to the first piece of text."""
    waiting, tokens, firsts = list(waiting), 0, []
    lock = threading.Lock()

    def work() -> None:
        nonlocal tokens
        # The clients share the cores with the server: a plain one takes a tenth of httpx's time.
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=300)
        while True:
            with lock:
                if not waiting:
                    return
                prompt = waiting.pop()
            made, first = ask(connection, model, prompt, stream)
            with lock:
                tokens += made
                firsts.append(first)

    began = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as clients:
        for client in [clients.submit(work) for _ in range(CLIENTS)]:
            client.result()
    seconds = time.monotonic() - began
    return {"tokens": tokens, "tokens per second": tokens / seconds, "first": median(firsts)}


def ask(
    connection: http.client.HTTPConnection, model: str, prompt: str, stream: bool
) -> tuple[int, float]:
    """(tokens of the answer, seconds to its first text)."""
    body: dict[str, Any] = {
        "model": model, "messages": [{"role": "user", "content": prompt}],
        "max_tokens": MOST_TOKENS, "temperature": 0,
    }  # fmt: skip
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    began = time.monotonic()
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {answer.read()[:300]!r}")
    if not stream:
        made = json.loads(answer.read())["usage"]["completion_tokens"]
        return made, time.monotonic() - began
    first, last = 0.0, b""
    for line in answer:
        if not first and line.startswith(b"data: {"):
            part = json.loads(line[6:])
            if part["choices"] and part["choices"][0]["delta"].get("content"):
                first = time.monotonic() - began
        if b'"completion_tokens"' in line:
            last = line
    if not first:
        raise RuntimeError(f"a stream without text: {last!r}")
    return json.loads(last[6:])["usage"]["completion_tokens"], first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=NAMES, nargs="*", default=list(NAMES))
    parser.add_argument("--random", action="store_true", help="a larger, random model")
    parser.add_argument("--long", action="store_true", help="long prompts")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    scratch = tempfile.TemporaryDirectory()
    model = random_model(Path(scratch.name)) if options.random else sample.MODEL
    asked = prompts(options.long)
    for name in options.only:
        with running(command(name, model)):
            load(str(model), asked[:CLIENTS], stream=False)  # warm
            whole = [load(str(model), asked, stream=False) for _ in range(options.rounds)]
            streamed = whole
            if name != "flask":
                streamed = [load(str(model), asked, stream=True) for _ in range(options.rounds)]
        found[name] = {
            "tokens": whole[0]["tokens"],
            "tokens per second, whole answers": max(one["tokens per second"] for one in whole),
            "seconds of a whole answer, median": min(one["first"] for one in whole),
            "tokens per second, streamed": max(one["tokens per second"] for one in streamed),
            "seconds to the first token, median": min(one["first"] for one in streamed),
        }
        print(name, found[name], flush=True)
    rows = next(iter(found.values()))
    print(f"\n{CLIENTS} clients".ljust(42) + "".join(f"{name:>14}" for name in found))
    for row in rows:
        print(row.ljust(42) + "".join(f"{values[row]:14.3f}" for values in found.values()))


if __name__ == "__main__":
    main()
