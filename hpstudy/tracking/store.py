"""The run store: one folder per study, one per run, readable with cat, jq and pandas."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from hpstudy.errors import MachineError, UserError
from hpstudy.hparams import HParams
from hpstudy.records import Outcome, Phase, Run, RunHeader, RunResult, StepRecord, as_row, changes, from_row
from hpstudy.study import GROWING

RUN_ID = re.compile(r"[a-z]+(-[a-z0-9]+)+")  # search-0007, confirm-0007-s101: no dot and no slash leaves the folder
LOCK = ".lock"
PHASES: tuple[str, ...] = get_args(Phase)
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

T = TypeVar("T")
_JSON = json.JSONEncoder(allow_nan=False)  # raises on what JSON cannot spell; built once, a step costs microseconds


def spelled(value: Any) -> Any:
    """The value with each non-finite number in it as the string "NaN", "Infinity" or "-Infinity"."""
    if isinstance(value, dict):
        return {key: spelled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [spelled(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def restored(value: Any) -> Any:
    """The inverse of `spelled`; a string that reads like a non-finite number becomes one."""
    if isinstance(value, dict):
        return {key: restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [restored(item) for item in value]
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


def encode(obj: Any) -> str:
    """One line of standard JSON, non-finite numbers as strings."""
    try:
        return _JSON.encode(obj)
    except ValueError:  # holds a non-finite number, which is rare
        return _JSON.encode(spelled(obj))


def decode(text: str | bytes) -> Any:
    """What `encode` was given, tuples as lists; raises ValueError when the text is not JSON."""
    return restored(json.loads(text))


def write_atomic(path: Path, text: str) -> None:
    """Writes a whole file or, if the machine dies meanwhile, leaves the old one."""
    part = path.with_name(path.name + ".part")  # one fixed name: the driver is the only writer
    with _naming(path), part.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    with _naming(path):
        part.replace(path)
        _fsync_folder(path.parent)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run as it lies on disk; `result` is None while it is unfinished."""

    folder: Path
    header: RunHeader
    result: RunResult | None

    @property
    def run_id(self) -> str:
        """The name of the run's folder."""
        return self.folder.name

    @property
    def steps_path(self) -> Path:
        """The file with one line of JSON per step."""
        return self.folder / "steps.jsonl"

    def rows(self) -> Iterator[dict[str, Any]]:
        """Each step as {metric name: value}.

        A last line that is cut short is left out while the run is unfinished; in a finished run it raises MachineError,
        and so does any other line that is not a row, and a step that is missing at the end.
        """
        count = 0
        for line in self._lines():
            if not line.endswith(b"\n") and self.result is None:
                return
            count += 1
            try:
                row = decode(line)
            except ValueError as error:
                raise self._damaged(f"line {count} must be a JSON object, but it is damaged ({error})") from error
            yield row
        self.expect(count)

    def expect(self, num_steps: int) -> None:
        """Raises MachineError when a finished run holds another number of steps than its result says."""
        if self.result is not None and num_steps != self.result.steps:
            raise self._damaged(f"must hold {self.result.steps} steps, but holds {num_steps}")

    def _lines(self) -> Iterator[bytes]:
        if self.steps_path.exists():
            with self.steps_path.open("rb") as file:
                yield from file

    def _damaged(self, what: str) -> MachineError:
        return MachineError(f"{self.steps_path}: {what}; remove {self.folder} and run the study again")

    def records(self) -> Iterator[StepRecord]:
        """Each step as a record, in order; raises as `rows` does."""
        return map(from_row, self.rows())


class RunWriter:
    """Appends the steps of one run; a process that is killed has lost none of them.

    An unfinished run is gone on with: `recorded` is what lies there, up to the first line that is damaged, and that
    line and what follows it are cut off. A step that is trained again is compared and not written.
    """

    def __init__(self, folder: Path, *, anew: bool = False) -> None:
        self._path = folder / "steps.jsonl"
        with _naming(self._path):
            self._steps = self._path.open("wb" if anew else "ab")
            lines = self._path.read_bytes()
            self.recorded, intact = _intact(lines)
            self.cut = len(lines) - intact
            """Bytes of damaged lines that were cut off."""
            self._steps.truncate(intact)

    def append(self, record: StepRecord) -> bool:
        """Hands one step to the operating system, and is True; False for a step that was recorded before.

        Raises MachineError when a step that is trained again has other figures than before.
        """
        if record.step <= len(self.recorded):
            self._compare(self.recorded[record.step - 1], record)
            return False
        with _naming(self._path):
            self._steps.write(encode(as_row(record)).encode() + b"\n")
            self._steps.flush()
        return True

    def sync(self) -> None:
        """Makes the steps durable."""
        with _naming(self._path):
            os.fsync(self._steps.fileno())

    def _compare(self, before: StepRecord, again: StepRecord) -> None:
        if different := changes(before, again):
            raise MachineError(
                f"{self._path}: step {again.step} trained again gives {different}; this machine does not "
                f"repeat its numbers; remove {self._path.parent} to train the run anew"
            )

    def finish(self, result: RunResult) -> None:
        """Makes the steps durable, then the result: a run with a result has all its steps."""
        self.sync()
        self.close()
        write_atomic(self._path.with_name("result.json"), encode(dataclasses.asdict(result)))

    def close(self) -> None:
        """Leaves the run unfinished."""
        with _naming(self._path):
            self._steps.close()


def _intact(lines: bytes) -> tuple[list[StepRecord], int]:
    """The records of the first lines, as far as they are whole and their steps run 1, 2, 3…; and their bytes."""
    records: list[StepRecord] = []
    size = 0
    for line in lines.splitlines(keepends=True):
        try:
            record = from_row(decode(line))
        except (ValueError, TypeError, AttributeError):
            break
        if not line.endswith(b"\n") or record.step != len(records) + 1:
            break
        records.append(record)
        size += len(line)
    return records, size


@dataclass(frozen=True, slots=True)
class RunStore:
    """The folder of one study, `RUNS/NAME`; nothing is created before `create`."""

    root: Path

    def create(self) -> None:
        """Makes the folder; raises UserError when it cannot be written."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise UserError(
                f"{self.root}: the folder of runs must be writable, but got: {error.strerror}; name another with --runs"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the study for one driver. The system lets go of it however the process ends.

        Raises UserError when another process has it.
        """
        with (self.root / LOCK).open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                raise UserError(
                    f"{self.root}: another hpstudy ({file.read().strip()}) runs this study; wait for it, or end it"
                ) from error
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {platform.node()}")
            file.flush()
            yield

    def discard_unless_begun(self) -> None:
        """Takes away what is left of a study that was refused before it began; call it under the lock."""
        if (self.root / "study.json").exists():
            return
        for leftover in (self.root / LOCK, self.root / "environment.json", *self.root.glob("worker-*.log")):
            leftover.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty, so not ours alone
            self.root.rmdir()

    def folder(self, run_id: str) -> Path:
        """Where a run lies; raises UserError when the id is not one."""
        if not RUN_ID.fullmatch(run_id):
            raise UserError(
                f"{self.root}: a run's name must look like search-0007 or baseline-s101, but got {run_id!r}"
            )
        return self.root / run_id

    def write_json(self, name: str, obj: Any) -> None:
        """Writes a file of the study, such as environment.json, atomically."""
        write_atomic(self.root / name, encode(obj))

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object that `write_json` wrote, or None when there is no such file; raises MachineError as `read`."""
        return self.read(name, _object)

    def read(self, name: str, build: Callable[[Any], T]) -> T | None:
        """A value built of what `write_json` wrote, or None when there is no such file.

        Raises MachineError when the file is damaged, or `build` does not find in it what it needs.
        """
        return _load(self.root / name, build)

    def freeze_study(self, toml_text: str, resolved: dict[str, Any]) -> None:
        """Keeps the study file, and the values it resolved to when the study began; only what may grow is renewed."""
        began = self.read_json("study.json") or resolved
        write_atomic(self.root / "study.toml", toml_text)
        self.write_json("study.json", {**began, **{key: resolved[key] for key in GROWING if key in resolved}})

    def begin(self, header: RunHeader, *, anew: bool = False) -> RunWriter:
        """Starts a run, or goes on with an unfinished one, unless `anew`; header.json is written before all else."""
        folder = self.folder(header.run.run_id)
        assert not (folder / "result.json").exists(), f"{folder} is finished"
        with _naming(folder):
            folder.mkdir(exist_ok=True)
        write_atomic(folder / "header.json", encode(dataclasses.asdict(header)))
        return RunWriter(folder, anew=anew)

    def header(self, run_id: str) -> RunHeader | None:
        """What was known before step 1, or None when the run never began."""
        return _load(self.folder(run_id) / "header.json", _header)

    def result(self, run_id: str) -> RunResult | None:
        """How the run ended, or None while it is unfinished."""
        return _load(self.folder(run_id) / "result.json", _result)

    def view(self, run_id: str) -> RunView:
        """A run that began."""
        header = self.header(run_id)
        assert header is not None, f"{run_id} never began"
        return RunView(folder=self.folder(run_id), header=header, result=self.result(run_id))

    def runs(self) -> list[RunView]:
        """Every run that began, in order of phase and number."""
        if not self.root.is_dir():
            return []
        views = [
            RunView(folder=folder, header=header, result=self.result(folder.name))
            for folder in self.root.iterdir()
            if RUN_ID.fullmatch(folder.name) and (header := self.header(folder.name))
        ]
        return sorted(views, key=lambda view: run_order(view.header.run))


def run_order(run: Run) -> tuple[int, int, int]:
    """The key that sorts runs by phase, then trial, then seed."""
    return PHASES.index(run.phase), -1 if run.trial is None else run.trial, run.seed


def _object(raw: Any) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise TypeError(f"must be an object, but got {type(raw).__name__}")
    return raw


def _known(kind: type[Any], raw: dict[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass out of a JSON object; unknown ones are ignored, so that newer stores still load."""
    return {field.name: raw[field.name] for field in dataclasses.fields(kind) if field.name in raw}


def _header(raw: dict[str, Any]) -> RunHeader:
    run = _known(Run, raw["run"])
    run["hparams"] = HParams(**_known(HParams, run["hparams"]))
    return RunHeader(**_known(RunHeader, raw) | {"run": Run(**run)})


def _result(raw: dict[str, Any]) -> RunResult:
    return RunResult(**_known(RunResult, raw) | {"outcome": Outcome(raw["outcome"])})


def _load(path: Path, build: Callable[[Any], T]) -> T | None:
    """A value out of a JSON file, or None when there is no file; raises MachineError when it is damaged."""
    try:
        return build(decode(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise MachineError(f"{path}: must be a file that hpstudy wrote, but it is damaged: {error!r}") from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns a failed write into a MachineError that names the file."""
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"{path}: cannot be written: {error.strerror}; what was recorded before is safe: "
            "free some space and run the same command again"
        ) from error


def _fsync_folder(folder: Path) -> None:
    """Makes a rename durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
