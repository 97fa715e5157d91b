"""Whether the Hub can be reached: asked once, within three seconds, before its client is.

The client tries again for a minute, and a name server that does not answer can't be timed out. So
we look ourselves. Where the Hub is out of reach, this process and those that it starts use what is
cached, as under HF_HUB_OFFLINE=1.
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
    """Why the Hub can't be reached; empty if it can, or if it was switched off before."""
    from huggingface_hub import constants  # slow to import

    if constants.HF_HUB_OFFLINE:
        return ""
    reason = _reason_against(*_address(constants.ENDPOINT))
    if reason:
        os.environ["HF_HUB_OFFLINE"] = "1"  # of the processes that this one starts
        constants.HF_HUB_OFFLINE = True
        if datasets := sys.modules.get("datasets"):  # it took its own copy when it was imported
            datasets.config.HF_HUB_OFFLINE = True
    return reason


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
    found: list[str] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), _WAIT_SECONDS).close()
            found.append("")
        except OSError as error:
            found.append(f"{host}: {error.strerror or error}")

    # Looking a name up can't be timed out: so a thread waits for it, and nobody for the thread.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_WAIT_SECONDS)
    return found[0] if found else f"{host}: no answer within {_WAIT_SECONDS} s"
