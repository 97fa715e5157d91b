"""Machines that `ray up` can reach: sshd in network namespaces. Each has its own processes, home
and temporary folder of Ray, and all share one folder.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from tests.helpers.network import Network
from tests.helpers.ports import wait_for_port

TOOLS = ("sshd", "ssh", "ssh-keygen", "rsync")
_SSHD_PATH = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))


def missing_tools() -> list[str]:
    """Return the programs that these tests need and that are missing."""
    return [name for name in TOOLS if shutil.which(name, path=_SSHD_PATH) is None]


class SshNodes:
    """Runs sshd on nodes of a network, for root with the key in `key`."""

    def __init__(self, network: Network, folder: Path, shared: Path) -> None:
        self._network = network
        self._folder = folder
        self._shared = shared
        self._running: list[subprocess.Popen[bytes]] = []
        self.key = folder / "key"
        self.path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        for name in ("key", "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name],
                           check=True)  # fmt: skip

    def start(self, node: int) -> None:
        """Start sshd on a node, in namespaces of its own."""
        home = self._folder / f"home{node}"
        home.mkdir()
        (home / ".bashrc").write_text(f"export PATH={self.path}:$PATH\n")
        config = self._folder / f"sshd{node}.conf"
        config.write_text(f"""
            HostKey {self._folder}/host_key
            AuthorizedKeysFile {self._folder}/key.pub
            PidFile none
            PermitRootLogin yes
            StrictModes no
            UsePAM no
            SetEnv HOME={home} PATH={self.path}
        """)
        # sshd needs the account `sshd`, which some machines lack. A login starts in root's home.
        accounts = self._folder / f"passwd{node}"
        accounts.write_text(
            f"root:x:0:0:root:{home}:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
        )
        script = f"""
            mount --bind "{accounts}" /etc/passwd &&
            mount --bind /dev/null /etc/resolv.conf &&
            mount -t tmpfs tmpfs /run && mkdir /run/sshd &&
            mount -t tmpfs tmpfs /mnt && mkdir /mnt/shared &&
            mount --bind "{self._shared}" /mnt/shared &&
            mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray &&
            exec "{shutil.which("sshd", path=_SSHD_PATH)}" -D -e -f "{config}"
        """
        with (self._folder / f"sshd{node}.log").open("w") as log:
            process = subprocess.Popen(
                self._network.on(node, ["unshare", "-m", "-p", "-f", "--mount-proc",
                                        "--kill-child", "sh", "-c", script]),
                stdout=log, stderr=log,
            )  # fmt: skip
        self._running.append(process)
        log_path = self._folder / f"sshd{node}.log"
        wait_for_port(self._network.address(node), 22, process, log_path, 20)

    def close(self) -> None:
        """End all nodes."""
        for process in self._running:
            # When the first process of a namespace dies, all others in it die as well.
            for child in psutil.Process(process.pid).children():
                child.kill()
            process.wait(timeout=20)
