"""Two network namespaces with a throttled link between them (`tc … tbf`, both directions).

Needs root and iproute2. Names carry the process's id; what a killed run left is removed first.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType

PREFIX = "dfx"
LEFT, RIGHT = "10.77.0.1", "10.77.0.2"


class Unavailable(Exception):
    """Namespaces cannot be made here; the message says why."""


def _ip(*words: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise Unavailable(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


class Link:
    """Namespaces `left` and `right` joined at `gbit` Gbit/s; a context manager."""

    def __init__(self, gbit: float) -> None:
        self.gbit = gbit
        self.left, self.right = f"{PREFIX}{os.getpid()}a", f"{PREFIX}{os.getpid()}b"

    def __enter__(self) -> Link:
        if not shutil.which("ip") or not shutil.which("tc"):
            raise Unavailable("iproute2 is not installed (Debian: iproute2)")
        for name in re.findall(rf"^({PREFIX}(\d+)[ab])\b", _ip("netns", "list"), re.MULTILINE):
            if not os.path.exists(f"/proc/{name[1]}"):
                _ip("netns", "delete", name[0], check=False)
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def _make(self) -> None:
        for name in (self.left, self.right):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        ends = ("link", "add", f"{self.left}v", "netns", self.left, "type", "veth", "peer", "name")
        _ip(*ends, f"{self.right}v", "netns", self.right)
        burst = max(32_000, int(self.gbit * 125e6 / 1000))  # a millisecond's worth
        for name, address in ((self.left, LEFT), (self.right, RIGHT)):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", f"{name}v")
            _ip("-n", name, "link", "set", f"{name}v", "up")
            rate = f"{self.gbit * 1000:g}mbit"
            words = ["tc", "-n", name, "qdisc", "add", "dev", f"{name}v", "root", "tbf"]
            words += ["rate", rate, "burst", str(burst), "latency", "50ms"]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                raise Unavailable(f"{' '.join(words)}: {done.stderr.strip()}")

    def _remove(self) -> None:
        for name in (self.left, self.right):
            for pid in _ip("netns", "pids", name, check=False).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _ip("netns", "delete", name, check=False)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()


def sent_bytes(device: str) -> int:
    """Bytes that left by a device of this process's namespace, by the kernel's count."""
    lines = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()
    line = next(line for line in lines if line.strip().startswith(device))
    return int(line.split(":")[1].split()[8])
