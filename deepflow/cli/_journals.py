"""Where commands look for the journals of flow runs, and which one is meant."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from deepflow.errors import DeepflowError, JournalError
from deepflow.observe.journal import SUFFIXES, find_journal, newest_journal, recent_runs
from deepflow.settings import load_settings

__all__ = ["complete_run", "journal_of", "journals_folder"]


def journals_folder() -> Path:
    """The folder in which flow runs leave their journals; it need not be there."""
    return load_settings().state_dir.expanduser().absolute() / "journals"


def _standing_folder() -> Path:
    """The same; :class:`JournalError` where no flow run has left a journal yet."""
    folder = journals_folder()
    if not folder.is_dir() or not any(one.name.endswith(SUFFIXES) for one in folder.iterdir()):
        raise JournalError(
            f"no flow run has left a journal in {folder} yet; run a flow with DeepflowTaskRunner "
            "first (`deepflow demo --size tiny` is one), or name the folder of another machine or "
            "user with DEEPFLOW_STATE_DIR"
        )
    return folder


def journal_of(run: str | None, where: Path | None = None) -> tuple[Path, str | None]:
    """The journal that is meant, and the run to look for in it; None for all that it tells.

    Args:
        run: the path of a journal, or of a folder of which the newest journal is taken; else what
            people call a run, as `find_journal` takes it; None for the newest run.
        where: a journal, or the folder to look in, in place of the one of flow runs.

    Raises:
        JournalError: there is no journal, or none of that run.
    """
    if run is not None and where is None and _is_path(run):
        return newest_journal(Path(run).expanduser()), None
    folder = where or _standing_folder()
    if run is not None:
        return find_journal(folder, run), run
    newest = newest_journal(folder)  # says so where there is none
    if not folder.is_dir():
        return newest, None
    for record in recent_runs(folder, 1):
        return record.journal, record.run
    return newest, None


def _is_path(run: str) -> bool:
    """Whether text names a file rather than a run. The name of a flow may have a slash in it."""
    if run.endswith(SUFFIXES):
        return True
    return os.sep in run and Path(run).expanduser().exists()


def complete_run(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> Sequence[CompletionItem]:
    """For shells: the names of runs that begin so, the newest first."""
    try:
        runs = list(recent_runs(_standing_folder(), 20))
    except (DeepflowError, OSError):
        return []
    return [
        CompletionItem(run.name or run.run, help=run.flow)
        for run in runs
        if (run.name or run.run).startswith(incomplete)
    ]
