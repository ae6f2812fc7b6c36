"""Public data that tests read where it is there: `SHARED_DATA`, else `shared/data` beside the
checkout. Where it is absent, tests that need it skip and say so."""

import os
from pathlib import Path

import pytest

DATA = Path(
    os.environ.get("SHARED_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
)
WORKFLOWS = DATA / "workflows"
GAVEL_FILE = DATA / "heterogeneity" / "gavel_throughputs.json.zst"

needs_workflows = pytest.mark.skipif(
    not WORKFLOWS.is_dir(), reason=f"no workflows at {WORKFLOWS}; set SHARED_DATA"
)
needs_gavel = pytest.mark.skipif(
    not GAVEL_FILE.is_file(), reason=f"no throughputs at {GAVEL_FILE}; set SHARED_DATA"
)
