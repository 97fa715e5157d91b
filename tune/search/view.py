"""How a running search looks: some lines on a terminal or in a notebook, or one line in a log.
`signs_of_life.py` shows them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from dpo_train.plain_output import printable
from tune.run_folder.wording import duration

_LEAST_BAR, _MOST_BAR = 8, 40
_IN_A_LOG = 3
"""How many trials a line of a log names."""


@dataclass(frozen=True)
class RunningTrial:
    """A running trial, as it is shown."""

    name: str
    what: str
    """What it is doing, for example `loading the model`."""
    pairs_done: int = 0
    pairs_total: int = 0
    """Its pairs in all; 0 while unknown."""
    last: str = ""
    """The objective at its last report; empty before the first."""
    pairs_per_second: float | None = None
    """How fast it trains; None while unknown."""

    @property
    def how_far(self) -> str:
        """The trial's progress, for example `384 of 1364 pairs`."""
        if not self.pairs_total:
            return self.what
        doing = "" if self.what == "training" else f", {self.what}"
        return f"{self.pairs_done} of {self.pairs_total} pairs{doing}"

    @property
    def pace(self) -> str:
        """The trial's speed, for example `12.3 pairs/s`; empty while unknown."""
        return f"{self.pairs_per_second:.3g} pairs/s" if self.pairs_per_second is not None else ""


@dataclass(frozen=True)
class View:
    """One moment of a search."""

    doing: str = ""
    """What the driver is doing before the first trial, or beside the trials."""
    ended: int = 0
    total: int = 0
    """How many trials are expected; 0 before the first starts."""
    share: float = 0.0
    """The share of the search that is done. Running trials count by their own share."""
    seconds_left: float | None = None
    """None while unknown."""
    counts: str = ""
    """How many trials are in which state, for example `8 running · 7 stopped`."""
    best: str = ""
    """The best trial's objective; empty before the first report."""
    running: tuple[RunningTrial, ...] = ()

    @property
    def left(self) -> str:
        """The time left, in words."""
        if self.ended >= self.total:
            return "all trials have ended"
        if self.seconds_left is None:
            return "time left: not known yet"
        return f"about {duration(self.seconds_left)} left"

    def line(self) -> str:
        """Return the line of a log, like `about 12 min left · 7 of 24 trials · 8 running · …`."""
        if not self.total:
            return self.doing
        named = [f"{trial.name} {_at(trial)}" for trial in self.running[:_IN_A_LOG]]
        if len(self.running) > _IN_A_LOG:
            named.append(f"{len(self.running) - _IN_A_LOG} more")
        parts = [self.left, f"{self.ended} of {self.total} trials", self.counts, self.best]
        return " · ".join(each for each in [*parts, self.doing, ", ".join(named)] if each)

    def picture(self, width: int, height: int) -> Text:
        """Return the lines for a window of `width` columns and `height` rows. No line wraps, and
        trials that don't fit are counted."""
        columns = width - 1  # a full line would wrap on some terminals
        lines = list(self._head(columns))
        shown = list(self.running)
        rows = max(1, height - 2 - len(lines))
        if len(shown) > rows:
            shown = shown[: rows - 1]
        lines += _rows(shown)
        if more := len(self.running) - len(shown):
            lines.append(Text(f"… and {more} more", "dim"))
        for line in lines:
            line.truncate(columns, overflow="ellipsis")
        return Text("\n", no_wrap=True, overflow="ellipsis").join(lines)

    def _head(self, columns: int) -> Iterator[Text]:
        if not self.total:
            yield Text(printable(self.doing))
            return
        done = f"{self.ended} of {self.total} trials"
        left = columns - cell_len(self.left) - cell_len(done) - 4
        with_best = left - cell_len(self.best) - 2
        best_fits = bool(self.best) and with_best >= _LEAST_BAR
        bar = max(_LEAST_BAR, min(_MOST_BAR, with_best if best_fits else left))
        filled = round(bar * min(1.0, self.share))
        first = Text.assemble(
            (self.left, "bold"), "  ", ("━" * filled, "green"), ("─" * (bar - filled), "dim"), "  ",
            done,
        )  # fmt: skip
        yield first.append(f"  {self.best}") if best_fits else first
        if self.best and not best_fits:
            yield Text(printable(self.best))
        yield Text(self.counts, "dim")
        if self.doing:
            yield Text(printable(self.doing))


def _at(trial: RunningTrial) -> str:
    return f"at {trial.how_far}" if trial.pairs_total else trial.what


def _rows(trials: list[RunningTrial]) -> Iterator[Text]:
    """Yield a line for each trial, with aligned columns."""
    cells = [(each.name, each.how_far, each.last, each.pace) for each in trials]
    widths = [max(map(cell_len, column), default=0) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = (
            cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)
        )
        yield Text(printable("  ".join(padded).rstrip()))
