"""How the demo speaks: numbered steps, a bar while something runs on a terminal, calm lines everywhere else."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.rule import Rule
from rich.text import Text

from conntrack_operator.cli.terminal import plain

COLUMNS_MAX = 100
INDENT = 2
BAR_COLUMNS = 24


class Display:
    """Speaks to standard output."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._step = 0
        self._began = time.monotonic()
        self._console = Console(highlight=False)
        if self._console.is_terminal:
            self._console = Console(highlight=False, width=min(self._console.width, COLUMNS_MAX))

    def step(self, words: str) -> None:
        """Begin the next step."""
        self._step += 1
        if self._console.is_terminal:
            self._console.print()
            self._console.print(Rule(Text(f"{self._step}/{self._steps}  {words}", "bold"), align="left", style="dim"))
        else:
            self._write(Text(f"\n[{time.monotonic() - self._began:4.1f} s] {self._step}/{self._steps}  {words}"))

    def say(self, what: RenderableType) -> None:
        """Show a sentence or a table below the step."""
        self._write(Padding(what, (0, 0, 0, INDENT)))

    @contextlib.contextmanager
    def bar(self, words: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """Show a bar while something runs; it is gone afterwards. Give what moves it, with a note beside it."""
        if not self._console.is_terminal:
            yield lambda _done, _note: None
            return
        columns = (
            TextColumn(" " * INDENT + "{task.description}"),
            BarColumn(BAR_COLUMNS),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(words, total=total, note="")
            yield lambda done, note: progress.update(task, completed=done, note=note)

    def _write(self, what: RenderableType) -> None:
        if self._console.is_terminal:
            self._console.print(what)
        else:
            sys.stdout.write(plain(what, COLUMNS_MAX))
            sys.stdout.flush()
