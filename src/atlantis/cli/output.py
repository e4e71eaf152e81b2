"""What the commands print: results on standard output, everything else on standard error."""

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_err = Console(stderr=True, highlight=False, soft_wrap=True)
_out = Console(highlight=False, soft_wrap=True)


def say(line: str, *, style: str = "") -> None:
    """One line for the reader on standard error; a style is for the word before the colon."""
    word, colon, rest = line.partition(":")
    _err.print(Text.assemble((word + colon, style), rest) if style else Text(line))


def warn(line: str) -> None:
    """One line that the reader should not miss."""
    say(f"warning: {line}", style="bold yellow")


def put(line: str) -> None:
    """One line of the result."""
    _out.print(Text(line))


def put_json(value: Mapping[str, Any]) -> None:
    """The result as one machine-readable line."""
    sys.stdout.write(json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def put_table(table: Table) -> None:
    """A table as wide as the terminal."""
    Console().print(table)


def two_columns(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """A small table of names and values."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def quiet_libraries() -> None:
    """Our own lines say what happens; the libraries' bars and notices would bury them."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    disable: Any = transformers.utils.logging.disable_progress_bar
    disable()
