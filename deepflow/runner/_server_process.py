"""The process that an `EmbeddedServer` starts: Prefect's server, which ends when its parent does.

Run as `python -m deepflow.runner._server_process <arguments of prefect>`. Standard input is a pipe
whose other end the parent holds and never writes to. However the parent ends, `SIGKILL` included,
the pipe closes, and the server stops itself: no orphan keeps a port and a database.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

GRACE_S = 5.0
"""Seconds between asking the server to stop and killing it, once the parent is gone."""


def _end_with_parent() -> None:
    """Wait for the parent's end of the pipe to close, then stop this process and its children."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    # Open websockets can keep uvicorn from stopping. The parent made this process a group leader.
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> None:
    """Run Prefect's command line in this process, under watch."""
    if os.getpgrp() != os.getpid():
        raise SystemExit(
            "deepflow.runner._server_process is started by EmbeddedServer, in its own process "
            "group; to start a server by hand use `prefect server start`"
        )
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    from deepflow.backend.contract import SERVER, may_use

    may_use(SERVER)
    from prefect.cli import app

    sys.argv[0] = "prefect"
    app()


if __name__ == "__main__":
    main()
