"""What the Prefect server has recorded of flow runs, where one answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from deepflow.errors import DeepflowError

__all__ = ["NoServerError", "Recorded", "recorded"]

_PATIENCE_S: Final = 2.0
_PAGE: Final = 200
"""The most that Prefect's server tells at once."""


class NoServerError(DeepflowError, RuntimeError):
    """No Prefect server can be asked; the message says why, as part of a sentence."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the server has recorded of one flow run."""

    state: str
    """The name of its state, such as Completed."""
    run_url: str
    """Its page in Prefect's UI."""
    report_url: str | None
    """The page of its report; None where it has left none."""


def recorded(runs: Sequence[str]) -> dict[str, Recorded]:
    """What is recorded of the flow runs with these ids, by id; those unknown to it are left out.

    Waits two seconds at most for each of three answers. Raises :class:`NoServerError` where no
    server is configured, or it does not answer.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        PREFECT_UI_URL,
        temporary_settings,
    )

    from deepflow.observe.artifact import REPORT_KEY

    url = PREFECT_API_URL.value()
    if not url:
        raise NoServerError("PREFECT_API_URL is not set")
    ids = [run for run in runs if _is_id(run)][:_PAGE]
    if not ids:
        return {}
    try:
        # Prefect's client tries for some seconds where the connection is refused. Nothing is sent
        # here that certificates would have to protect: those are checked when it is asked.
        httpx.get(f"{url}/health", timeout=_PATIENCE_S, verify=False)
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True, httpx_settings={"timeout": _PATIENCE_S}) as client,
        ):
            found = client.request(
                "POST",
                "/flow_runs/filter",
                json={"flow_runs": {"id": {"any_": ids}}, "limit": _PAGE},
            ).json()
            reports = client.request(
                "POST",
                "/artifacts/filter",
                json={
                    "artifacts": {
                        "key": {"any_": [REPORT_KEY]},
                        "flow_run_id": {"any_": ids},
                    },
                    "limit": _PAGE,
                },
            ).json()
            ui = str(PREFECT_UI_URL.value() or str(url).removesuffix("/api")).rstrip("/")
            of_run = {one["flow_run_id"]: one["id"] for one in reports}
            return {
                one["id"]: Recorded(
                    str((one.get("state") or {}).get("name") or "Pending"),
                    f"{ui}/runs/flow-run/{one['id']}",
                    f"{ui}/artifacts/artifact/{of_run[one['id']]}" if one["id"] in of_run else None,
                )
                for one in found
            }
    except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as exc:
        cause = f"{type(exc).__name__}: {exc}".partition("\n")[0].removesuffix(": ")
    except (ValueError, KeyError, TypeError, AttributeError):
        cause = "what answers there is no Prefect API"
    raise NoServerError(f"PREFECT_API_URL={url} does not answer ({cause})")


def _is_id(run: str) -> bool:
    """Whether it is the id of a flow run; those of simulations are not."""
    from uuid import UUID

    try:
        UUID(run)
    except ValueError:
        return False
    return True
