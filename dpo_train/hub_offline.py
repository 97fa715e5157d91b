"""Checks once, within three seconds, whether the Hub can be reached, before its client is used.

Problem: the client retries for a minute, and a name server that does not answer has no timeout. So
we check first. If the Hub can't be reached, this process and the processes that it starts use only
the cache, as with HF_HUB_OFFLINE=1, until somebody looks again.
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
    """Return why the Hub can't be reached; empty if it can, or if HF_HUB_OFFLINE was set before."""
    from huggingface_hub import constants  # slow to import

    if constants.HF_HUB_OFFLINE:
        return ""
    reason = _reason_against(*_address(constants.ENDPOINT))
    if reason:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for the processes that this one starts
        _switch(is_offline=True)
    return reason


def look_again() -> str:
    """Look again, and return what `look_for_hub` returns.

    If the Hub was out of reach before and answers now, this process uses it again.
    """
    if look_for_hub():
        os.environ.pop("HF_HUB_OFFLINE", None)
        _switch(is_offline=False)
        look_for_hub.cache_clear()
    return look_for_hub()


def _switch(is_offline: bool) -> None:
    from huggingface_hub import constants  # slow to import

    constants.HF_HUB_OFFLINE = is_offline
    if datasets := sys.modules.get("datasets"):  # it copied the constant at its import
        datasets.config.HF_HUB_OFFLINE = is_offline


def _address(endpoint: str) -> tuple[str, int]:
    """Return the host and port that get a request to the Hub: the Hub's, or those of a proxy."""
    from urllib.request import getproxies, proxy_bypass  # slow to import

    url = urlsplit(endpoint)
    proxies, host = getproxies(), url.hostname or ""
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(host):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return url.hostname or "", url.port or {"https": 443}.get(url.scheme, 80)


def _reason_against(host: str, port: int) -> str:
    """Return why no connection can be made within three seconds; empty if one can."""
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

    # A name look-up has no timeout. So a daemon thread does it, and we wait only so long for it.
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
