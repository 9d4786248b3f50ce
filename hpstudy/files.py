"""Files: their folders, the one atomic write, and JSON that keeps NaN and infinities."""

from __future__ import annotations

import errno
import json
import math
import os
import shlex
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from hpstudy.errors import MachineError, UserError

RUNS = Path("runs")  # the default folder of run stores
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
STORE_REMEDY = "what was recorded before is safe; put this right and run the same command again"
CACHE_REMEDY = "point HPSTUDY_CACHE at a folder that can be written"

CANNOT_SYNC = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EBADF}

T = TypeVar("T")
_JSON = json.JSONEncoder(allow_nan=False)  # built once: encoding a step then takes microseconds


def command(verb: str, name: str, runs: Path, *more: str) -> str:
    """The command line that does something with a study, with --runs if `runs` is not the default."""
    folder = [] if runs == RUNS else ["--runs", str(runs)]
    return shlex.join(["hpstudy", verb, name, *folder, *more])


def cache_dir() -> Path:
    """The folder for what hpstudy can make again: HPSTUDY_CACHE, or `hpstudy` in the user's cache folder.

    Raises UserError for a user without a home.
    """
    if own := os.environ.get("HPSTUDY_CACHE"):
        return Path(own).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hpstudy"
    except RuntimeError as error:
        raise UserError(
            "HPSTUDY_CACHE: must name a folder, because this user has no home to cache tokens in"
        ) from error


def write_atomic(path: Path, *chunks: str | bytes | memoryview, remedy: str = STORE_REMEDY) -> None:
    """Replaces a whole file, durably. Readers see the old file or the new one, also after a crash.

    Several processes may write the same path at once; the last one wins. Makes the parent folder.
    Raises MachineError, ending with `remedy`, when the file cannot be written.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    with writing(path, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("xb") as file:
                file.writelines(chunk.encode() if isinstance(chunk, str) else chunk for chunk in chunks)
                make_durable(file)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        _fsync_folder(path.parent)  # makes the rename durable


def own_file(path: str, flags: int) -> int:
    """An `opener` for files of the store: refuses a symbolic link, through which a foreign file would be changed."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


@contextmanager
def writing(path: Path, remedy: str = STORE_REMEDY) -> Iterator[None]:
    """Turns a failed write into a MachineError that names the file and the remedy."""
    try:
        yield
    except OSError as error:
        raise MachineError(f"{path}: cannot be written ({error.strerror}); {remedy}") from error


def make_durable(file: IO[bytes]) -> None:
    """Sends what was written to the disk, where the file system can say that it has arrived."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise
        note(
            "fsync file", f"{file.name}: files cannot be made durable here ({error.strerror}); a power cut may cut them"
        )


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise
        note(
            "fsync", f"{folder}: renames cannot be made durable here ({error.strerror}); a power cut may undo the last"
        )
    finally:
        os.close(handle)


def note(lacking: str, line: str) -> None:
    """Notes how a file system that lacks something is used nevertheless, for `take_notes`."""
    _notes.setdefault(lacking, line)


def take_notes() -> list[str]:
    """The notes since the last call, each kind once a process."""
    new = [line for line in _notes.values() if line not in _taken]
    _taken.update(new)
    return new


_notes: dict[str, str] = {}
_taken: set[str] = set()


def to_json(value: Any) -> str:
    """One line of standard JSON. Numbers that are not finite become the strings of NON_FINITE."""
    try:
        return _JSON.encode(value)
    except ValueError:  # some number is not finite, which is rare
        return _JSON.encode(spelled(value))


def from_json(text: str | bytes) -> Any:
    """The value that `to_json` wrote, with tuples as lists. Raises ValueError when the text is not JSON."""
    return unspelled(json.loads(text))


def spelled(value: Any) -> Any:
    """A copy in which numbers that are not finite are spelled out, as JSON has none: the strings of NON_FINITE."""
    if isinstance(value, dict):
        return {key: spelled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [spelled(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def unspelled(value: Any) -> Any:
    """The inverse of `spelled`."""
    if isinstance(value, dict):
        return {key: unspelled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unspelled(item) for item in value]
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


def json_object(value: Any) -> dict[str, Any]:
    """The value, which must be a JSON object. Raises TypeError if it is not."""
    if not isinstance(value, dict):
        raise TypeError(f"must be an object, but got {type(value).__name__}")
    return value


def read_json(
    path: Path, build: Callable[[Any], T] = lambda value: value, remedy: str = "restore it from a copy"
) -> T | None:
    """What `build` makes of a JSON file, or None if there is no file.

    Raises MachineError if the file is damaged, or `build` does not find what it needs.
    """
    try:
        return build(from_json(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise MachineError(
            f"{path}: must be a file that hpstudy wrote, but it is damaged: {problem_of(error)}; {remedy}"
        ) from error


def problem_of(error: Exception) -> str:
    """What is wrong with a value that could not be read, in a few words."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
