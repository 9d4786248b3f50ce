"""Weights & Biases as the second sink: a live view of the run store, never in the way of a run.

wandb is imported inside functions only: it takes a second, and the command line must answer at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import re
import secrets
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hpstudy.errors import UserError
from hpstudy.records import GLOSSARY, Outcome, RunHeader, RunResult, StepRecord, as_row
from hpstudy.tracking.store import RunView, decode, encode, spelled, write_atomic

if TYPE_CHECKING:
    import wandb

Mode = Literal["online", "offline", "disabled"]
ModeFlag = Literal["auto", "online", "offline", "disabled"]

WANDB_MODES: dict[str, Mode] = {"online": "online", "offline": "offline", "disabled": "disabled"}
WANDB_MODES |= {"run": "online", "shared": "online", "dryrun": "offline"}  # older names
BROKEN = frozenset({Outcome.FAILED, Outcome.OUT_OF_MEMORY})  # red on W&B; pruned and diverged runs did their job
DELIVERED = "wandb.json"  # in a run's folder, once W&B has all of the run
MAX_ID = 128  # characters of a W&B run id


def resolve_mode(flag: ModeFlag) -> Mode:
    """What --wandb means here: `auto` follows WANDB_MODE, else is online with a key or a login and offline without.

    Never prompts; raises UserError when WANDB_MODE is not a mode.
    """
    if flag != "auto":
        return flag
    asked = os.environ.get("WANDB_MODE")
    if asked:
        if asked not in WANDB_MODES:
            raise UserError(f'WANDB_MODE: must be one of {", ".join(WANDB_MODES)}, but got "{asked}"; or pass --wandb')
        return WANDB_MODES[asked]
    return "online" if _has_login() else "offline"


def _has_login() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb
    from wandb.sdk.lib import wbauth

    try:
        host = wandb.setup(wandb.Settings(silent=True)).settings.base_url
        return bool(wbauth.authenticate_session(host=host, source="hpstudy", prompt=False, update_session=False))
    except Exception:  # a malformed key, settings that do not load: going online says what is wrong, and degrades
        return True


def resolve_project(project: str | None, entity: str | None) -> tuple[str, str | None]:
    """The project and entity runs go to: WANDB_PROJECT and WANDB_ENTITY before the study's own."""
    return os.environ.get("WANDB_PROJECT") or project or "hpstudy", os.environ.get("WANDB_ENTITY") or entity


def new_wandb_id(study: str, run_id: str) -> str:
    """A W&B run id drawn once per run folder: study, run and a random token, so that no old server row is met again."""
    tail = f"-{run_id}-{secrets.token_hex(4)}"
    return re.sub(r"[^A-Za-z0-9_-]+", "-", study)[: MAX_ID - len(tail)] + tail


def whereabouts(root: Path, study: str) -> str:
    """Where people find a study's W&B runs: their group's page, the offline files, or nowhere."""
    deliveries = [found for file in sorted(root.glob(f"*/{DELIVERED}")) if (found := _delivery(file.parent))]
    pages = [delivery["url"] for delivery in deliveries if delivery["mode"] == "online" and delivery["url"]]
    if pages:
        return f"{pages[0].partition('/runs/')[0]}/groups/{study}"
    sync = f"hpstudy sync {study}" + ("" if root.parent == Path("runs") else f" --runs {root.parent}")
    return f"{root / 'wandb'} (offline; `{sync}` sends them)" if deliveries else "none"


def _delivery(folder: Path) -> dict[str, Any]:
    """What W&B has of a run; nothing where that cannot be told, so that it is sent again, each row once."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        found = decode((folder / DELIVERED).read_bytes())
        if isinstance(found, dict) and found.keys() >= {"mode", "url"}:
            return found
    return {}


class WandbSink:
    """One W&B run per training, fed by a writer thread.

    `begin`, `log`, `finish`, `abandon` and `replay` only append to a queue and return. The queue is unbounded: a row
    is about a kilobyte, and the thread takes a thousand a second. When W&B fails, the thread calls `say` with one
    line, leaves the runs then open to a replay, and goes from online to offline, from offline to disabled.
    """

    def __init__(
        self,
        *,
        mode: Mode,
        project: str,
        entity: str | None,
        study: str,
        directory: Path,
        extra: dict[str, Any],
        say: Callable[[str], None],
        live: bool = True,
        patience: float = 20.0,
    ) -> None:
        """`directory` is the study's folder of runs, `extra` joins each config, `patience` is in seconds per answer."""
        self.live = live and mode != "disabled"
        """Whether steps are taken in as they come; otherwise `replay` sends whole runs from the store."""
        self._hurried = False
        self._mode: Mode = mode
        self._project, self._entity, self._study = project, entity, study
        self._directory, self._extra, self._say, self._patience = directory, extra, say, patience
        self._open: dict[str, wandb.Run] = {}  # by run id; touched by the thread alone
        self._queue: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if mode != "disabled":
            self._thread = threading.Thread(target=self._write, name="wandb-writer", daemon=True)
            self._thread.start()

    @property
    def enabled(self) -> bool:
        """Whether anything is written at all."""
        return self._thread is not None

    def begin(self, header: RunHeader) -> None:
        """Opens a run. One that is resumed goes on after the server's last step, or offline is written anew:
        the caller logs all of its records again, from step 1.
        """
        self._put_live(self._begin, header)

    def log(self, run_id: str, record: StepRecord) -> None:
        """Adds a row; steps of a run rise."""
        self._put_live(self._log, run_id, record)

    def finish(self, run_id: str, result: RunResult) -> None:
        """Writes the summary and closes the run."""
        self._put_live(self._finish, run_id, result)

    def lacks(self, view: RunView) -> bool:
        """Whether W&B does not have all of a finished run, in this mode or online."""
        return _delivery(view.folder).get("mode") not in (self._mode, "online")

    def replay(self, view: RunView) -> None:
        """Sends a finished run from the store; nothing happens where W&B has it."""
        self._put(self._replay, view)

    def abandon(self, run_id: str) -> None:
        """Closes a run that is unfinished, as preempted."""
        self._put_live(self._abandon, run_id)

    def drain(self, meanwhile: Callable[[], None]) -> None:
        """Waits until everything put in so far is done; calls `meanwhile` several times a second."""
        done = threading.Event()
        self._put(done.set)
        while self._thread is not None and self._thread.is_alive() and not done.wait(0.2):
            meanwhile()

    def close(self, timeout: float = 60.0, *, hurried: bool = False) -> None:
        """Abandons what is still open and waits for the queue, at most `timeout` seconds; `hurried` drops replays."""
        if self._thread is None:
            return
        self._hurried = hurried
        self._queue.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._mode = "disabled"  # whatever answer the thread still waits for, all is said here
            self._say(self._line(f"not everything was taken in within {timeout:g} s"))
            _end_service()

    def _put_live(self, action: Callable[..., None], *args: Any) -> None:
        if self.live:
            self._put(action, *args)

    def _put(self, action: Callable[..., None], *args: Any) -> None:
        if self._thread is not None:
            self._queue.put((action, args))

    def _write(self) -> None:
        """The thread."""
        while (task := self._queue.get()) is not None:
            action, args = task
            try:
                action(*args)
            except Exception as error:
                self._degrade(error)
        for run_id in list(self._open):
            with contextlib.suppress(Exception):  # the run store has it, and a replay sends it
                self._abandon(run_id)

    def _begin(self, header: RunHeader) -> None:
        while self._mode != "disabled":
            try:
                run = self._init(header)
            except Exception as error:
                self._degrade(error)  # and once more in the weaker mode
            else:
                self._open[header.run.run_id] = run
                return

    def _init(self, header: RunHeader) -> wandb.Run:
        import wandb

        for fragment in (self._directory / "wandb").glob(f"*run-*-{header.wandb_id}*"):
            shutil.rmtree(fragment)  # of a life that was cut short; its rows come again
        wandb.setup(wandb.Settings(silent=True))  # init alone would greet on stderr
        run = wandb.init(
            mode=self._mode,
            project=self._project,
            entity=self._entity,
            dir=str(self._directory),
            id=header.wandb_id,
            name=header.run.run_id,
            group=self._study,
            job_type=header.run.phase,
            config=spelled(self._extra | _config(header)),
            resume="allow" if self._mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                symlink=False,
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                x_save_requirements=False,
                init_timeout=self._patience,
                finish_timeout=self._patience,
                finish_timeout_raises=True,
            ),
        )
        for metric in GLOSSARY.values():  # summary="none": one NaN would poison an automatic minimum for ever
            run.define_metric(metric.name, step_metric=None if metric.name == "tokens" else "tokens", summary="none")
        return run

    def _log(self, run_id: str, record: StepRecord) -> None:
        run = self._open.get(run_id)
        if run and record.step >= run.starting_step:  # a resumed run starts after the server's last step
            run.log(as_row(record), step=record.step)

    def _finish(self, run_id: str, result: RunResult) -> None:
        run = self._open.pop(run_id, None)
        if run:
            figures = dataclasses.asdict(result) | {"outcome": result.outcome.value}  # wandb would write an enum's name
            run.summary.update({f"result/{key}": spelled(v) for key, v in figures.items() if v not in (None, "")})
            run.finish(exit_code=int(result.outcome in BROKEN))
            (self._directory / run_id).mkdir(exist_ok=True)
            write_atomic(self._directory / run_id / DELIVERED, encode({"mode": self._mode, "url": run.url}))

    def _replay(self, view: RunView) -> None:
        assert view.result is not None
        if self._hurried or not self.lacks(view):
            return
        self._begin(view.header)
        for record in view.records():
            self._log(view.run_id, record)
        self._finish(view.run_id, view.result)

    def _abandon(self, run_id: str) -> None:
        run = self._open.pop(run_id, None)
        if run:
            run.mark_preempting()
            run.finish(exit_code=1)

    def _degrade(self, error: Exception) -> None:
        """Falls back one mode, and says so."""
        if self._mode == "disabled":
            return
        import wandb

        if self._mode == "online":
            self._mode, effect = "offline", f"goes on offline in {self._directory / 'wandb'}"
        else:
            self._mode, effect = "disabled", "is left out from here"
        self._open.clear()
        with contextlib.suppress(Exception, SystemExit):
            wandb.teardown(exit_code=1)  # a failed init keeps the run's id in use until its session has ended
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])[:200]
        self._say(self._line(f"{reason}; it {effect}"))

    def _line(self, what: str) -> str:
        return f"W&B: {what}; the run store has every step: `hpstudy sync {self._study}` sends what is missing"


def _end_service() -> None:
    """Ends wandb's own process, which waits for a hanging server half a minute, and is waited for at exit."""
    import wandb

    with contextlib.suppress(AttributeError):  # private to wandb; where they have gone, the exit only takes longer
        process = wandb.setup()._connection._proc._process  # type: ignore[union-attr]
        process.kill()
        process.wait()
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown(exit_code=1)


def _config(header: RunHeader) -> dict[str, Any]:
    run = header.run
    return {
        **dataclasses.asdict(run.hparams),
        **header.derived,
        "study": header.study,
        "run_id": run.run_id,
        "trial": run.trial,
        "seed": run.seed,
        "phase": run.phase,
        "budget_tokens": run.tokens,
        "num_params": header.num_params,
        "started": header.started,
        "wandb_id": header.wandb_id,
    }
