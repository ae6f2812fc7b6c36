"""What is compiled decides as the Python files do: same workloads, same events to the last digit.

Runs where `make compiled` has built this very code.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("_compiled", ROOT / ".ci" / "compiled.py")
assert SPEC is not None
assert SPEC.loader is not None
compiled = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(compiled)


def is_built() -> bool:
    """Whether what is compiled was built from the files as they are."""
    for name in compiled.MODULES:
        copy: Path = compiled.BUILD / name
        if not copy.is_file() or copy.read_bytes() != (ROOT / name).read_bytes():
            return False
        if not list(copy.parent.glob(f"{copy.stem}.*.so")):
            return False
    return True


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_built(), reason="run `make compiled`, which builds this code"),
]

DIGESTS = """
import sys
from hashlib import sha256
from deepflow.decide.place import binder, fleet
from deepflow.sim.compare import experience_of, play
from tests.sim.test_placement import MIXED, WORKLOADS

print("compiled" if binder.__file__.endswith(".so") else "plain", file=sys.stderr)
past = [WORKLOADS["mixed"], WORKLOADS["layered"]]
experience = experience_of(past, MIXED, seed=3)
for name, workload in WORKLOADS.items():
    for policy in ("heft", "srw-heft", "eft", "best-fit", "oracle:heft"):
        for known in (None, experience):
            played = play(workload, MIXED, policy, seed=5, experience=known)
            assert played.faults == (), played.faults
            events = sha256(repr(played.outcome.events).encode()).hexdigest()
            print(name, policy, known is not None, played.outcome.makespan_s, events)
"""


def events_of(first: Path) -> tuple[str, list[str]]:
    """What was imported, and the digest of each run's events, with `first` first on the path."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", DIGESTS],
        env={**os.environ, "PYTHONPATH": f"{first}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()[-1], done.stdout.splitlines()


def test_compiled_and_plain_decide_alike() -> None:
    how, plain = events_of(ROOT)
    assert how == "plain"
    how, fast = events_of(compiled.BUILD)
    assert how == "compiled"
    assert len(plain) == 60
    assert fast == plain
