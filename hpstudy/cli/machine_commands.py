"""`corpora`, `prepare` and `doctor`: what this machine has."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rich.table import Table
from rich.text import Text

from hpstudy.cli.common import out, say
from hpstudy.data.corpus import list_corpora
from hpstudy.data.corpus import prepare as prepare_corpus
from hpstudy.errors import HpstudyError, MachineError
from hpstudy.files import cache_dir
from hpstudy.running.messages import Setup
from hpstudy.running.worker import Worker
from hpstudy.spec import PRESETS, TrainerSpec
from hpstudy.tracking.wandb_settings import resolve_mode

PACKAGES = ("torch", "optuna", "wandb", "tiktoken", "pandas", "pyarrow")
FREE_GIB_NEEDED = 1.0

PROBE = TrainerSpec(
    model=PRESETS["gpt-2x64"],
    corpus="asv",
    tokenizer="bytes",
    context=64,
    tokens=4096,
    evals=1,
    val_tokens=4096,
)
"""A tiny training. Building it exercises tokenizer, corpus, device and worker."""


def corpora() -> None:
    """Lists what a study's `corpus` may be."""
    table = Table("corpus", "here", "tokens", "what", box=None, header_style="dim")
    for corpus in list_corpora():
        tokens = f"{corpus.tokens:,}" if corpus.tokens else "-"
        table.add_row(corpus.name, "yes" if corpus.available else "no", tokens, corpus.description)
    out().print(table)


def prepare(corpus: str, tokenizer: str, shards: int) -> None:
    """Tokenizes or downloads a corpus, and prints the paths of its shards."""
    say(f"preparing {corpus} for {tokenizer}")
    for path in prepare_corpus(corpus, tokenizer, num_shards=shards):
        out().print(str(path), soft_wrap=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of `doctor`."""

    what: str
    good: bool
    found: str


def doctor(runs: Path, device: str) -> None:
    """Prints one line per thing that a study needs. Raises MachineError if one is missing."""
    table = Table(box=None, show_header=False)
    missing = []
    for check in _checks(runs, device):
        state = Text("ok", style="green") if check.good else Text("missing", style="red")
        table.add_row(state, check.what, check.found)
        if not check.good:
            missing.append(check.what)
    out().print(table)
    if missing:
        raise MachineError(f"missing here: {', '.join(missing)}; the lines above say what each needs")


def _checks(runs: Path, device: str) -> Iterator[Check]:
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    yield Check(what="packages", good=True, found=f"Python {platform.python_version()}, {versions}")
    yield Check(what="cores", good=True, found=f"{os.cpu_count()} ({platform.machine()})")
    yield _probe("training", lambda: _training(device))
    yield _probe("W&B", lambda: f"mode auto is {resolve_mode('auto')} here")
    yield _folder("cache", cache_dir())
    yield _folder("runs", runs)


def _training(device: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker.start(Setup(spec=PROBE, device=device, base=Path.cwd()), Path(folder) / "worker.log")
        try:
            found = worker.wait_until_ready().environment
        finally:
            worker.stop()
    return f"{found['device']} ({found['device_name']}), {found['precision']}: {found['reason']}"


def _probe(what: str, find: Callable[[], str]) -> Check:
    try:
        return Check(what=what, good=True, found=find())
    except HpstudyError as error:
        return Check(what=what, good=False, found=str(error))


def _folder(what: str, path: Path) -> Check:
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free / 2**30
    good = os.access(there, os.W_OK) and free >= FREE_GIB_NEEDED
    return Check(what=f"{what} folder", good=good, found=f"{path}, {free:.0f} GiB free")
