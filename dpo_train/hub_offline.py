"""Whether the Hub can be reached: asked once, within three seconds, before its client is.

The client tries again for a minute, and a name server that does not answer can't be timed out. So
we look ourselves. Where the Hub is out of reach, this process and those that it starts use what is
cached, as under HF_HUB_OFFLINE=1, until somebody looks again.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from functools import cache
from urllib.parse import urlsplit

_WAIT_SECONDS = 3


@cache
def look_for_hub() -> str:
    """Why the Hub can't be reached; empty if it can, or if it was switched off before."""
    from huggingface_hub import constants  # slow to import

    if constants.HF_HUB_OFFLINE:
        return ""
    reason = _reason_against(*_address(constants.ENDPOINT))
    if reason:
        os.environ["HF_HUB_OFFLINE"] = "1"  # of the processes that this one starts
        _switch(is_offline=True)
    return reason


def look_again() -> str:
    """Why the Hub can't be reached now; where it was out of reach before, it is used again if it
    can be. Empty if it can, or if the user has switched it off."""
    if look_for_hub():
        os.environ.pop("HF_HUB_OFFLINE", None)
        _switch(is_offline=False)
        look_for_hub.cache_clear()
    return look_for_hub()


def _switch(is_offline: bool) -> None:
    from huggingface_hub import constants  # slow to import

    constants.HF_HUB_OFFLINE = is_offline
    if datasets := sys.modules.get("datasets"):  # it took its own copy when it was imported
        datasets.config.HF_HUB_OFFLINE = is_offline


def _address(endpoint: str) -> tuple[str, int]:
    """The host and port to which a request to the Hub is sent: its own, or those of a proxy."""
    from urllib.request import getproxies, proxy_bypass  # slow to import

    url = urlsplit(endpoint)
    proxies, host = getproxies(), url.hostname or ""
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(host):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return url.hostname or "", url.port or {"https": 443}.get(url.scheme, 80)


def _reason_against(host: str, port: int) -> str:
    """Why no connection is made there within three seconds; empty if one is."""
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    awaited = [host]  # until its addresses are known

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            answers.put(f"{host}: {error.strerror or error}")
            return
        awaited[:] = [str(address[0]) for *_, address in found]
        for address in awaited:  # at once: of two kinds of address one may never answer
            threading.Thread(target=connect, args=[address], daemon=True).start()

    def connect(address: str) -> None:
        try:
            socket.create_connection((address, port), _WAIT_SECONDS).close()
            answers.put("")
        except OSError as error:
            answers.put(f"{host}: {error.strerror or error}")

    # Looking a name up can't be timed out: so a thread waits for it, and nobody for the thread.
    threading.Thread(target=look_up, daemon=True).start()
    until, refusals = time.monotonic() + _WAIT_SECONDS, 0
    while refusals < len(awaited):
        try:
            reason = answers.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return f"{host}: no answer within {_WAIT_SECONDS} s"
        if not reason:
            return ""
        refusals += 1
    return reason
