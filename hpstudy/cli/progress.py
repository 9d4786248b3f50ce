"""Shows how far a study is: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from threading import RLock

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpstudy.analysis.numbers import duration
from hpstudy.cli.time_left import TimeLeft
from hpstudy.records import Outcome, Phase, Run, RunResult, StepRecord
from hpstudy.search import Forecast
from hpstudy.study import Study
from hpstudy.study.ranking import Score, best_first, front, ranks_by_loss

PLAIN_SECONDS = 10.0  # between two lines about active runs
FRAME_SECONDS = 0.25  # between two drawings of the live view while steps come
RECENT_STEPS = 20


@dataclass(slots=True, kw_only=True)
class _Active:
    run: Run
    last: StepRecord | None = None
    val_loss: float | None = None
    forecast: Forecast | None = None  # of its final loss
    speeds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))


class StudyProgress:
    """A `Progress` that shows the phase, the active runs, the best trial so far and the baseline."""

    def __init__(
        self,
        study: Study,
        console: Console,
        trials: int | None = None,
        on_first_phase: Callable[[], None] = lambda: None,
    ) -> None:
        """`trials` is the number of trials if it is not the file's."""
        self._study, self._console = study, console
        self._left = TimeLeft(study, trials)
        self._on_first_phase = on_first_phase
        self._baseline: RunResult | None = None
        self._complete: list[Score] = []  # trials of the search
        self._phase, self._num_runs, self._done = "", 0, 0
        self._active: dict[str, _Active] = {}
        self._trained = set[str]()  # the runs that have ended in this session
        self._last_line = 0.0
        self._live = Live(get_renderable=self._render, console=console, auto_refresh=False, transient=True)
        self._last_frame = 0.0
        self._lock = RLock()  # W&B's thread says lines too; rich loses its place if two threads draw at once

    def shown(self) -> AbstractContextManager[object]:
        """The context in which the view is live. It does nothing outside a terminal."""
        return self._live if self._console.is_terminal else nullcontext()

    def earlier(self, finished: Sequence[Run]) -> None:
        self._left.earlier(finished)

    def phase(
        self, name: Phase, num_runs: int, finished: Sequence[tuple[Run, RunResult]], most: int | None = None
    ) -> None:
        if not self._phase:
            self._on_first_phase()
        self._phase, self._num_runs, self._done = name, num_runs, len(finished)
        self._left.phase(name, num_runs, [run for run, _ in finished], most)
        for run, result in finished:
            self._rank(run, result)
        if before := sum(run.run_id not in self._trained for run, _ in finished):
            self.say(f"{name}: {before} of {num_runs} are done from an earlier session")

    def grow(self, num_runs: int, most: int) -> None:
        self._num_runs = num_runs
        self._left.grow(num_runs, most)

    def start(self, run: Run, tokens: int = 0) -> None:
        self._left.start(run, tokens)
        self._active[run.run_id] = _Active(run=run)
        self._draw()

    def step(self, run: Run, record: StepRecord) -> None:
        active = self._active[run.run_id]
        active.last = record
        self._left.step(run, record.tokens)
        active.speeds.append(record.tok_per_sec)
        if record.val_loss is not None:
            active.val_loss = record.val_loss
        if not self._console.is_terminal and time.monotonic() - self._last_line > PLAIN_SECONDS:
            left = f"; the study: {self._left}" if str(self._left) else ""
            self.say(f"{run.run_id}: {self._describe(active)}{left}")
        if time.monotonic() - self._last_frame > FRAME_SECONDS:
            self._draw()

    def forecast(self, run: Run, forecast: Forecast) -> None:
        self._active[run.run_id].forecast = forecast

    def finish(self, run: Run, result: RunResult) -> None:
        del self._active[run.run_id]
        ahead = self._left.is_ahead(run)
        self._left.finish(run)
        self._trained.add(run.run_id)
        if not ahead:
            self._done += 1
            self._num_runs = max(self._num_runs, self._done)  # a run of the next look, which trained ahead
        self._rank(run, result)
        name = f"{run.run_id} (baseline)" if run.run_id == self._study.baseline_run_id else run.run_id
        what = f"val loss {_loss(result.val_loss)}" if result.outcome is Outcome.COMPLETE else result.outcome.value
        speed = f"{result.tok_per_sec:,.0f} tok/s" if result.tok_per_sec else "no steps"
        place = "ahead" if ahead else f"{self._phase} {self._done}/{self._num_runs}"
        self.say(f"{place}  {name}: {what}, {speed} in {duration(result.train_seconds)}")
        if result.message:
            self.say(f"  {result.message.splitlines()[-1]}")

    def say(self, line: str) -> None:
        self._last_line = time.monotonic()
        with self._lock:
            self._console.print(line, highlight=False, markup=False)
        self._draw()

    def _draw(self) -> None:
        """Draws the live view, if it is shown."""
        with self._lock:
            if self._live.is_started:
                self._last_frame = time.monotonic()
                self._live.refresh()

    def _rank(self, run: Run, result: RunResult) -> None:
        if run.run_id == self._study.baseline_run_id:
            self._baseline = result
        if run.phase == "search" and result.outcome is Outcome.COMPLETE:
            self._complete.append(Score.of(run.run_id, result))

    def _best(self) -> str:
        """The best complete trial, by the same ranking as in the report."""
        metrics = self._study.metrics
        ranked = front(metrics, best_first(metrics, self._complete))
        return f"{self._shown(ranked[0])} ({ranked[0].run_id})" if ranked else "-"

    def _shown(self, score: Score) -> str:
        if ranks_by_loss(self._study.metrics):
            return _loss(score.val_loss)
        return f"{score.tok_per_sec:,.0f} tok/s"

    def _describe(self, active: _Active) -> str:
        if active.last is None:
            return "starting"
        share = active.last.tokens / active.run.tokens
        speed = sum(active.speeds) / len(active.speeds)
        val = f", val {active.val_loss:.4f}" if active.val_loss is not None else ""
        if active.forecast is not None:
            val += f", forecast {active.forecast}"
        return f"step {active.last.step}, {share:.0%}, loss {active.last.loss:.4f}{val}, {speed:,.0f} tok/s"

    def _shares(self) -> float:
        """The trained shares of the phase's active runs, added up."""
        active = [a for a in self._active.values() if not self._left.is_ahead(a.run)]
        return sum(a.last.tokens / a.run.tokens for a in active if a.last)

    def _render(self) -> Group:
        if not self._phase:
            return Group()
        shares = self._shares()
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        bar = ProgressBar(total=max(1, self._num_runs), completed=self._done + shares)
        head.add_row(
            Text(f"{self._study.name} · {self._phase} {self._done}/{self._num_runs}", style="bold"),
            bar,
            str(self._left),
        )
        lines = [Text(f"  {run_id}  {self._describe(active)}") for run_id, active in self._active.items()]
        baseline = self._shown(Score.of("", self._baseline)) if self._baseline else "-"
        lines.append(Text(f"  best {self._best()} · baseline {baseline}", style="dim"))
        return Group(head, *lines)


def _loss(loss: float | None) -> str:
    return "-" if loss is None or math.isnan(loss) else f"{loss:.4f}"
