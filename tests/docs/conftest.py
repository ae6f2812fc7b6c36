"""A cluster for the code of the docs, and a process that runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster

from deepflow.runner.server import EmbeddedServer
from tests.docs.markdown import ROOT


class Reader:
    """Has `tests.docs.reader` run code, and says what came of it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, **request: Any) -> tuple[bool, str, str]:
        """Whether it went well, what was printed, and the traceback."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that runs the code of the docs has ended"
        told = json.loads(line)
        return told["ok"], told["printed"], told["error"]


@pytest.fixture(scope="session")
def docs_cluster(server: EmbeddedServer) -> Iterator[LocalCluster]:
    """Two workers, which code that names no cluster of its own runs on."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=40
    ) as running:
        yield running


@pytest.fixture(scope="session")
def reader(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """The process that runs code, for the whole session."""
    log = tmp_path_factory.mktemp("reader") / "stderr"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.docs.reader"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield Reader(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture(scope="session")
def page_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each page has a folder of its own."""
    return tmp_path_factory.mktemp("pages")
