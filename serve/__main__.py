"""`python -m serve MODEL`: answers HTTP requests on this machine until it is interrupted."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path

from serve import app
from serve.guard import is_loopback
from serve.places import parse, split

_WRONG_INPUT = 2


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 ended, 2 wrong input."""
    options = _parser().parse_args(arguments)
    from pydantic import ValidationError

    places = [_absolute(model) for model in options.model]
    names = [name for name in app.Options.model_fields if name != "model"]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    try:
        asked = app.Options(model=",".join(places), **given)
        key = app.read_key()
    except ValidationError as error:
        first = error.errors()[0]
        return _refuse(f"--{'.'.join(map(str, first['loc']))}: {first['msg']}")
    except OSError as error:
        return _refuse(f"{app.KEY_FILE}: {error}")
    except ValueError as error:
        return _refuse(str(error))
    if not 0 < options.port < 65536:
        return _refuse(f"--port: {options.port} is none; 1 to 65535")
    if key is None and not is_loopback(options.host):
        return _refuse(
            f"--host: {options.host} is open to others, and there is no key; set {app.KEY} or "
            f"{app.KEY_FILE}"
        )
    return _serve(asked, options.host, options.port)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serve", description=__doc__)
    parser.add_argument("model", nargs="+", help="a run's winner/, a folder, a Hub id or an "
                        "adapter; NAME=PLACE gives it a name")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="by default this machine alone")
    parser.add_argument("--port", type=int, default=8000, help="by default 8000")
    parser.add_argument("--slots", type=int, help="answers made at once by a replica (16)")
    parser.add_argument("--context", type=int, help="tokens of prompt and answer (2048)")
    parser.add_argument("--queue", type=int, help="requests that may wait in a replica (128)")
    parser.add_argument("--seconds", type=float, help="for one request (120)")
    parser.add_argument("--author", help="stands at the foot of the page")
    parser.add_argument("--cpus", type=float, help="of a replica (1)")
    parser.add_argument("--gpus", type=float, help="of a replica; a fraction shares one (0)")
    parser.add_argument("--min-replicas", type=int, help="0 gives all back when nobody asks (1)")
    parser.add_argument("--max-replicas", type=int, help="above 1 there is no page (1)")
    return parser


def _absolute(model: str) -> str:
    """Replicas run elsewhere: a folder is named from the root."""
    name, place = parse(model)
    folder = Path(place).expanduser()
    place = str(folder.resolve()) if folder.is_dir() else place
    return f"{name}={place}" if name else place


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return _WRONG_INPUT


def _serve(options: app.Options, host: str, port: int) -> int:
    from serve.models import ModelError, needs

    try:
        for line in needs(split(options.model), options.slots, options.context):
            print(line, flush=True)
    except ModelError as error:
        return _refuse(str(error))
    import ray
    from ray import serve as ray_serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ended = threading.Event()
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda *_: ended.set())
    # Never a cluster that is there: its replicas would not have this key, nor this host and port.
    ray.init("local", log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    try:
        ray_serve.start(http_options={"host": host, "port": port})
        ray_serve.run(app.build(options.model_dump()), route_prefix="/", blocking=False)
        page = "" if options.max_replicas > 1 else "the page; "
        print(f"ready: http://{host}:{port}  ({page}OpenAI's API under /v1; Ctrl-C ends it)",
              flush=True)  # fmt: skip
        ended.wait()
    finally:
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
