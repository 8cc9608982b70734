"""Where output goes: rich on a terminal, plain lines in a pipe, one JSON document for programs.

In a pipe every table row is one line, however long, so that grep and awk work; there are no colours and no trailing
blanks.
"""

import io
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live

PLAIN_COLUMNS = 1000
WATCH_SECONDS = 2.0


def show(renderable: RenderableType) -> None:
    """Print to standard output, as is right for what it is."""
    if sys.stdout.isatty():
        Console(highlight=False).print(renderable)
    else:
        sys.stdout.write(plain(renderable, PLAIN_COLUMNS))


def show_json(document: dict[str, Any]) -> None:
    """Print one JSON document to standard output."""
    print(json.dumps(document, indent=2))


def plain(renderable: RenderableType, columns: int) -> str:
    """Return `renderable` as text without colours, at most `columns` wide, no blanks at the end of a line."""
    out = io.StringIO()
    Console(file=out, width=columns, highlight=False, color_system=None, legacy_windows=False).print(renderable)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def watch(look: Callable[[], RenderableType]) -> int:
    """Show `look()` again and again, every 2 s, until Ctrl-C. Returns the exit code."""
    try:
        if not sys.stdout.isatty():
            while True:
                show(look())
                sys.stdout.flush()
                time.sleep(WATCH_SECONDS)
        console = Console(highlight=False)
        # The other screen, as top and watch use it: rows come and go without leaving traces.
        with Live(look(), console=console, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(WATCH_SECONDS)
                live.update(look(), refresh=True)
    except KeyboardInterrupt:
        if sys.stdout.isatty():
            show(look())
        return 0


def watch_json(look: Callable[[], dict[str, Any]]) -> int:
    """Print `look()` every 2 s, one JSON document a line, until Ctrl-C. Returns the exit code."""
    try:
        while True:
            print(json.dumps(look()), flush=True)
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return 0
