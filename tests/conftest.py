"""Fixtures of all tests: private folders, no W&B account, the smallest study, and run stores with made-up losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpstudy.analysis.results import StudyResults, load
from hpstudy.hparams import RULES, Scale
from hpstudy.records import Outcome, Phase, Run, repeats
from hpstudy.running.confirm import update_selections
from hpstudy.study import Study, load_study, schema
from hpstudy.study import load as load_module
from tests.helpers.stores import begun, header_of, keep_run, result_of, step_record
from tests.helpers.tiny import TINY

STEPS = 20
Write = Callable[..., None]


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def private_folders(monkeypatch: pytest.MonkeyPatch, cache_folder: Path, tmp_path: Path) -> None:
    """No test, and no process that it starts, writes into the user's home or finds a login there."""
    monkeypatch.setenv("HPSTUDY_CACHE", str(cache_folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_SERVICE", "WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("DIR", "CONFIG_DIR", "CACHE_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "wandb-home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


@pytest.fixture
def tiny_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes the smallest study: 20 steps a run. `replace` maps old text to new, `more` is appended to [budget]."""

    def write(name: str = "tiny", *, replace: dict[str, str] | None = None, more: str = "") -> Path:
        text = TINY.format(more=more)
        for old, new in (replace or {}).items():
            assert old in text, f"{old!r} is not in the tiny study"
            text = text.replace(old, new)
        if "[confirm]" not in text:
            text += "\n[confirm]\nseeds = []\n"  # nothing runs on fresh seeds unless a test asks for it
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def tiny(tiny_file: Callable[..., Path]) -> Callable[..., Study]:
    """The smallest study, loaded; takes what `tiny_file` takes."""
    return lambda *args, **kwargs: load_study(str(tiny_file(*args, **kwargs)))


@pytest.fixture
def later_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of hpstudy to come: its format 5, in which every range is linear by default, is the newest."""

    def natural_scale(key: str, version: int) -> Scale:
        return RULES[key].scale if version in (3, 4) else "linear"

    monkeypatch.setattr(schema, "FORMAT", 5)
    for module in (schema, load_module):
        monkeypatch.setattr(module, "natural_scale", natural_scale)


@pytest.fixture
def write_run(tmp_path: Path) -> Write:
    """Writes one run of `study` that ends at `loss`; a run with a loss of NaN has diverged."""

    def write(study: Study, run_id: str, phase: Phase, loss: float, *, trial: int | None = None, seed: int = 0) -> None:
        store = begun(tmp_path, name=study.name, text=study.path.read_text(), values=study.resolved(), path=study.path)
        draw = np.random.default_rng([trial or 0, seed])
        hparams = study.baseline_hparams(study.spec.tokens)
        if trial:
            hparams = replace(hparams, lr=float(10 ** draw.uniform(-4, -1.6)), beta2=float(draw.uniform(0.9, 0.999)))
        of, fraction = repeats(run_id)
        assert study.spec.tokens is not None
        run = Run(
            run_id=run_id,
            phase=phase,
            trial=trial,
            seed=seed,
            tokens=study.spec.tokens,
            hparams=hparams,
            of=of,
            fraction=fraction,
        )
        records = [
            step_record(
                step,
                loss + 2 * (1 - step / STEPS),
                steps=STEPS,
                grad_norm=1 + float(draw.random()),
                clipped=step % 2 == 0,
                lr=hparams.lr * (1 - step / STEPS),
                step_seconds=0.01,
                tok_per_sec=25_600.0,
            )
            for step in range(1, STEPS + 1)
        ]
        diverged = math.isnan(loss)
        result = result_of(
            Outcome.DIVERGED if diverged else Outcome.COMPLETE,
            steps=STEPS,
            val_loss=None if diverged else loss,
            train_loss=loss,
            tok_per_sec=25_600.0,
            train_seconds=0.2,
            clipped_share=0.5,
        )
        keep_run(store, header_of(run, study=study.name), records, result)

    return write


@pytest.fixture
def searched(write_run: Write, tmp_path: Path) -> Callable[[Study], StudyResults]:
    """A search of ten trials, of which one diverged."""

    def build(study: Study) -> StudyResults:
        write_run(study, "search-0000", "search", 4.0, trial=0)
        for trial in range(1, 10):
            loss = math.nan if trial == 7 else 3.5 + trial / 10
            write_run(study, f"search-{trial:04d}", "search", loss, trial=trial)
        return load(study.name, tmp_path / "runs")

    return build


@pytest.fixture
def confirmed(
    searched: Callable[[Study], StudyResults], write_run: Write, tmp_path: Path
) -> Callable[[Study], StudyResults]:
    """The search, then baseline and trial 1 on three fresh seeds: trial 1 is lower by 0.4 nats."""

    def build(study: Study) -> StudyResults:
        store = searched(study).store
        assert store is not None
        update_selections(study, store, print)
        for number, seed in enumerate((101, 102, 103)):
            write_run(study, f"baseline-s{seed}", "baseline", 4.0 + number / 100, seed=seed)
            write_run(study, f"confirm-0001-s{seed}", "confirm", 3.6 + number / 90, trial=1, seed=seed)
        return load(study.name, tmp_path / "runs")

    return build
