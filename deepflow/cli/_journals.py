"""Where `deepflow explain` and `deepflow replay` look for the journals of flow runs."""

from __future__ import annotations

from pathlib import Path

from deepflow.errors import JournalError
from deepflow.settings import load_settings

__all__ = ["journals_folder"]


def journals_folder() -> Path:
    """The folder in which flow runs leave their journals.

    Raises :class:`JournalError` where none has left one yet.
    """
    folder = load_settings().state_dir.expanduser() / "journals"
    if not folder.is_dir():
        raise JournalError(
            f"no flow run has left a journal in {folder} yet; run a flow with DeepflowTaskRunner "
            "first, or name the folder of another machine or user with DEEPFLOW_STATE_DIR"
        )
    return folder
