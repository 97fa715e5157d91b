"""Measures tokens per second and time to the first token under 16 clients: of `python -m serve`, a
Flask app that generates one request at a time, `transformers serve`, Ray Serve, and the server of
another version of this project.

All serve the same model one after the other on this machine, to the same clients and prompts: the
sample, `random` (27 million weights whose answers have the full length), or a folder. Prompts have
about 27 or about 300 tokens. Answers are greedy or drawn at temperature 0.8 with top_p 0.9. Each
case is measured `--rounds` times and the best round counts, because other work on a shared machine
only makes it slower. Needs the extra `benchmark`. RESULTS.md has the measurements.

    git worktree add ../before COMMIT
    python benchmarks/serve_load.py --model sample --before ../before
    python benchmarks/serve_load.py --model FOLDER --before ../before --requests 1 --rounds 1 \\
        --only flask transformers before ours
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
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

from dpo_train import sample  # noqa: E402

CLIENTS, MOST_TOKENS, PORT = 16, 64, 8123
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 0.8, "top_p": 0.9},
}
PROMPTS = ("short", "long")

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
    body = request.get_json()
    inputs = tokenizer.apply_chat_template(
        body["messages"], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    length = inputs["input_ids"].shape[1]
    drawn = {"do_sample": False}
    if body["temperature"]:
        drawn = {"do_sample": True, "temperature": body["temperature"], "top_p": body["top_p"]}
    output = model.generate(**inputs, **drawn, max_new_tokens=body["max_tokens"])
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
Row = dict[str, float]
NAMES = ("flask", "transformers", "before", "ours", "on ray")


def command(name: str, model: Path) -> list[str]:
    """Return the command that starts a server."""
    port = str(PORT)
    ours = [sys.executable, "-m", "serve", f"{model}={model}", "--port", port]
    return {
        "flask": [sys.executable, "-c", FLASK, str(model), port],
        "transformers": [
            str(Path(sys.executable).parent / "transformers"), "serve", "--port", port,
            "--continuous-batching", str(model),
        ],
        "before": ours,
        "ours": ours,
        "on ray": [sys.executable, "-c", ON_RAY, f"{model}={model}", port],
    }[name]  # fmt: skip


def random_model(folder: Path) -> Path:
    """Write the random model."""
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
def running(command: list[str], source: Path) -> Iterator[None]:
    """Run a server of the packages in the folder `source`."""
    process = subprocess.Popen(
        command, cwd=source, env={**os.environ, "PYTHONPATH": str(source)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
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
    """Return whether a server answers."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        return connection.getresponse().status == 200
    return False


def prompts(kind: str, count: int) -> list[str]:
    """Return prompts of this kind."""
    rows = [json.loads(line)["prompt"] for line in sample.PAIRS.read_text().splitlines()]
    if kind == "short":
        return [rows[number % len(rows)] for number in range(count)]
    return [" ".join(rows[number % 900 : number % 900 + 20]) for number in range(count)]


def load(model: str, waiting: list[str], settings: dict[str, Any]) -> Row:
    """Return tokens per second over all clients, and the median seconds to the first text."""
    waiting, tokens, firsts = list(waiting), 0, []
    lock = threading.Lock()

    def work() -> None:
        nonlocal tokens
        # The clients share the cores with the server. A plain client takes a tenth of httpx's time.
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=300)
        while True:
            with lock:
                if not waiting:
                    return
                prompt = waiting.pop()
            made, first = ask(connection, {"model": model, **settings}, prompt)
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
    connection: http.client.HTTPConnection, settings: dict[str, Any], prompt: str
) -> tuple[int, float]:
    """Return the tokens of the answer, and the seconds to its first text."""
    messages = [{"role": "user", "content": prompt}]
    body = {"messages": messages, "max_tokens": MOST_TOKENS, **settings}
    began = time.monotonic()
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {answer.read()[:300]!r}")
    if not settings.get("stream"):
        made = json.loads(answer.read())["usage"]["completion_tokens"]
        return made, time.monotonic() - began
    first, last = 0.0, b""
    for line in answer:
        if not first and line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if event["choices"] and event["choices"][0]["delta"].get("content"):
                first = time.monotonic() - began
        if b'"completion_tokens"' in line:
            last = line
    if not first:
        raise RuntimeError(f"a stream without text: {last!r}")
    return json.loads(last[6:])["usage"]["completion_tokens"], first


STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def measure(name: str, model: str, texts: list[str], settings: dict[str, Any], rounds: int) -> Row:
    """Return the best of so many rounds, of whole and of streamed answers."""
    unstreamed = [load(model, texts, settings) for _ in range(rounds)]
    streamed = unstreamed
    if name != "flask":
        streamed = [load(model, texts, settings | STREAM) for _ in range(rounds)]
    return {
        "tokens": unstreamed[0]["tokens"],
        "tokens per second, whole answers": max(one["tokens per second"] for one in unstreamed),
        "seconds of a whole answer, median": min(one["first"] for one in unstreamed),
        "tokens per second, streamed": max(one["tokens per second"] for one in streamed),
        "seconds to the first token, median": min(one["first"] for one in streamed),
    }


def compare(label: str, model: Path, options: argparse.Namespace) -> None:
    """Measure every server with one model, and print a table for each kind of load."""
    kinds = [(prompt, setting) for prompt in options.prompts for setting in options.settings]
    found: dict[tuple[str, str], dict[str, Row]] = {kind: {} for kind in kinds}
    for name in options.only:
        source = options.before if name == "before" else ROOT
        with running(command(name, model), source.resolve()):
            load(str(model), prompts("short", CLIENTS // 4), SETTINGS["greedy"])  # warm
            for prompt, setting in kinds:
                texts = prompts(prompt, CLIENTS * options.requests)
                row = measure(name, str(model), texts, SETTINGS[setting], options.rounds)
                found[prompt, setting][name] = row
                print(label, name, prompt, setting, row, flush=True)
    for (prompt, setting), columns in found.items():
        title = f"{label}, {prompt} prompts, {setting}"
        print(f"\n{title}".ljust(43) + "".join(f"{name:>14}" for name in columns))
        for number in next(iter(columns.values())):
            values = "".join(f"{column[number]:14.3f}" for column in columns.values())
            print(number.ljust(42) + values)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=["sample"],
                        help="sample, random, or a folder")  # fmt: skip
    parser.add_argument("--before", type=Path, help="a work tree of another version")
    parser.add_argument("--only", choices=NAMES, nargs="*", help="by default all there are")
    parser.add_argument("--prompts", choices=PROMPTS, nargs="*", default=PROMPTS)
    parser.add_argument("--settings", choices=SETTINGS, nargs="*", default=list(SETTINGS))
    parser.add_argument("--requests", type=int, default=12, help="of each client")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    options.only = options.only or [name for name in NAMES if name != "before" or options.before]
    if "before" in options.only and not options.before:
        parser.error("--only before: say where it is with --before FOLDER")
    for given in options.model:
        with tempfile.TemporaryDirectory() as scratch:
            if given == "random":
                compare(given, random_model(Path(scratch) / "random"), options)
            else:
                folder = sample.MODEL if given == "sample" else Path(given).resolve()
                compare(given, folder, options)


if __name__ == "__main__":
    main()
