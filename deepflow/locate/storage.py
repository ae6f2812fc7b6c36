"""From a path or URL to fsspec's filesystem, the client that reads it.

fsspec's own configuration applies: `~/.config/fsspec/*.json` and `FSSPEC_<PROTOCOL>_<OPTION>` in
the environment. HDFS is read by WebHDFS (protocol `webhdfs`), which needs no Java:
`hdfs://namenode:8020/path` becomes WebHDFS at that name node, on port 9870 if none is configured;
`swebhdfs://` is the same over TLS, on 9871. Options: user, kerberos, token, password, port, host
(as fsspec's `WebHDFS` takes them).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit

import fsspec
from fsspec.config import conf as fsspec_conf
from fsspec.core import url_to_fs

from deepflow.errors import ConfigurationError

__all__ = ["HDFS_SCHEMES", "filesystem", "safe_text", "scheme_of"]

HDFS_SCHEMES: Final = ("hdfs", "webhdfs", "swebhdfs")
_WEBHDFS_PORT: Final = 9870
_SWEBHDFS_PORT: Final = 9871
_CONNECT_TIMEOUT_S: Final = 5.0
_READ_TIMEOUT_S: Final = 60.0

_EXTRAS: Final = {**dict.fromkeys(HDFS_SCHEMES, "hdfs"), "s3": "s3", "s3a": "s3"}
"""The extra of this package that brings what a scheme needs."""


def scheme_of(url: str) -> str:
    """The scheme of a URL in lower case; empty for a path."""
    return urlsplit(url).scheme.lower() if "://" in url else ""


def safe_text(text: str) -> str:
    """`text`, a URL or a sentence with URLs, without users, passwords and queries.

    For logs and errors: the query of WebHDFS may carry a delegation token.
    """
    return re.sub(r"\?[^\s?'\"()]*=[^\s'\"()]*", "", re.sub(r"(?<=://)[^/@\s]*@", "", text))


def filesystem(url: str, options: Mapping[str, object] | None = None) -> tuple[Any, str]:
    """fsspec's filesystem for a path or URL, and the path on it.

    `options` go to the filesystem and win over what the URL says. Raises `ConfigurationError` for a
    scheme that is not known, and `ImportError` naming the extra to install where a package is
    missing.
    """
    scheme = scheme_of(url)
    given = dict(options or {})
    if not scheme:
        return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(url))
    try:
        if scheme in HDFS_SCHEMES:
            return _webhdfs(url, scheme, given)
        fs, path = url_to_fs(url, **given)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        remedy = f"pip install 'prefect-deepflow[{extra}]'" if extra else "install it"
        raise ImportError(f"{scheme}:// needs a package: {error}; {remedy}") from error
    except ValueError as error:
        raise ConfigurationError(
            f"{safe_text(url)} cannot be opened: {error}; "
            "give a path, or a URL of a storage that fsspec knows"
        ) from error
    return fs, str(path)


def _webhdfs(url: str, scheme: str, given: dict[str, object]) -> tuple[Any, str]:
    """WebHDFS at the name node of the URL."""
    webhdfs = fsspec.get_filesystem_class("webhdfs")
    said = webhdfs._get_kwargs_from_urls(f"webhdfs://{url.split('://', 1)[1]}")
    configured = fsspec_conf.get("webhdfs", {})
    if scheme == "hdfs":
        said.pop("port", None)  # that of Hadoop's own protocol, where no HTTP is spoken
    if scheme == "swebhdfs":
        said["use_https"] = True
    if "port" not in said and "port" not in configured:
        said["port"] = _SWEBHDFS_PORT if scheme == "swebhdfs" else _WEBHDFS_PORT
    options = {**said, **given}
    if not options.get("host") and "host" not in configured:
        raise ConfigurationError(
            f"{safe_text(url)} names no name node; write {scheme}://namenode/path, or set host for "
            "webhdfs in fsspec's configuration"
        )
    fs = webhdfs(**{k: v for k, v in options.items() if v is not None and v != ""})
    for prefix in ("http://", "https://"):
        fs.session.mount(prefix, _timed_adapter())
    return fs, str(webhdfs._strip_protocol(f"webhdfs://{url.split('://', 1)[1]}"))


@cache
def _timed_adapter() -> Any:
    """requests waits for ever unless told otherwise, and fsspec does not tell it."""
    from requests.adapters import HTTPAdapter

    class TimedAdapter(HTTPAdapter):
        def send(self, request: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            if kwargs.get("timeout") is None:
                kwargs["timeout"] = (_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S)
            return super().send(request, **kwargs)

    return TimedAdapter()
