"""Checks once, within three seconds, whether the Hub can be reached, before its client is used.

Problem: the client retries for a minute, and a name server that does not answer has no timeout. So
we check first. If the Hub can't be reached, this process and the processes that it starts use only
the cache, as with HF_HUB_OFFLINE=1.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
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
        constants.HF_HUB_OFFLINE = True
        if datasets := sys.modules.get("datasets"):  # it copied the constant at its import
            datasets.config.HF_HUB_OFFLINE = True
    return reason


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
    found: list[str] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), _WAIT_SECONDS).close()
            found.append("")
        except OSError as error:
            found.append(f"{host}: {error.strerror or error}")

    # A name look-up has no timeout. So a daemon thread does it, and we wait only so long for it.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_WAIT_SECONDS)
    return found[0] if found else f"{host}: no answer within {_WAIT_SECONDS} s"
