"""Serve models over HTTP on this machine until interrupted: `python -m serve MODEL`.

For replicas, several GPUs or several nodes use Ray Serve: `serve run serve.app:build model=…`.
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
    """Serves the models. Returns the exit code: 0 ended, 2 wrong input, 130 interrupted early."""
    # The options and the key.
    parsed = _parser().parse_args()
    models = [_absolute(model) for model in parsed.model]
    if with_comma := [model for model in models if "," in model]:
        return _refuse(f"{with_comma[0]}: commas separate models; give a path without a comma")
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
    # The address.
    host, port = parsed.host, parsed.port
    if not 0 < port < 65536:
        return _refuse(f"--port: {port} is no port; give 1 to 65535")
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
    # The models, until interrupted.
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
                        "adapter; NAME=MODEL gives it a name")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (this machine)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (8000)")
    parser.add_argument("--slots", type=int, help="answers that are generated at once (16)")
    parser.add_argument("--context", type=int, help="most tokens of a prompt with answer (2048)")
    parser.add_argument("--queue", type=int, help="requests that may wait (128)")
    parser.add_argument("--seconds", type=float, help="time limit of a request (120)")
    parser.add_argument(
        "--generation-config",
        choices=["model", "none"],
        help="settings that a request leaves out: the model's own, or OpenAI's (model)",
    )
    parser.add_argument("--allowed-origins", metavar="ORIGIN[,ORIGIN]", help="web pages that may "
                        "call the API from a browser; * allows all (none)")  # fmt: skip
    parser.add_argument("--author", help="text at the bottom of the web page")
    parser.add_argument("--cpus", type=int, help="CPU cores to compute with (1)")
    return parser


def _absolute(model: str) -> str:
    """Returns the model with an absolute path, if it is a folder."""
    name, location = parse_model(model)
    folder = Path(location).expanduser()
    location = str(folder.resolve()) if folder.is_dir() else location
    return f"{name}={location}" if name else location


def _address(host: str) -> tuple[socket.AddressFamily, str]:
    """Returns the address of a host, preferably IPv4. Raises OSError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, str(address[0])


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return _WRONG_INPUT


def _serve(options: Options, listening: socket.socket) -> None:
    """Loads the models and serves them until interrupted. Raises ModelError."""
    # Importing torch takes seconds, so mistakes in the options are reported before it.
    from transformers.utils import logging

    from serve.compose import compose
    from serve.http_server import HttpServer

    logging.disable_progress_bar()  # weights are read in a blink
    composed = compose(options, LocalInstruments())
    server = HttpServer(composed.app, composed.app.state.in_flight)
    for kind in (signal.SIGINT, signal.SIGTERM):
        # uvicorn handles the signal while it runs, then raises it again. We ignore the second one.
        signal.signal(kind, lambda *_: None)
    host, port = listening.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    print(f"ready: http://{host}:{port}  (web page; OpenAI's API under /v1; Ctrl-C stops it)",
          flush=True)  # fmt: skip
    server.run(sockets=[listening])
    composed.close()


if __name__ == "__main__":
    sys.exit(main())
