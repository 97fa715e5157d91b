"""`python -m serve MODEL`: one process of this machine answers HTTP requests until interrupted.

Replicas, GPUs apart and several nodes are Ray Serve's: `serve run serve.app:build model=…`.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from pathlib import Path

from pydantic import ValidationError

from serve.errors import ModelError
from serve.instruments import LocalInstruments
from serve.model_source import describe_memory, parse_model
from serve.options import KEY, KEY_FILE, Options, is_loopback, read_key

_WRONG_INPUT, _INTERRUPTED = 2, 130


def main() -> int:
    """Returns the exit code: 0 ended, 2 wrong input, 130 interrupted before it was ready."""
    parsed = _parser().parse_args()
    models = [_absolute(model) for model in parsed.model]
    if with_comma := [model for model in models if "," in model]:
        return _refuse(f"{with_comma[0]}: a comma parts models; give a path without one")
    names = [name for name in Options.model_fields if name != "model"]
    given = {name: getattr(parsed, name) for name in names if getattr(parsed, name) is not None}
    try:
        options = Options(model=",".join(models), **given)
        key = read_key()
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        return _refuse(f"--{option}: {first['msg'].removeprefix('Value error, ')}")
    except OSError as error:
        return _refuse(f"{KEY_FILE}: {error}")
    except ValueError as error:
        return _refuse(str(error))
    host, port = parsed.host, parsed.port
    if not 0 < port < 65536:
        return _refuse(f"--port: {port} is none; 1 to 65535")
    try:
        family, address = _address(host)
    except OSError:
        return _refuse(f"--host: {host} is no address of this machine; try 127.0.0.1")
    if key is None and not is_loopback(address):
        return _refuse(
            f"--host: {host} is open to others, and there is no key; set {KEY} or {KEY_FILE}"
        )
    try:
        listening = socket.create_server((address, port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        return _refuse(f"can't listen on {host}:{port}: {reason}; give another --port")
    with listening:
        try:
            for line in describe_memory(models, options.slots, options.context):
                print(line, flush=True)
            _serve(options, listening)
        except ModelError as error:
            return _refuse(str(error))
        except KeyboardInterrupt:
            return _INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serve", description=__doc__)
    parser.add_argument("model", nargs="+", help="a run's winner/, a folder, a Hub id or an "
                        "adapter; NAME=PLACE gives it a name")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="by default this machine alone")
    parser.add_argument("--port", type=int, default=8000, help="by default 8000")
    parser.add_argument("--slots", type=int, help="answers made at once (16)")
    parser.add_argument("--context", type=int, help="tokens of prompt and answer (2048)")
    parser.add_argument("--queue", type=int, help="requests that may wait (128)")
    parser.add_argument("--seconds", type=float, help="for one request (120)")
    parser.add_argument(
        "--generation-config",
        choices=["model", "none"],
        help="whose settings "
        "hold where a request says nothing: the model's own or OpenAI's (model)",
    )
    parser.add_argument("--allowed-origins", metavar="ORIGIN[,ORIGIN]", help="pages of these may "
                        "ask from a browser; * allows all (none)")  # fmt: skip
    parser.add_argument("--author", help="stands at the foot of the page")
    parser.add_argument("--cpus", type=int, help="cores to compute with (1)")
    return parser


def _absolute(model: str) -> str:
    """Returns the model with the path of its folder made absolute: it may be read elsewhere."""
    name, place = parse_model(model)
    folder = Path(place).expanduser()
    place = str(folder.resolve()) if folder.is_dir() else place
    return f"{name}={place}" if name else place


def _address(host: str) -> tuple[socket.AddressFamily, str]:
    """Returns the address that a name or another spelling stands for, of IPv4 if it has one.

    Raises OSError.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, str(address[0])


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return _WRONG_INPUT


def _serve(options: Options, listening: socket.socket) -> None:
    # Importing torch takes seconds: what was typed wrong is reported before.
    from transformers.utils import logging

    from serve.compose import compose
    from serve.http_server import HttpServer

    logging.disable_progress_bar()  # one bar a model, over weights that are read in a blink
    composed = compose(options, LocalInstruments())
    server = HttpServer(composed.app, composed.app.state.in_flight)
    for kind in (signal.SIGINT, signal.SIGTERM):
        # uvicorn has its own while it runs, and then sends the signal again.
        signal.signal(kind, lambda *_: None)
    host, port = listening.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    print(f"ready: http://{host}:{port}  (the page; OpenAI's API under /v1; Ctrl-C ends it)",
          flush=True)  # fmt: skip
    server.run(sockets=[listening])
    composed.close()


if __name__ == "__main__":
    sys.exit(main())
