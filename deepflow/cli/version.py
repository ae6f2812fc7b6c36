"""`deepflow version`: what is installed, whether that was tested, and what is leaned on."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import click

from deepflow.cli._output import Column, as_json, print_json, print_table, say, wide

if TYPE_CHECKING:
    from deepflow.backend.contract import Row

# The set in constraints.txt is among them; a test looks. `make compat` runs the others.
TESTED: Mapping[str, tuple[str, ...]] = {
    "prefect": ("3.8.8", "3.9.1"),
    "dask": ("2026.3.0", "2026.7.1", "2026.8.0"),
    "distributed": ("2026.3.0", "2026.7.1", "2026.8.0"),
    "torch": ("2.13.0",),
}


@dataclass(frozen=True, slots=True)
class Installed:
    """One package: the version here (None: not installed), and those that were tested."""

    package: str
    installed: str | None
    tested: tuple[str, ...]
    is_tested: bool


def installed_versions() -> list[Installed]:
    """deepflow itself, Python, and each package that deepflow reaches into."""
    found = [
        Installed("prefect-deepflow", _version_of("prefect-deepflow"), (), is_tested=True),
        Installed("python", platform.python_version(), (), is_tested=True),
    ]
    for package, tested in TESTED.items():
        here = _version_of(package)
        # A local part (+cpu, +cu126) is another build of the same version.
        is_tested = here is not None and here.split("+")[0] in tested
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
@wide
@as_json
def command(is_wide: bool, is_json: bool) -> None:
    """Example: deepflow version --wide

    Versions of deepflow and of what it reaches into, and whether they are tested ones. Then the
    private parts of Dask and Prefect that deepflow leans on: those that are not as expected here,
    or, with --wide or --json, all of them.
    """
    from deepflow.backend import contract

    packages, parts = installed_versions(), list(contract.rows())
    if is_json:
        print_json(
            {
                "packages": [asdict(one) for one in packages],
                "private_parts": [asdict(one) for one in parts],
            }
        )
        return
    print_table(
        "",
        ("package", "installed", "tested with", ""),
        (
            (
                one.package,
                one.installed or "not installed",
                ", ".join(one.tested) or "-",
                "" if one.is_tested else "not a tested one",
            )
            for one in packages
        ),
    )
    _tell_parts(parts, is_wide=is_wide)


def _tell_parts(parts: Sequence[Row], *, is_wide: bool) -> None:
    n_by_feature = Counter(one.feature for one in parts)
    unlike = [one for one in parts if one.difference]
    counted = f"{len(parts)} private parts of Dask and Prefect, for {len(n_by_feature)} features"
    if is_wide:
        print_table(
            counted,
            ("part", "feature", "used for", "looked at", "written for", "here", "without it"),
            (
                (
                    one.name,
                    one.feature,
                    one.purpose,
                    one.kind,
                    _written_for(one.written_for),
                    one.difference or "as expected",
                    one.without,
                )
                for one in parts
            ),
            is_wide=True,
        )
    if not unlike:
        say(f"deepflow leans on {counted}. All are as expected here.")
        return
    are = "is" if len(unlike) == 1 else "are"
    say(f"deepflow leans on {counted}. {len(unlike)} {are} not as expected here:")
    print_table(
        "",
        (Column("feature"), "not as expected", "so"),
        ((one.feature, one.difference, one.without) for one in unlike),
        is_wide=is_wide,
    )


def _written_for(forms: Mapping[str, str]) -> str:
    return "; ".join(f"{form} ({versions})" for versions, form in forms.items())
