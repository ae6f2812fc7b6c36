"""`deepflow version`: what is installed, and whether that is what was tested together."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import click

from deepflow.cli._output import as_json, print_json, print_table

# The set in constraints.txt; a test keeps the two the same.
TESTED = {
    "prefect": "3.8.8",
    "dask": "2026.8.0",
    "distributed": "2026.8.0",
    "torch": "2.13.0",
}


@dataclass(frozen=True, slots=True)
class Installed:
    """One package: the version here (None: not installed), and the one that was tested."""

    package: str
    installed: str | None
    tested: str | None
    is_tested: bool


def installed_versions() -> list[Installed]:
    """deepflow itself, Python, and each package that deepflow reaches into."""
    found = [
        Installed("prefect-deepflow", _version_of("prefect-deepflow"), None, is_tested=True),
        Installed("python", platform.python_version(), None, is_tested=True),
    ]
    for package, tested in TESTED.items():
        here = _version_of(package)
        # A local part (+cpu, +cu126) is another build of the same version.
        is_tested = here is not None and here.split("+")[0] == tested
        found.append(Installed(package, here, tested, is_tested))
    return found


def installed_version() -> str:
    """The version of deepflow itself."""
    return _version_of("prefect-deepflow") or "unknown"


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        if package == "prefect-deepflow":  # a checkout on the path, not installed
            from deepflow import __version__

            return __version__
        return None


@click.command("version", short_help="What is installed, and whether it is what was tested.")
@as_json
def command(is_json: bool) -> None:
    """Example: deepflow version --json

    Versions of deepflow and of what it reaches into, and whether they are the tested ones.
    """
    found = installed_versions()
    if is_json:
        print_json([asdict(one) for one in found])
        return
    print_table(
        "",
        ("package", "installed", "tested with", ""),
        (
            (
                one.package,
                one.installed or "not installed",
                one.tested or "-",
                "" if one.is_tested else "not the tested one",
            )
            for one in found
        ),
    )
