"""Tests the server with thousands of requests, some broken, cut off or of 1 MB. On Ray Serve it
also deploys a new model under load and kills a replica under load.

`--only` runs a part. RESULTS.md has the results. The model is the sample, one thread per replica.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import IO, Any

ROOT = Path(__file__).parent.parent
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}

import httpx  # noqa: E402
import psutil  # noqa: E402
import ray  # noqa: E402
from ray import serve as ray_serve  # noqa: E402

from dpo_train import sample  # noqa: E402
from serve.app import build  # noqa: E402

REQUESTS, CLIENTS, PORT = 10_000, 32, 8124
CHAT = f"http://127.0.0.1:{PORT}/v1/chat/completions"
BROKEN = [b"{", b"[]", b'{"messages": []}', b'{"messages": [{"role": "robot", "content": "Hi"}]}',
          b'{"messages": [{"role": "user", "content": "Hi"}], "temperature": "hot"}']  # fmt: skip


def body(draw: random.Random) -> dict[str, Any]:
    """Make the body of a request."""
    words = " ".join(draw.choices(["do", "bats", "see", "in", "Lisbon", "at", "night"], k=20))
    message = {"role": "user", "content": words[: draw.randint(1, 100)]}
    return {"messages": [message], "max_tokens": draw.randint(1, 40), "stream": draw.random() < 0.3}


class Load:
    """Clients that send requests until they are stopped, with their answers and times."""

    def __init__(self, clients: int, unruly: bool, most: int | None = None) -> None:
        self.statuses: Counter[Any] = Counter()
        self.seconds: list[tuple[float, float]] = []
        """The beginning and the duration of each whole answer."""
        self._most, self._unruly = most, unruly
        self._lock, self._over = threading.Lock(), threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=[number]) for number in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def count(self) -> int:
        return self.statuses.total()

    def wait(self, count: int | None = None) -> None:
        while any(t.is_alive() for t in self._threads) and (count is None or self.count < count):
            time.sleep(0.1)

    def stop(self) -> None:
        self._over.set()
        self.wait()

    def _work(self, number: int) -> None:
        draw = random.Random(number)
        with httpx.Client(timeout=60) as client:
            while not self._over.is_set() and (self._most is None or self.count < self._most):
                status = self._ask(client, draw)
                with self._lock:
                    self.statuses[status] += 1

    def _ask(self, client: httpx.Client, draw: random.Random) -> Any:
        began, kind = time.monotonic(), draw.random() if self._unruly else 1.0
        try:
            if kind < 0.05:
                headers = {"content-type": "application/json"}
                return client.post(CHAT, content=draw.choice(BROKEN), headers=headers).status_code
            if kind < 0.10:
                with client.stream("POST", CHAT, json=body(draw) | {"stream": True}) as answer:
                    next(answer.iter_raw())
                return "cut off" if answer.status_code == 200 else answer.status_code
            if kind < 0.11:
                message = {"role": "user", "content": "bats " * 198_000}
                return client.post(CHAT, json={"messages": [message]}).status_code
            answer = client.post(CHAT, json=body(draw))
            status: Any = answer.status_code
            is_stream = answer.headers["content-type"].startswith("text/event-stream")
            if is_stream and not answer.text.endswith("data: [DONE]\n\n"):
                status = "broken stream"
        except httpx.HTTPError as error:
            return type(error).__name__
        with self._lock:
            self.seconds.append((began, time.monotonic() - began))
        return status


@contextlib.contextmanager
def on_ray() -> Iterator[None]:
    """Run Ray Serve during a `with` block."""
    ray.init("local", num_cpus=4, log_to_driver=False, logging_level="ERROR",
             include_dashboard=False)  # fmt: skip
    ray_serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    try:
        yield
    finally:
        ray.shutdown()


def deploy(**options: Any) -> None:
    """Deploy a model."""
    given = {"model": f"sample={sample.MODEL}", "cpus": 0.5, **options}
    ray_serve.run(build(given), route_prefix="/")


def replicas() -> list[int]:
    """Return the process ids of the replicas."""
    ours = psutil.Process().children(recursive=True)
    found = []
    for process in ours:
        with contextlib.suppress(psutil.NoSuchProcess):  # it was killed just now
            if " ".join(process.cmdline()).startswith("ray::ServeReplica"):
                found.append(process.pid)
    return found


def running() -> int:
    """Return the number of replicas that Ray Serve says are ready."""
    (application,) = ray_serve.status().applications.values()
    (deployment,) = application.deployments.values()
    return int(deployment.replica_states.get("RUNNING", 0))


def resident(pid: int) -> int:
    """Return the resident megabytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def watch_health(is_over: Any, took: Any) -> None:
    """Ask for health twenty times a second, in another process than the clients' threads."""
    seconds = []
    with httpx.Client(timeout=60) as client:
        while not is_over.wait(0.05):
            began = time.monotonic()
            assert client.get(f"http://127.0.0.1:{PORT}/healthz").status_code == 200
            seconds.append(time.monotonic() - began)
    took.put(sorted(seconds))


def soak() -> None:
    with tempfile.TemporaryFile("w+") as errors:
        under_load(errors)
        errors.seek(0)
        written = errors.read().splitlines()
    print(f"soak: the server wrote {len(written)} lines to stderr: {written[:5]}")


def under_load(errors: IO[str]) -> None:
    """Prints what a server's clients saw; what it writes to stderr goes to `errors`."""
    server = subprocess.Popen(
        [sys.executable, "-m", "serve", "sample", "--port", str(PORT)],
        stdout=subprocess.DEVNULL,
        stderr=errors,
    )
    try:
        time.sleep(1)
        httpx.get(CHAT, timeout=60)  # its socket is there before the model: it waits
        began = time.monotonic()
        apart = multiprocessing.get_context("spawn")
        is_over, took = apart.Event(), apart.Queue()
        apart.Process(target=watch_health, args=(is_over, took)).start()
        load = Load(CLIENTS, unruly=True, most=REQUESTS)
        load.wait(1000)
        early = resident(server.pid)
        load.wait()
        late = resident(server.pid)
        is_over.set()
        health = took.get(timeout=60)
    finally:
        server.terminate()
        server.wait()
    print(f"soak: {load.count} requests in {time.monotonic() - began:.0f} s: {dict(load.statuses)}")
    print(f"soak: resident {early} MB after 1,000 requests, {late} MB at the end "
          f"({late / early - 1:+.1%})")  # fmt: skip
    shares = {share: health[int(share * len(health))] * 1000 for share in (0.5, 0.95, 0.99)}
    print("soak: /healthz, ms: "
          + ", ".join(f"{share:.0%} within {ms:.0f}" for share, ms in shares.items())
          + f", the slowest {health[-1] * 1000:.0f}, of {len(health)}")  # fmt: skip


@on_ray()
def swap() -> None:
    """Deploy another model under load."""
    deploy()
    load = Load(4, unruly=False)
    load.wait(100)
    usual = median(seconds for _, seconds in load.seconds)
    began = time.monotonic()
    deploy(author="the new one")
    ended = time.monotonic()
    time.sleep(2)
    load.stop()
    during = [seconds for at, seconds in load.seconds if at + seconds > began and at < ended]
    before = sorted(seconds for at, seconds in load.seconds if at + seconds < began)
    print(
        f"swap: {dict(load.statuses)}; {len(during)} requests in the {ended - began:.1f} s of the "
        f"swap, the slowest {max(during):.3f} s, the median {median(during):.3f}; before, the "
        f"slowest {before[-1]:.3f}, the median {usual:.3f}"
    )


@on_ray()
def kill() -> None:
    """Kill a replica under load."""
    deploy(min_replicas=2, max_replicas=2)
    load = Load(8, unruly=False)
    load.wait(200)
    before = replicas()
    os.kill(before[0], signal.SIGKILL)
    began = time.monotonic()
    while len(set(replicas()) - {before[0]}) < 2 or running() < 2:
        time.sleep(0.1)
    back = time.monotonic() - began
    time.sleep(3)
    load.stop()
    print(f"kill: {dict(load.statuses)}; at most 8 were running; a new replica after {back:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = {"soak": soak, "swap": swap, "kill": kill}
    parser.add_argument("--only", choices=parts, nargs="*", default=list(parts))
    names = parser.parse_args().only
    for name in names:
        parts[name]()


if __name__ == "__main__":
    main()
