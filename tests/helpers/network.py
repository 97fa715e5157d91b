"""Addresses for nodes of one machine: network namespaces on a bridge, or loopback addresses.

In a namespace a node reaches the others only over the bridge, and its folder is its own disk: a
filesystem in memory that no other node sees. Where namespaces aren't allowed, loopback addresses
stand in, and the folder is shared.
"""

import contextlib
import os
import subprocess
from itertools import count
from pathlib import Path

_built = count()


class Network:
    """A network of `nodes` nodes, numbered from 0, for the duration of a `with` block."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        # An interface's name has at most 15 characters, and the kernel frees names late.
        number = os.getpid() * 3 + next(_built)
        self._tag = f"dt{number % 10_000_000}"
        self._subnet = f"10.206.{number % 256}"
        self.isolated = False

    def __enter__(self) -> "Network":
        try:
            self._build()
            self.isolated = True
        except (OSError, subprocess.CalledProcessError):
            self._remove()
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def address(self, node: int) -> str:
        """Return the address of a node."""
        return f"{self._subnet}.{11 + node}" if self.isolated else f"127.206.0.{11 + node}"

    @property
    def host(self) -> str:
        """The address at which the nodes reach this process."""
        return f"{self._subnet}.1" if self.isolated else "127.0.0.1"

    def inside(self, node: int, command: list[str], disk: Path) -> list[str]:
        """Return the command that runs `command` on a node, with its own disk."""
        if not self.isolated:
            return command
        # No name server can be reached. Without an entry names fail at once, not after 10 s.
        apart = ["unshare", "-m", "sh", "-c", f"""
            mount -t tmpfs tmpfs "{disk}" && mount --bind /dev/null /etc/resolv.conf && exec "$@"
        """, "sh"]  # fmt: skip
        return self.on(node, [*apart, *command])

    def on(self, node: int, command: list[str]) -> list[str]:
        """Return the command that runs `command` in a node's network; only if it is isolated."""
        return ["ip", "netns", "exec", f"{self._tag}n{node}", *command]

    def _build(self) -> None:
        tag, subnet = self._tag, self._subnet
        _ip(f"link add {tag} type bridge")
        _ip(f"addr add {subnet}.1/24 dev {tag}")
        _ip(f"link set {tag} up")
        for node in range(self._nodes):
            space, port = f"{tag}n{node}", f"{tag}v{node}"
            _ip(f"netns add {space}")
            _ip(f"link add {port} type veth peer name eth0 netns {space}")
            _ip(f"link set {port} master {tag} up")
            _ip(f"-n {space} addr add {subnet}.{11 + node}/24 dev eth0")
            _ip(f"-n {space} link set eth0 up")
            _ip(f"-n {space} link set lo up")
            # Ray finds its own address by the default route, so there must be one.
            _ip(f"-n {space} route add default via {subnet}.1")

    def _remove(self) -> None:
        for node in range(self._nodes):
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                _ip(f"netns del {self._tag}n{node}")
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            _ip(f"link del {self._tag}")


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True)
