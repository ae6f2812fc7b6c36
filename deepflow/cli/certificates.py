"""`deepflow certificates`: what a scheduler, its workers and their drivers need to encrypt."""

from __future__ import annotations

from pathlib import Path

import click

from deepflow.backend.tls import write_certificates
from deepflow.cli._output import as_json, print_json


@click.command("certificates", short_help="Certificates for a cluster that encrypts.")
@click.argument("folder", type=click.Path(path_type=Path))
@as_json
def command(folder: Path, is_json: bool) -> None:
    """Example: deepflow certificates ~/.deepflow/tls

    Makes ca.pem, cert.pem and key.pem in FOLDER. Copy it to every machine of the cluster by a safe
    way; whoever has the key can join. Then start scheduler and workers with

      dask scheduler --protocol tls --tls-ca-file ca.pem --tls-cert cert.pem --tls-key key.pem

      dask worker tls://HOST:8786 --tls-ca-file ca.pem --tls-cert cert.pem --tls-key key.pem

    and run flows with DEEPFLOW_ADDRESS=tls://HOST:8786 and DEEPFLOW_TLS=FOLDER. An embedded cluster
    needs no files: DEEPFLOW_TLS=generated.
    """
    paths = write_certificates(folder.expanduser())
    if is_json:
        print_json({"files": [str(path) for path in paths]})
        return
    for path in paths:
        click.echo(f"wrote {path}")
    click.echo(f"Now set DEEPFLOW_TLS={folder} for flows; --help says how to start a cluster.")
