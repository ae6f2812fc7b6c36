"""The command line: one thin module per command, nothing that another room would want.

May import every room; no room imports it. A command's module is imported when it is called, so that
`deepflow --help` answers at once.
"""

from deepflow.cli._group import main

__all__ = ["main"]
