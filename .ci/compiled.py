"""Compiles the modules that decide where a task runs, with mypyc: `make compiled`.

The Python files stay what runs where no compiled module lies beside them; both decide alike, which
`tests/sim/test_compiled.py` shows. Two things are made:

- `build/compiled/`: a copy of the package with the compiled modules in it, to be put on the path;
- `dist/prefect_deepflow_compiled-*.whl`: the compiled modules alone. Installed beside the package
  they are found before the Python files. They are good for that very version of it.

A C compiler is needed, and some minutes.
"""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "compiled"
PLACE = (
    *("ahead", "binder", "candidates", "decision", "feasible", "fleet", "front", "hold", "links"),
    *("ready", "run_times", "shortlist", "sources", "task"),
)
"""Policies are not compiled: users derive theirs from them."""
MODULES = (
    "deepflow/decide/estimate.py",
    "deepflow/decide/rank.py",
    *(f"deepflow/decide/place/{name}.py" for name in PLACE),
)
# What is not compiled is not read: types of numpy and torch would take minutes.
MYPY_CONFIG = """\
[mypy]
python_version = 3.11
follow_imports = skip
ignore_missing_imports = True
[mypy-mypy_extensions]
follow_imports = normal
"""


def main() -> None:
    """Copy, compile, and make the wheel."""
    shutil.rmtree(BUILD, ignore_errors=True)
    shutil.copytree(
        ROOT / "deepflow", BUILD / "deepflow", ignore=shutil.ignore_patterns("__pycache__")
    )
    config = BUILD / "mypy.ini"
    config.write_text(MYPY_CONFIG)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    os.chdir(BUILD)

    from mypyc.build import mypycify
    from setuptools import setup

    modules = mypycify(
        ["--config-file", str(config), *MODULES],
        opt_level="2",
        debug_level="0",
        group_name="deepflow_compiled",
    )
    for command in (["build_ext", "--inplace"], ["bdist_wheel", "--dist-dir", str(ROOT / "dist")]):
        sys.argv[1:] = ["--quiet", *command]
        setup(
            name="prefect-deepflow-compiled",
            version=version,
            description="Compiled modules for prefect-deepflow of the same version.",
            install_requires=[f"prefect-deepflow=={version}"],
            packages=[],
            py_modules=[],
            ext_modules=modules,
        )
    for made in (BUILD, *(ROOT / "dist").glob("prefect_deepflow_compiled-*.whl")):
        sys.stdout.write(f"{made.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
