"""The `deepflow` command: which subcommands there are, and how an error of ours is told."""

from __future__ import annotations

import errno
import io
import sys
from importlib import import_module
from typing import Any

import click

from deepflow.errors import DeepflowError, advice_on_place, nearest

# Command → module that has a click command called `command`, imported on first use.
_COMMANDS = {
    "certificates": "deepflow.cli.certificates",
    "completion": "deepflow.cli.completion",
    "connect": "deepflow.cli.connect",
    "demo": "deepflow.cli.demo",
    "explain": "deepflow.cli.explain",
    "metrics": "deepflow.cli.metrics",
    "replay": "deepflow.cli.replay",
    "results": "deepflow.cli.results",
    "runs": "deepflow.cli.runs",
    "settings": "deepflow.cli.settings",
    "simulate": "deepflow.cli.simulate",
    "version": "deepflow.cli.version",
}


class _Rooms(click.Group):
    """Subcommands by name, imported when asked for; our own errors told without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = import_module(module).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        _spare_odd_terminals()
        try:
            return super().invoke(ctx)
        except DeepflowError as error:
            raise _Refused(str(error)) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read has gone, as `head` does: click's affair
                raise
            raise _Refused(_in_words(error)) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = nearest(args[0], tuple(_COMMANDS)) if args else None
            if close is None:
                raise
            raise click.UsageError(f"{error.message} Did you mean {close!r}?", ctx) from error


def _spare_odd_terminals() -> None:
    """Print a question mark for a character that the terminal's encoding does not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


class _Refused(click.ClickException):
    """An error of ours: what was asked for cannot be. The status is that of click's own errors."""

    exit_code = 2


def _in_words(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; {advice_on_place(error)}"


def _tell_version(context: click.Context, _: click.Parameter, is_asked: bool) -> None:
    if is_asked and not context.resilient_parsing:
        from deepflow.cli.version import installed_version

        click.echo(f"deepflow {installed_version()}")
        context.exit()


@click.group(cls=_Rooms, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_tell_version,
    help="Print the version; `deepflow version` tells more.",
)
def main() -> None:
    """Example: deepflow demo --size tiny

    Run Prefect flows on Dask. Each command's --help opens with an example, and each takes --json.

    First steps: `deepflow demo` runs a flow on this machine, `deepflow runs` lists what ran, and
    `deepflow explain NAME` tells where its tasks ran and why.
    """
