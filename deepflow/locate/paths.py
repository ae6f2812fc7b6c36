"""Files of this machine: whether they lie on its own disks or on a mounted network filesystem."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Final

from deepflow.decide.location import Holder, Location
from deepflow.hints import Near
from deepflow.locate.hosts import this_machine
from deepflow.locate.resolvers import Resolver

__all__ = ["PathResolver", "is_on_network"]

_MOUNTS: Final = "/proc/mounts"

_NETWORK_FILESYSTEMS: Final = re.compile(
    "afs|beegfs(_nodev)?|ceph|cifs|davfs|gfs2|glusterfs|gpfs|lustre|nfs4?|ocfs2|orangefs|panfs"
    r"|pvfs2|smb3|wekafs|fuse\..*"
)
"""Types in the table of mounts whose files are equally far from every machine that mounts them;
whatever is mounted through FUSE (sshfs, s3fs, gcsfuse) counts among them."""


class PathResolver(Resolver):
    """Things to be near that are paths: this machine holds the file, if the file is on its disks.

    A file on a mounted network filesystem prefers no host. Where there is no table of mounts
    (elsewhere than Linux) every file counts as on this machine's disks.
    """

    schemes = ("path",)

    def __init__(self, *, mounts: str = _MOUNTS) -> None:
        self._mounts = mounts

    def resolve(self, near: Near) -> Location:
        """This machine, or no host. Raises `FileNotFoundError` for what is not there."""
        path = os.path.realpath(os.path.expanduser(near.value))
        try:
            n_bytes = None if os.path.isdir(path) else os.stat(path).st_size
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"there is no {path} on {socket.gethostname()}; "
                "if it lies on another machine, be near that host instead"
            ) from error
        if is_on_network(path, mounts=self._mounts):
            return Location(n_bytes=n_bytes)
        holder = Holder(socket.gethostname(), aliases=this_machine())
        return Location(hosts=(holder,), n_bytes=n_bytes)


def is_on_network(path: str, *, mounts: str = _MOUNTS) -> bool:
    """Whether `path` lies on a mounted network filesystem, by the table of mounts (a file)."""
    try:
        lines = Path(mounts).read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    real = os.path.realpath(path)
    point_so_far, kind_so_far = "", ""
    for line in lines:
        fields = line.split()
        if len(fields) < 3:
            continue
        point = _unescaped(fields[1])
        # The last line for a place is what is mounted on top there.
        if len(point) >= len(point_so_far) and _is_within(real, point):
            point_so_far, kind_so_far = point, fields[2]
    return _NETWORK_FILESYSTEMS.fullmatch(kind_so_far) is not None


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _unescaped(text: str) -> str:
    """The kernel writes space, tab, newline and backslash of a mount point as octal."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text
