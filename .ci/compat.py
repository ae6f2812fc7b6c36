"""Runs a telling subset of the tests on each supported combination of Prefect and Dask.

`make compat` calls it. An environment is made for each combination: a virtual environment that
sees the packages of `.venv`, into which only the packages that differ are installed. What came of
it is printed as the rows of the table in `docs/operating.md`; `--write` puts them there.

    .ci/compat.py                     all combinations, one after the other
    .ci/compat.py 3.9.1/2026.3.0      one of them
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".compat"
PAGE = ROOT / "docs" / "operating.md"
BEGIN, END = "<!-- begin: make compat -->", "<!-- end: make compat -->"

PREFECT = ("3.8.8", "3.9.1")
DASK = ("2026.3.0", "2026.7.1", "2026.8.0")
FREE = ("prefect", "dask", "distributed", "certifi", "ruamel.yaml", "apprise", "python-slugify")
"""Packages that are not held to `constraints.txt`: those that differ, and what they ask for."""
SUBSET = (
    "tests/unit/test_contract.py",
    "tests/unit/test_slots.py",
    "tests/unit/test_dask_logs.py",
    "tests/unit/test_transactions.py",
    "tests/unit/test_persisted_results.py",
    "tests/sim/test_engine_determinism.py",
    "tests/sim/test_engine_features.py",
    "tests/sim/test_engine_plugins.py",
    "tests/sim/test_placement.py",
    "tests/integration/test_placement_live.py",
    "tests/integration/test_transfer.py",
    "tests/integration/test_tiers.py",
    "tests/integration/test_warm_workers.py",
    "tests/integration/test_transactions.py",
    "tests/integration/test_without_private_parts.py",
    "tests/integration/test_losses_*.py",
    "tests/integration/test_parity_*.py",
    "tests/differential/test_flows.py",
)
CHAPTERS = ("code", "order", "results", "arguments")
"""Chapters of the differential suite, under the setting `deepflow`."""


@dataclass(frozen=True, slots=True)
class Combination:
    """One version of Prefect and one of Dask."""

    prefect: str
    dask: str

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        return f"{self.prefect}/{self.dask}"

    @property
    def folder(self) -> Path:
        """Where its environment is."""
        return FOLDER / f"prefect-{self.prefect}-dask-{self.dask}"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of the tests on one combination."""

    combination: Combination
    passed: int
    failed: int
    skipped: int
    seconds: float

    def row(self) -> str:
        """The row of the table."""
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        return (
            f"| {self.combination.prefect} | {self.combination.dask} | {today} "
            f"| {self.passed} | {self.failed} | {self.skipped} |"
        )


def make_environment(combination: Combination) -> None:
    """A virtual environment with these versions in front of what this interpreter has."""
    if combination.folder.exists():
        shutil.rmtree(combination.folder)
    venv.create(combination.folder, with_pip=False, symlinks=True)
    packages = next((combination.folder / "lib").glob("python*/site-packages"))
    (packages / "of_the_base.pth").write_text(sysconfig.get_path("purelib") + "\n")
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    held = [line for line in lines if line.partition("==")[0] not in FREE]
    constraints = combination.folder / "constraints.txt"
    constraints.write_text("\n".join(held) + "\n")
    wanted = (
        f"prefect=={combination.prefect}",
        f"dask=={combination.dask}",
        f"distributed=={combination.dask}",
    )
    command = [combination.python, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    subprocess.run([*command, "-c", constraints, *wanted], check=True, cwd=ROOT)


def run_tests(combination: Combination, arguments: Iterable[str]) -> Result:
    """Run the subset on a combination."""
    files = [
        str(path.relative_to(ROOT)) for pattern in SUBSET for path in sorted(ROOT.glob(pattern))
    ]
    report = combination.folder / "report.xml"
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_HOME": home}
        for name in ("PREFECT_API_URL", "DEEPFLOW_ADDRESS"):
            environment.pop(name, None)
        others = f"not test_flows.py or {' or '.join(f'deepflow-{one}' for one in CHAPTERS)}"
        command = [combination.python, "-m", "pytest", "-q", "-m", "not slow", "-k", others]
        options = ["-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
        subprocess.run([*command, *options, *files], check=False, cwd=ROOT, env=environment)
    return _read(combination, report)


def _read(combination: Combination, report: Path) -> Result:
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    n_all = n_failed = n_skipped = 0
    seconds = 0.0
    for suite in suites:
        n_all += int(suite.get("tests", 0))
        n_failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        n_skipped += int(suite.get("skipped", 0))
        seconds += float(suite.get("time", 0))
    return Result(combination, n_all - n_failed - n_skipped, n_failed, n_skipped, seconds)


def write(results: Iterable[Result]) -> None:
    """Put the rows into the page; rows of combinations that did not run stay."""
    text = PAGE.read_text()
    head, _, rest = text.partition(BEGIN + "\n")
    table, _, tail = rest.partition(END)
    rows = {_key(line): line for line in table.splitlines() if re.match(r"\| \d", line)}
    for result in results:
        rows[result.combination.prefect, result.combination.dask] = result.row()
    lines = [
        "| Prefect | Dask | tested on | passed | failed | skipped |",
        "|---|---|---|---|---|---|",
        *(rows[key] for key in sorted(rows)),
    ]
    PAGE.write_text(f"{head}{BEGIN}\n{chr(10).join(lines)}\n{END}{tail}")


def _key(line: str) -> tuple[str, str]:
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    return cells[0], cells[1]


def main() -> int:
    """0 where nothing failed."""
    every = {one.name: one for one in (Combination(p, d) for p in PREFECT for d in DASK)}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("combinations", nargs="*", metavar="PREFECT/DASK", help=", ".join(every))
    parser.add_argument("--write", action="store_true", help=f"enter the rows in {PAGE.name}")
    parser.add_argument("--pytest", default="", help="more arguments for pytest")
    asked = parser.parse_args()
    for name in asked.combinations:
        if name not in every:
            parser.error(f"{name} is none of {', '.join(every)}")
    results = []
    for name in asked.combinations or every:
        make_environment(every[name])
        results.append(run_tests(every[name], asked.pytest.split()))
        if asked.write:
            write(results)
    for result in results:
        print(f"{result.row()} {result.seconds:.0f} s")
    return 1 if any(result.failed for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
