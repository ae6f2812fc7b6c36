"""`deepflow connect`: the ways to a scheduler, measured, and the one that is taken."""

from __future__ import annotations

from dataclasses import asdict

import click

from deepflow.cli._output import Column, as_json, print_json, print_table, say
from deepflow.decide.transport import AUTO, address_fault
from deepflow.observe.explain import in_seconds
from deepflow.settings import load_settings


@click.command("connect", short_help="Ways to a scheduler, and the best of them.")
@click.argument("address", required=False)
@click.option("--tls", help="Folder with certificates; unless given, the setting `tls`.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="The most seconds for each way.",
)
@as_json
def command(address: str | None, tls: str | None, timeout_s: float, is_json: bool) -> None:
    """Example: deepflow connect auto://head-node

    Tries how the scheduler at ADDRESS (unless given, the setting `address`) can be spoken to, and
    measures each way: tcp or, with certificates, tls; websockets where only HTTP passes. A flow
    with DEEPFLOW_ADDRESS=auto://head-node makes the same choice when it connects, and again when
    it has to connect anew. Any other address is tried as it is.
    """
    import asyncio

    from deepflow.backend.tls import security_of
    from deepflow.backend.transport import Choice, is_auto, pick_now, try_address
    from deepflow.errors import ClusterUnreachableError, ConfigurationError

    settings = load_settings()
    address = address or settings.address
    if address is None:
        raise ConfigurationError(
            f"no address to try: name one, such as {AUTO}://head-node, or set DEEPFLOW_ADDRESS"
        )
    fault = address_fault(address)
    if fault is not None:
        raise ConfigurationError(f"{address!r} {fault}")
    security = security_of(tls or settings.tls, address=address)
    if is_auto(address):
        choice = pick_now(address, security, timeout_s, is_patient=False)
    else:
        trial = asyncio.run(try_address(address, security, timeout_s, is_patient=False))
        if trial.error:
            raise ClusterUnreachableError(
                f"no Dask scheduler answers at {address}: {trial.error}. Start one there, or "
                f"try {AUTO}://host, which finds other ways",
                address=address,
            )
        choice = Choice(address, (trial,))
    if is_json:
        print_json({"address": choice.address, "trials": [asdict(one) for one in choice.trials]})
        return
    print_table(
        f"Ways to {address}",
        (
            Column("address", is_cut=True),
            Column("connected in", is_number=True),
            Column("round trip", is_number=True),
            Column("MB/s", is_number=True),
            Column(""),
        ),
        (
            (trial.address, "-", "-", "-", "failed")
            if trial.error
            else (
                trial.address,
                in_seconds(trial.connect_s),
                in_seconds(trial.round_trip_s),
                f"{trial.bytes_per_s / 1e6:,.0f}",
                "taken" if trial.address == choice.address else "",
            )
            for trial in choice.trials
        ),
    )
    for trial in choice.trials:
        if trial.error:
            say(f"{trial.address}: {trial.error}")
