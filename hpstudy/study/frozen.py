"""The study that a run folder keeps as it began: loaded, and compared with its file of today."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpstudy.errors import HpstudyError, UserError
from hpstudy.files import command, json_object, read_json
from hpstudy.study.load import load_study, parse_study, study_folders, with_seeds
from hpstudy.study.parse import read
from hpstudy.study.study import GROWING, Study, study_sha256

STUDY_FILE, STUDY_VALUES, ENVIRONMENT = "study.toml", "study.json", "environment.json"  # in the run folder
LADDER_FILE = "ladder.toml"  # in a ladder's folder: its file as it began
SOURCE = "source.json"  # in the run folder: where the study's own file is; versions before 0.3 wrote none
ANOTHER_STUDY = "put the values back, or copy the file under another name for another study"
PLAINEST = """
question = "What are the defaults?"
format = 1
trainer = { model = "gpt-2x64", tokens = 1_000_000 }
search = {}
"""


def load_frozen(root: Path) -> Study:
    """The study in the run folder `root` as it was when it began, with what has grown since.

    Raises UserError if no study has begun there or its frozen files were edited, MachineError if they are damaged.
    """
    path = root / STUDY_FILE
    run_it = command("run", study_argument(root) or root.name, root.parent)
    repair = f"`{run_it}` writes this copy again from the study's own file"
    if not path.exists():
        if (root / STUDY_VALUES).exists():
            raise UserError(f"{path}: is missing; {repair}")
        raise UserError(f"{root}: no study has begun there; start it with `{run_it}`")
    text = path.read_text(encoding="utf-8", errors="replace")  # damage then shows as bad TOML or changed values
    try:
        study = parse_study(text, name=root.name, path=path)
    except UserError as error:
        raise UserError(f"{error.problems[0]}; {repair}") from error
    study = as_begun(study, root)
    refuse_changes(study, root, repair)
    return study


def frozen_text(study: Study) -> str:
    """What the run folder keeps of a study's file: its text, and its format if the file states none."""
    text = study.path.read_text(encoding="utf-8-sig")
    return text if study.states_format else f"format = {study.format}  # hpstudy's newest when the study began\n{text}"


def source_of(path: Path, root: Path) -> dict[str, str]:
    """What SOURCE holds: the path of a study's own file from its run folder, so that both can move together."""
    return {"path": os.path.relpath(path.resolve(), root.resolve())}


def study_file(root: Path) -> Path | None:
    """The file of the study in the run folder `root`: where it was when the study began, by name, or in this folder.

    None if there is none. A file that is found by its name alone must state this study.
    """
    file = f"{root.name}.toml"
    named = _by_name(root.name)
    if (own := _own_file(root)) is not None:
        return named if named is not None and named.samefile(own) else _from_here(own)
    return next((path for path in (named, Path(file)) if path is not None and _is_study_of(path, root)), None)


def study_argument(root: Path) -> str | None:
    """What `hpstudy run` takes for the study in the run folder `root`: its name, or the path of its file if it has one.

    None if the file is not found.
    """
    path = study_file(root)
    return None if path is None else root.name if path == _by_name(root.name) else str(path)


def run_command(root: Path, *more: str) -> str:
    """The command line that runs or resumes the study in the run folder `root`.

    If its own file is gone, it is made again from the copy in the run folder.
    """
    if (argument := study_argument(root)) is not None:
        return command("run", argument, root.parent, *more)
    file = str(root / f"{root.name}.toml")  # beside the copy, where no file of the user's can be in the way
    copy = shlex.join(["cp", str(root / STUDY_FILE), file])
    return f"{copy} && {command('run', file, root.parent, *more)}"


def _by_name(name: str) -> Path | None:
    """The file that `hpstudy run NAME` takes."""
    return next((path for folder in study_folders() if (path := folder / f"{name}.toml").is_file()), None)


def _own_file(root: Path) -> Path | None:
    """The file that the study was begun or last resumed with, if it is still there."""
    with suppress(HpstudyError, KeyError, TypeError):
        kept = read_json(root / SOURCE, json_object) or {}
        path = Path(root.resolve(), str(kept["path"])).resolve()
        if path.is_file() and path.name == f"{root.name}.toml":
            return path
    return None


def _from_here(path: Path) -> Path:
    """The path from the current folder, if it is inside."""
    here = Path.cwd().resolve()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _is_study_of(path: Path, root: Path) -> bool:
    """Whether a file states the study that began in the run folder `root`."""
    with suppress(HpstudyError):
        if path.is_file():
            refuse_changes(load_study(str(path)), root)
            return True
    return False


def as_begun(study: Study, root: Path) -> Study:
    """The study in the format and on the seeds that it began with in the run folder `root`, if its file states none.

    Another version would take another format and derive other seeds, as would another name of the folder.
    """
    began = _frozen_format(root)
    if not study.states_format and began not in (None, study.format):
        study = load_study(str(study.path), version=began)
    frozen = read_json(root / STUDY_VALUES, json_object) if study.derives_seeds else None
    seeds = (frozen or {}).get("confirm.seeds")
    return with_seeds(study, seeds) if isinstance(seeds, list) and seeds else study


def refuse_changes(study: Study, root: Path, remedy: str = ANOTHER_STUDY) -> None:
    """Raises UserError if `study` differs from the one that began in the run folder `root`, except in what may grow.

    Also if the frozen values do not have the hash that was noted when the study began. `remedy` ends each line.
    """
    study, frozen = as_begun(study, root), read_json(root / STUDY_VALUES, json_object)
    noted = (read_json(root / ENVIRONMENT, json_object) or {}).get("study_sha256")
    if frozen is None:
        if noted not in (None, study_sha256(study.resolved())):
            raise UserError(
                f"{root / STUDY_VALUES}: is missing, and {study.path} is not as when the study began (its values must "
                f"have the hash {noted}); restore either, or start again with another --runs folder"
            )
        return
    if noted not in (None, study_sha256(frozen)):
        raise UserError(
            f"{root / STUDY_VALUES}: was edited after the study began (its hash must be {noted}); put back what was "
            "edited, or start again with another --runs folder"
        )
    changes = changed_keys(frozen, study.resolved())
    began = _frozen_format(root)
    if changes and began not in (None, study.format):
        named = ", ".join(line.partition(":")[0] for line in changes)
        raise UserError(
            f"{study.path}: changed after its study began: format: was {began}, is {study.format}, which has other "
            f"defaults (different are {named}); write `format = {began}` again, or copy the file under another name "
            "for another study"
        )
    if changes:
        raise UserError(f"{study.path}: changed after its study began: {line}; {remedy}" for line in changes)


def _frozen_format(root: Path) -> int | None:
    """The format that the study file in a run folder states, or None if there is no such file or it is damaged."""
    with suppress(OSError, UserError):
        return read((root / STUDY_FILE).read_text(encoding="utf-8", errors="replace"))[0].format
    return None


def seeds_of_others(study: Study, runs: Path) -> Iterator[str]:
    """A warning for each other study in the folder `runs` that has trained on seeds of this one.

    The parts of a ladder may share seeds: they have other models, or are sides of one comparison.
    """
    for path in sorted(runs.glob(f"*/{STUDY_VALUES}")):
        if path.parent.name == study.name or _is_part_of(study.part_of, path.parent):
            continue
        with suppress(HpstudyError):  # another study's damage is not this one's
            seeds = (read_json(path, json_object) or {}).get("confirm.seeds")
            if shared := sorted(set(study.seeds) & set(seeds if isinstance(seeds, list) else [])):
                yield (
                    f"[confirm] seeds: {', '.join(map(str, shared))} were also used by {path.parent}: what was tuned "
                    "on their results is not judged on fresh seeds; take others"
                )


def _is_part_of(ladder: str | None, root: Path) -> bool:
    """Whether the study in a run folder is a part of a ladder."""
    with suppress(OSError, UserError):
        return ladder is not None and read((root / STUDY_FILE).read_text(encoding="utf-8"))[0].part_of == ladder
    return False


def changed_keys(frozen: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`[search] lr: was ..., is ...` for each key in which two `Study.resolved()` differ.

    More trials are no change, nor are more seeds at the end of the list, nor a key at its default that the version
    which froze the study did not know.
    """
    defaults = parse_study(PLAINEST, name="plainest", path=Path("plainest.toml")).resolved()
    return [
        f"{_place(key)}: was {_shown(frozen, key)}, is {_shown(now, key)}"
        for key in dict.fromkeys([*frozen, *now])
        if _differs(key, frozen if key in frozen else defaults, now) and not _grew(key, frozen, now)
    ]


def _differs(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return key not in before or key not in now or before[key] != now[key]


def _grew(key: str, frozen: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    if key not in GROWING or key not in frozen or key not in now:
        return False
    if key == "budget.trials":
        return bool(now[key] >= frozen[key])
    return bool(now[key][: len(frozen[key])] == frozen[key])


def _place(key: str) -> str:
    section, dot, rest = key.partition(".")
    return f"[{section}] {rest}" if dot else section


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "absent"
