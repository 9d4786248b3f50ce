"""The run store: one folder per study, one per run, readable with cat, jq and pandas."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from hpstudy.errors import MachineError, UserError
from hpstudy.files import (
    from_json,
    json_object,
    make_durable,
    note,
    own_file,
    read_json,
    to_json,
    write_atomic,
    writing,
)
from hpstudy.hparams import GPT3
from hpstudy.records import (
    Run,
    RunHeader,
    RunResult,
    StepRecord,
    as_row,
    from_row,
    repeats,
    run_order,
    step_differences,
)
from hpstudy.study import GROWING
from hpstudy.study.frozen import ENVIRONMENT, LADDER_FILE, SOURCE, STUDY_FILE, STUDY_VALUES, source_of
from hpstudy.tracking.lease import LEASE, Holding, held, leased
from hpstudy.tracking.seal import HEADER, MARK, RESULT, STEPS, TABLE, damage, mark, marked_damage, sealed

RUN_ID = re.compile(r"[a-z]+(-[a-z0-9]+)+")  # search-0007, confirm-0007-s101: cannot leave the folder
LOCK = ".lock"
RAY_LOG = "ray.log"  # in the run folder: what Ray prints about its nodes
DELIVERED = "wandb.json"  # in a run's folder once W&B has all of the run
LOCKED = {errno.EWOULDBLOCK, errno.EACCES}  # by another process; any other error says that files cannot be locked
LEAST_TABLE = 1 << 18  # bytes of steps.jsonl, about 800 steps: fewer are read as fast from it
T = TypeVar("T")


def delivery(folder: Path) -> dict[str, Any]:
    """What W&B has of a run: mode, url and id. Empty if unknown: the run is then sent again, each row once."""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        found = from_json((folder / DELIVERED).read_bytes())
        if isinstance(found, dict) and isinstance(found.get("mode"), str) and isinstance(found["url"], str | None):
            return found
    return {}


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run on disk."""

    folder: Path
    header: RunHeader
    result: RunResult | None  # None: unfinished

    @property
    def run_id(self) -> str:
        """The name of the run's folder."""
        return self.folder.name

    @property
    def wandb_id(self) -> str:
        """The id under which W&B has the run: the header's, unless the run was sent again under another."""
        return str(delivery(self.folder).get("id") or self.header.wandb_id)

    @property
    def steps_path(self) -> Path:
        """The file with one line of JSON per step."""
        return self.folder / STEPS

    @cached_property
    def damage(self) -> str | None:
        """What was changed after the run ended, and the remedy; None if nothing was, or while it is unfinished."""
        found = damage(self.folder) if self.result is not None else None
        return f"{self.folder}: {found}; {_retrain(self.folder)}" if found else None

    def rows(self, after: int = 0) -> Iterator[dict[str, Any]]:
        """Each step behind step `after` as {metric name: value}.

        In an unfinished run an incomplete last line is left out. Raises MachineError for any other damaged line, and
        for missing steps at the end of a finished run.
        """
        count = 0
        for line in self._lines():
            if not line.endswith(b"\n") and self.result is None:
                return
            count += 1
            if count <= after:
                continue
            try:
                row = json_object(from_json(line))
            except (ValueError, TypeError) as error:
                raise self._damaged(f"line {count} must be a JSON object, but it is damaged ({error})") from error
            yield row
        self.expect(count)

    def expect(self, num_steps: int) -> None:
        """Raises MachineError if a finished run has another number of steps than its result says."""
        if self.result is not None and num_steps != self.result.steps:
            raise self._damaged(f"must hold {self.result.steps} steps, but holds {num_steps}")

    def _lines(self) -> Iterator[bytes]:
        if self.steps_path.exists():
            with self.steps_path.open("rb") as file:
                yield from file

    def _damaged(self, what: str) -> MachineError:
        return MachineError(f"{self.steps_path}: {what}; {_retrain(self.folder)}")

    def records(self, after: int = 0) -> Iterator[StepRecord]:
        """Each step behind step `after` as a record, in order.

        Raises as `rows` does, and if another version wrote the steps.
        """
        for row in self.rows(after):
            try:
                yield from_row(row)
            except TypeError as error:
                raise _other_version(self.steps_path, error) from error


class RunWriter:
    """Appends the steps of one run, so that a killed process has lost none of them.

    A step that is trained again after a resume is compared with its record and not written.
    """

    def __init__(
        self,
        path: Path,
        steps: IO[bytes],
        recorded: list[StepRecord],
        intact: bytes,
        cut: int,
        refuse_if_lost: Callable[[], None],
        exact: bool,
    ) -> None:
        self._path, self._steps, self._refuse_if_lost, self._exact = path, steps, refuse_if_lost, exact
        self._size, self._sha256 = len(intact), hashlib.sha256(intact)
        self.recorded = recorded
        """The intact steps of earlier attempts."""
        self.cut = cut
        """Bytes of damaged lines that were cut off."""

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        fresh: bool = False,
        exact: bool = True,
        refuse_if_lost: Callable[[], None] = lambda: None,
    ) -> RunWriter:
        """Resumes a run after its intact steps, cutting off the rest; with `fresh` it starts again from step 1.

        `exact`: steps trained again must have the same bits. `refuse_if_lost` is called before each write. Raises
        MachineError if steps that would not be trained again have changed.
        """
        path = folder / STEPS
        with writing(path):
            lines = path.read_bytes() if path.exists() and not fresh else b""
            found, marked = marked_damage(folder, lines)
            if found and not fresh:
                raise MachineError(f"{folder}: {found}; {_retrain(folder)}")
            recorded, intact = _intact(path, lines)
            if marked > intact:
                (folder / MARK).unlink()  # steps that are gone will be trained, and timed, anew
            steps = open(path, "ab", opener=own_file)  # noqa: SIM115
            steps.truncate(intact)
        return cls(path, steps, recorded, lines[:intact], len(lines) - intact, refuse_if_lost, exact)

    def append(self, record: StepRecord) -> bool:
        """Hands a step to the operating system and returns True; returns False for a step recorded before.

        Raises MachineError if a step trained again differs from its record.
        """
        if record.step <= len(self.recorded):
            self._compare(self.recorded[record.step - 1], record)
            return False
        line = to_json(as_row(record)).encode() + b"\n"
        with writing(self._path):
            self._refuse_if_lost()  # just before, as a driver may be held at any moment
            self._steps.write(line)
            self._steps.flush()
        self._size += len(line)
        self._sha256.update(line)
        return True

    def sync(self) -> None:
        """Makes the steps durable."""
        with writing(self._path):
            make_durable(self._steps)

    def mark(self) -> None:
        """Makes the steps durable and notes their hash, before a checkpoint stands for them.

        Raises MachineError as `finish` does.
        """
        self.sync()
        with self._untouched():
            mark(self._path.parent, self._size, self._sha256.hexdigest())

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """Raises MachineError if the run's files were changed, or if its folder is removed now or inside.

        If another driver did that, which has taken over the study, it says so: its files are not to be removed. So the
        lease is looked at after all that may take long, and again before anything else is blamed.
        """
        folder = self._path.parent
        self._refuse_if_lost()
        try:
            if not (folder / HEADER).exists():
                raise FileNotFoundError(folder / HEADER)
            if (self._path.stat().st_size if self._path.exists() else -1) != self._size:
                self._refuse_if_lost()
                raise MachineError(f"{self._path}: was changed while the run trained; {_retrain(folder)}")
            yield
        except FileNotFoundError as error:
            self._refuse_if_lost()
            raise MachineError(_gone(folder)) from error

    def _compare(self, before: StepRecord, again: StepRecord) -> None:
        if different := step_differences(before, again, exact=self._exact):
            raise MachineError(
                f"{self._path}: step {again.step} trained again gives {different}; the file was changed, or this "
                f"machine does not repeat its numbers; remove {self._path.parent} to train the run again from step 1"
            )

    def finish(self, result: RunResult) -> None:
        """Makes first the steps durable, then the result: a run with a result has all its steps.

        Raises MachineError if a file of the run was removed or changed meanwhile.
        """
        self.sync()
        self.close()
        folder = self._path.parent
        with self._untouched():
            self._keep_table()
            write_atomic(folder / RESULT, to_json(sealed(dataclasses.asdict(result), folder)))
        (folder / MARK).unlink(missing_ok=True)

    def _keep_table(self) -> None:
        """Writes many steps as a table too, which is read faster; without it, removes that of an earlier training."""
        if self._size < LEAST_TABLE:
            (self._path.parent / TABLE).unlink(missing_ok=True)
            return
        from hpstudy.tracking.steps_table import write_table  # pyarrow takes 0.2 s to import

        write_table(self._path.parent)

    def close(self) -> None:
        """Leaves the run unfinished."""
        with writing(self._path):
            self._steps.close()


def _intact(path: Path, lines: bytes) -> tuple[list[StepRecord], int]:
    """The records of the first lines, up to a damaged or missing one, and the number of their bytes.

    Raises MachineError if the first line is intact and lacks a metric: another version wrote it, and cutting it off
    would lose the run.
    """
    records: list[StepRecord] = []
    size = 0
    for line in lines.splitlines(keepends=True):
        try:
            row = json_object(from_json(line))
        except (ValueError, TypeError):
            break
        if not line.endswith(b"\n") or row.get("step") != len(records) + 1:
            break
        try:
            record = from_row(row)
        except TypeError as error:
            if records:
                break
            raise _other_version(path, error) from error
        records.append(record)
        size += len(line)
    return records, size


def _other_version(path: Path, error: TypeError) -> MachineError:
    return MachineError(f"{path}: was written by another version of hpstudy ({error}); use that version for the study")


def _gone(folder: Path) -> str:
    return f"{folder}: was removed while the study ran; run the study again, which trains the run again"


def _retrain(folder: Path) -> str:
    """The remedy for a damaged file of a run."""
    return f"remove {folder} and run the study again"


def begun_studies(runs: Path) -> list[str]:
    """The names of the studies that have begun in a folder of run stores, sorted."""
    return sorted(path.parent.name for path in runs.glob(f"*/{STUDY_VALUES}"))


def begun_ladders(runs: Path) -> list[str]:
    """The names of the ladders that have begun in a folder, sorted."""
    return sorted(path.parent.name for path in runs.glob(f"*/{LADDER_FILE}"))


class _Kept(NamedTuple):
    """What a file held when it was last read."""

    state: tuple[int, int, int, int]  # inode, size, times of the last change and of the last change of its entry
    value: Any


@dataclass(frozen=True, slots=True)
class RunStore:
    """The folder of one study, `RUNS/NAME`. Nothing is created before `create`."""

    root: Path
    _seen: set[str] = field(default_factory=set, init=False, repr=False, compare=False)  # runs that must stay there
    _holding: list[Holding] = field(default_factory=list, init=False, repr=False, compare=False)  # of the lease, if any
    _read: dict[str, _Kept] = field(default_factory=dict, init=False, repr=False, compare=False)  # by path

    @property
    def begun(self) -> bool:
        """Whether a study has begun here, also if the file with its values is lost."""
        return (self.root / STUDY_VALUES).exists() or any(self.root.glob(f"*/{HEADER}"))

    def create(self) -> None:
        """Makes the folder. Raises UserError if it is not writable."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise UserError(
                f"{self.root}: the folder of runs must be writable, but got: {error.strerror}; name another with --runs"
            ) from error

    @contextmanager
    def locked(self, on_lost: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Reserves the study for one driver: with a lock, which the system releases, and a lease for other hosts.

        Raises UserError if another process holds it. Calls `on_lost` if another host takes it over nevertheless, as
        after a long sleep of this one.
        """
        with writing(self.root / LOCK):
            file = open(self.root / LOCK, "a+", opener=own_file)  # noqa: SIM115
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in LOCKED:
                    file.seek(0)
                    raise held(self.root, file.read().strip()) from error
                note(
                    "flock", f"{self.root}: files cannot be locked here ({error.strerror}); a lease in {LEASE} is used"
                )
            try:
                with leased(self.root, on_lost) as holding:
                    file.truncate(0)
                    file.write(str(holding))
                    file.flush()
                    self._holding.append(holding)
                    try:
                        yield
                    finally:
                        self._holding.remove(holding)
            finally:
                with contextlib.suppress(OSError):  # a beat of the lease kept the folder of a study that was refused
                    self.root.rmdir()

    def refuse_if_lost(self) -> None:
        """Raises MachineError if this process has lost the study to another driver."""
        for holding in self._holding:
            holding.refuse_if_lost()

    def discard_unless_begun(self) -> None:
        """Removes the files of a study that was refused before it began. Call it under the lock."""
        if self.begun:
            return
        for leftover in (
            *(self.root / name for name in (LOCK, LEASE, ENVIRONMENT, RAY_LOG)),
            *self.root.glob("worker-*.log"),
        ):
            leftover.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: other files are not ours to remove
            self.root.rmdir()

    def folder(self, run_id: str) -> Path:
        """The folder of a run. Raises UserError if the id is not valid."""
        if not RUN_ID.fullmatch(run_id):
            raise UserError(
                f"{self.root}: a run's name must look like search-0007 or baseline-s101, but got {run_id!r}"
            )
        return self.root / run_id

    def write_json(self, name: str, value: Any) -> None:
        """Writes a file of the study, such as environment.json, atomically."""
        self.refuse_if_lost()
        write_atomic(self.root / name, to_json(value))

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object in a file of the study, or None if there is no file. Raises MachineError if it is damaged."""
        return read_json(self.root / name, json_object)

    def keeps(self, resolved: dict[str, Any]) -> bool:
        """Whether a study with these values has begun here and has not grown since it was last kept."""
        kept = self.read_json(STUDY_VALUES)
        return kept is not None and all(kept.get(key) == resolved[key] for key in GROWING if key in resolved)

    def freeze_study(self, toml_text: str, resolved: dict[str, Any], path: Path | None = None) -> None:
        """Keeps the study file and the values it had when the study began. Later only the growing keys are renewed.

        Also keeps the `path` of the file, for the commands that hpstudy names, if none is kept yet.
        """
        began = self.read_json(STUDY_VALUES) or resolved
        write_atomic(self.root / STUDY_FILE, toml_text)
        self.write_json(STUDY_VALUES, {**began, **{key: resolved[key] for key in GROWING if key in resolved}})
        if path is not None and self.read_json(SOURCE) is None:
            self.keep_source(path)

    def keep_source(self, path: Path) -> None:
        """Keeps the path of the study's own file."""
        self.write_json(SOURCE, source_of(path, self.root))

    def begin(self, header: RunHeader, *, fresh: bool = False, exact: bool = True) -> RunWriter:
        """Starts or resumes a run; `fresh` discards its steps. header.json is written before anything else.

        `exact`: steps trained again must have the same bits as their records.
        """
        folder = self.folder(header.run.run_id)
        assert not (folder / RESULT).exists(), f"{folder} is finished"
        self.refuse_if_lost()
        if self.header(header.run.run_id) != header:  # else as another version may have written it, under its hash
            write_atomic(folder / HEADER, to_json(dataclasses.asdict(header)))
        self._seen.add(header.run.run_id)
        return RunWriter.open(folder, fresh=fresh, exact=exact, refuse_if_lost=self.refuse_if_lost)

    def header(self, run_id: str) -> RunHeader | None:
        """What was known before step 1, or None if the run never began."""
        return self._kept(self.folder(run_id), HEADER, _header)

    def result(self, run_id: str) -> RunResult | None:
        """How the run ended, or None if it is unfinished."""
        return self._kept(self.folder(run_id), RESULT, build_result)

    def _kept(self, folder: Path, name: str, build: Callable[[Any], T]) -> T | None:
        """What a file of a run holds, None without one. It is read again only if it is another or has changed."""
        path = f"{folder}/{name}"
        try:
            found = os.stat(path)  # noqa: PTH116  # Path.stat takes twice as long, and a look has thousands
        except FileNotFoundError:
            self._read.pop(path, None)
            return None
        state = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)  # before it is read: never too new
        kept = self._read.get(path)
        if kept is None or kept.state != state:
            value = read_json(folder / name, build, _retrain(folder))
            kept = self._read[path] = _Kept(state, value)
        return cast("T | None", kept.value)

    def view(self, run_id: str) -> RunView:
        """A run that has begun."""
        header = self.header(run_id)
        assert header is not None, f"{run_id} never began"
        return RunView(folder=self.folder(run_id), header=header, result=self.result(run_id))

    def runs(self) -> list[RunView]:
        """Every run that has begun, in order of phase, trial and seed.

        Raises MachineError for a damaged one, and for one that was there before in this process and is gone.
        """
        views = [
            RunView(folder=folder, header=header, result=self._kept(folder, RESULT, build_result))
            for folder, header in self._headers()
            if header.run.run_id == folder.name
        ]
        if gone := sorted(self._seen - {view.run_id for view in views}):
            raise MachineError("\n".join(_gone(self.folder(run_id)) for run_id in gone))
        self._seen.update(view.run_id for view in views)
        return sorted(views, key=lambda view: run_order(view.header.run))

    def refuse_damage(self) -> None:
        """Raises MachineError if a finished run was changed after it ended."""
        if found := [view.damage for view in self.runs() if view.damage]:
            raise MachineError("\n".join(found))

    def strange_folders(self, runs: Sequence[RunView]) -> list[Path]:
        """Folders that look like runs and are none of `runs`, such as a copy of one. They are left alone."""
        known = {view.folder for view in runs}
        return sorted(path.parent for path in self.root.glob(f"*/{HEADER}") if path.parent not in known)

    def _headers(self) -> Iterator[tuple[Path, RunHeader]]:
        """Each folder that has the name of a run, with its header. Raises MachineError for a result without one."""
        for folder in self.root.iterdir() if self.root.is_dir() else ():
            if not RUN_ID.fullmatch(folder.name):
                continue
            if header := self._kept(folder, HEADER, _header):
                yield folder, header
            elif (folder / RESULT).exists():
                raise MachineError(f"{folder}: has a result but no {HEADER}; {_retrain(folder)}")


def build_run(raw: dict[str, Any]) -> Run:
    """A run from a JSON object, whatever version wrote it."""
    return _build(Run, _complete(raw))


def _header(raw: dict[str, Any]) -> RunHeader:
    datetime.fromisoformat(raw["started"])  # raises ValueError for another text
    return _build(RunHeader, raw | {"run": _complete(raw["run"])})


def build_result(raw: dict[str, Any]) -> RunResult:
    """A result from a JSON object. Raises ValueError for a value of a wrong type."""
    return _build(RunResult, raw)


def _complete(run: dict[str, Any]) -> dict[str, Any]:
    """A run's values, with those that the version which wrote it did not have.

    A missing hyperparameter was at GPT-3's value.
    """
    of, fraction = repeats(run["run_id"])
    return {"of": of, "fraction": fraction} | run | {"hparams": dataclasses.asdict(GPT3) | run["hparams"]}


def _build(kind: type[T], raw: dict[str, Any]) -> T:
    """A dataclass from a JSON object. Unknown keys are ignored, so that newer stores still load.

    Raises ValueError for a value of a wrong type.
    """
    try:
        return cast("T", _adapter(kind).validate_python(raw))  # type: ignore[arg-type]  # a class is hashable
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, found['loc']))}: {found['msg']}, but got {found['input']!r}") from error


@functools.cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
