"""`make schema`: docs/reference/cli.md, every command and option of `star`, written from the parser itself."""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from star import cli
from star.files import write_text

_HEAD = "# The command line\n\nWritten by `make schema` from the parser. `star STAGE --help` says the same.\n"


def page() -> str:
    """The page, in Markdown: exit codes, then a section and a table of options a command."""
    parser = cli.parser()
    (stages,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    sections = [_section(name, sub) for name, sub in stages.choices.items()]
    return "\n".join([_HEAD, *_exit_codes(), *sections])


def _exit_codes() -> Iterator[str]:
    found = re.search(r"Exit codes: (.*?)\n(?:\n|$)", f"{cli.__doc__}\n", re.DOTALL)
    yield f"Exit codes: {' '.join(found[1].split())}\n"


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    rows = [_row(action) for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    return f"## `star {name}`\n\n{parser.description}\n\n| option | meaning |\n|---|---|\n{''.join(rows)}"


def _row(action: argparse.Action) -> str:
    option = ", ".join(action.option_strings) or action.dest
    takes = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    more = " ..." if action.nargs in ("+", "*") else ""
    default = "" if action.default in (None, False, []) else str(action.default)
    meaning = (action.help or "").replace("%(default)s", default)
    chosen = f"one of {', '.join(map(str, action.choices))}" if action.choices else ""
    said = "; ".join(part for part in (meaning, chosen, "required" if action.required else "") if part)
    return f"| `{option}{takes}{more}` | {said.replace('|', chr(92) + '|')} |\n"


def main() -> None:
    write_text(Path(__file__).parents[1] / "docs/reference/cli.md", page())


if __name__ == "__main__":
    sys.exit(main())
