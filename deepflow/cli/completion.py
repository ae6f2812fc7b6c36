"""`deepflow completion`: what a shell needs to complete commands, options and names of runs."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from deepflow.cli._output import as_json, print_json

_PROGRAM = "deepflow"
_VARIABLE = "_DEEPFLOW_COMPLETE"
"""Where click looks for what is to be completed; not one of our settings."""


@click.command("completion", short_help="Completion for bash, zsh or fish.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@as_json
@click.pass_context
def command(context: click.Context, shell: str, is_json: bool) -> None:
    """Example: eval "$(deepflow completion bash)"

    Print a script that completes commands, options, settings, metrics and the names of runs. To
    have it in every session, add the line for your shell to its start file:

    \b
      ~/.bashrc                    eval "$(deepflow completion bash)"
      ~/.zshrc                     eval "$(deepflow completion zsh)"
      ~/.config/fish/config.fish   deepflow completion fish | source

    bash has to be of version 4.4 or later.
    """
    made_for = get_completion_class(shell)
    assert made_for is not None  # click knows all three
    completion = made_for(context.find_root().command, {}, _PROGRAM, _VARIABLE)
    script = completion.source_template % completion.source_vars()
    if is_json:
        print_json({"shell": shell, "script": script})
    else:
        click.echo(script)
