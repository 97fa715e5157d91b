"""What a person is shown of a running search, and how it looks: some lines on a terminal or in a
notebook, one line in a log. Where they are shown is `signs_of_life.py`.
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
"""Trials that a line of a log names."""


@dataclass(frozen=True)
class RunningTrial:
    name: str
    what: str
    """For example `loading the model`."""
    pairs_done: int = 0
    pairs_total: int = 0
    """Until its end; 0 while it isn't known."""
    last: str = ""
    """The objective at its last report; empty before."""
    pairs_per_second: float | None = None

    @property
    def how_far(self) -> str:
        """For example `384 of 1364 pairs`."""
        if not self.pairs_total:
            return self.what
        doing = "" if self.what == "training" else f", {self.what}"
        return f"{self.pairs_done} of {self.pairs_total} pairs{doing}"

    @property
    def pace(self) -> str:
        return f"{self.pairs_per_second:.3g} pairs/s" if self.pairs_per_second is not None else ""


@dataclass(frozen=True)
class View:
    """One moment of a search."""

    doing: str = ""
    """What is done before the first trial, or beside the trials."""
    ended: int = 0
    total: int = 0
    """Trials that are expected; 0 before there are any."""
    share: float = 0.0
    """Of the trials, the running ones in part."""
    seconds_left: float | None = None
    """None while it isn't known."""
    counts: str = ""
    """For example `8 running · 7 stopped`."""
    best: str = ""
    """Empty before the first report."""
    running: tuple[RunningTrial, ...] = ()

    @property
    def left(self) -> str:
        if self.ended >= self.total:
            return "all trials have ended"
        if self.seconds_left is None:
            return "time left: not known yet"
        return f"about {duration(self.seconds_left)} left"

    def line(self) -> str:
        """For a log: `about 12 min left · 7 of 24 trials · 8 running · best … · a at 8 of 64`."""
        if not self.total:
            return self.doing
        named = [f"{trial.name} {_at(trial)}" for trial in self.running[:_IN_A_LOG]]
        if len(self.running) > _IN_A_LOG:
            named.append(f"{len(self.running) - _IN_A_LOG} more")
        parts = [self.left, f"{self.ended} of {self.total} trials", self.counts, self.best]
        return " · ".join(part for part in [*parts, self.doing, ", ".join(named)] if part)

    def picture(self, width: int, height: int) -> Text:
        """For a window of `width` columns and `height` rows: no line wraps, and what has no place
        is counted."""
        columns = width - 1  # a full line would wrap on some terminals
        lines = list(self._head(columns))
        shown = list(self.running)
        places = max(1, height - 2 - len(lines))
        if len(shown) > places:
            shown = shown[: places - 1]
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
        has_place = bool(self.best) and with_best >= _LEAST_BAR
        bar = max(_LEAST_BAR, min(_MOST_BAR, with_best if has_place else left))
        filled = round(bar * min(1.0, self.share))
        first = Text.assemble(
            (self.left, "bold"), "  ", ("━" * filled, "green"), ("─" * (bar - filled), "dim"), "  ",
            done,
        )  # fmt: skip
        yield first.append(f"  {self.best}") if has_place else first
        if self.best and not has_place:
            yield Text(printable(self.best))
        yield Text(self.counts, "dim")
        if self.doing:
            yield Text(printable(self.doing))


def _at(trial: RunningTrial) -> str:
    return f"at {trial.how_far}" if trial.pairs_total else trial.what


def _rows(trials: list[RunningTrial]) -> Iterator[Text]:
    """A line for each trial, in columns."""
    cells = [(each.name, each.how_far, each.last, each.pace) for each in trials]
    widths = [max(map(cell_len, column), default=0) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = (
            cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)
        )
        yield Text(printable("  ".join(padded).rstrip()))
