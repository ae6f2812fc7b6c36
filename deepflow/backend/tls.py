"""Encryption between driver, scheduler and workers: one setting, Dask's own TLS.

With `require_encryption` a peer that has no certificate of the same authority is refused by both
sides, so nobody else joins.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Final

from distributed.security import Security

from deepflow.decide.transport import AUTO
from deepflow.errors import ConfigurationError, advice_on_place, nearest

__all__ = ["CA_FILE", "CERT_FILE", "GENERATED", "KEY_FILE", "check_tls"]
__all__ += ["security_of", "write_certificates"]

GENERATED: Final = "generated"
"""The setting's value for certificates that are made for one embedded cluster and kept nowhere."""
CA_FILE: Final = "ca.pem"
CERT_FILE: Final = "cert.pem"
KEY_FILE: Final = "key.pem"


def security_of(tls: str | None, *, address: str | None = None) -> Security | None:
    """What Dask is given for the setting `tls`; None for no encryption.

    Args:
        tls: `GENERATED`, or a folder with the three files.
        address: of the scheduler to connect to; None where the cluster is to be made.

    Raises:
        ConfigurationError: a file is missing or cannot be read, or the certificates are to be
            generated for a scheduler that runs already, or its address is not one of TLS.
    """
    if tls is None:
        return None
    check_tls(tls, address=address)
    if tls == GENERATED:
        made: Security = Security.temporary()
        return made
    folder = Path(tls).expanduser()
    ca, cert, key = (str(folder / name) for name in (CA_FILE, CERT_FILE, KEY_FILE))
    return Security(
        require_encryption=True,
        tls_ca_file=ca,
        tls_client_cert=cert,
        tls_client_key=key,
        tls_scheduler_cert=cert,
        tls_scheduler_key=key,
        tls_worker_cert=cert,
        tls_worker_key=key,
    )


def check_tls(tls: str | None, *, address: str | None = None) -> None:
    """Refuse what `security_of` could make nothing of; arguments and errors as there."""
    if tls is None:
        return
    if address is not None:
        scheme = address.partition("://")[0] if "://" in address else "tcp"
        if scheme not in ("tls", "wss", AUTO):
            raise ConfigurationError(
                f"the scheduler's address {address!r} is not encrypted although tls={tls!r}; "
                "start it with certificates (`deepflow certificates --help` says how) and give its "
                "address as tls://host:port, or unset DEEPFLOW_TLS"
            )
        if tls == GENERATED:
            raise ConfigurationError(
                f"tls={GENERATED!r} makes certificates for an embedded cluster, but the scheduler "
                f"at {address} has its own; set DEEPFLOW_TLS to the folder that holds "
                f"{CA_FILE}, {CERT_FILE} and {KEY_FILE}"
            )
    if tls == GENERATED:
        return
    folder = Path(tls).expanduser()
    if not folder.is_dir():
        close = nearest(tls, (GENERATED,))
        meant = f"did you mean {close!r}? " if close else ""
        raise ConfigurationError(
            f"tls={tls!r}: there is no folder {folder}; {meant}`deepflow certificates {tls}` makes "
            f"it with all three files, and tls={GENERATED!r} needs none"
        )
    for path in (folder / name for name in (CA_FILE, CERT_FILE, KEY_FILE)):
        if not os.access(path, os.R_OK):
            raise ConfigurationError(
                f"tls={tls!r}: there is no readable {path}; `deepflow certificates {tls}` makes "
                f"all three files, and tls={GENERATED!r} needs none"
            )
    try:
        ssl.create_default_context(cafile=str(folder / CA_FILE)).load_cert_chain(
            str(folder / CERT_FILE), str(folder / KEY_FILE), password=""
        )
    except ssl.SSLError as exc:
        cause = exc.reason or str(exc)
    else:
        return
    raise ConfigurationError(
        f"tls={tls!r}: {CA_FILE}, {CERT_FILE} and {KEY_FILE} in it are no certificate with its key "
        f"({cause}); `deepflow certificates` makes some in a new folder, and tls={GENERATED!r} "
        "needs none"
    )


def write_certificates(folder: Path) -> list[Path]:
    """Make a certificate that vouches for itself, with its key; valid for a year.

    Whoever has the key can join, so only its owner may read it. Nothing is overwritten.

    Raises:
        ConfigurationError: one of the files is there already, or the folder cannot be written.
    """
    security = Security.temporary()
    contents = {
        CA_FILE: security.tls_ca_file,
        CERT_FILE: security.tls_scheduler_cert,
        KEY_FILE: security.tls_scheduler_key,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in contents:
            if (folder / name).exists():
                raise ConfigurationError(
                    f"{folder / name} is there already; remove it, or give another folder"
                )
        for name, content in contents.items():
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(content)
    except OSError as exc:
        raise ConfigurationError(
            f"the certificates cannot be written to {folder} ({exc.strerror}); "
            f"{advice_on_place(exc)}"
        ) from exc
    return [folder / name for name in contents]
