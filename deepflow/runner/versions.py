"""Which versions deepflow works with, looked at before anything of theirs is reached into.

The runner uses parts of Prefect and Dask that are no public interface. With versions from outside
these ranges it would fail somewhere in the middle, with an error that names neither. Within the
ranges, `deepflow.backend.contract` looks at the parts themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from deepflow.errors import IncompatibleVersionError

__all__ = ["SUPPORTED", "check_versions"]

SUPPORTED: Final[Mapping[str, str]] = {
    "prefect": ">=3.8.8,<3.10",
    "dask": ">=2026.3.0",
    "distributed": ">=2026.3.0",
}
"""As in pyproject.toml; a test keeps the two the same."""


def check_versions(installed: Callable[[str], str] = version) -> None:
    """Raise :class:`IncompatibleVersionError` for the first package that is of no such version.

    A package without metadata, as in a checkout that is only on the path, is passed over.
    """
    from packaging.specifiers import SpecifierSet

    for package, wanted in SUPPORTED.items():
        try:
            found = installed(package)
        except PackageNotFoundError:
            continue
        if not SpecifierSet(wanted).contains(found, prereleases=True):
            raise IncompatibleVersionError(
                f"{package} {found} is installed, but this deepflow works with "
                f"{package}{wanted} only; pip install '{package}{wanted}', or install the deepflow "
                f"that was made for {package} {found}"
            )
