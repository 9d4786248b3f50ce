"""What a study found, for pandas: its tables, its verdict, and what the verdict stands on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from hpstudy.analysis import frames
from hpstudy.analysis.answers import Noise, Verdict
from hpstudy.analysis.confirmed import confirmed
from hpstudy.analysis.frames import StudyFrames
from hpstudy.analysis.verdict import noise, verdict
from hpstudy.errors import UserError
from hpstudy.running.confirming import read_looks
from hpstudy.study import Study, changed_keys, parse_study, question_sha256
from hpstudy.tracking.store import RunStore

HALFLIVES = (
    *("run_id", "phase", "val_loss", "batch_tokens", "beta1", "beta1_halflife_tokens"),
    *("beta2", "beta2_halflife_tokens", "lr", "weight_decay", "decay_timescale_steps"),
)


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """A study's tables and what follows from them; W&B's tables alone have no verdict."""

    frames: StudyFrames
    store: RunStore | None  # None: from W&B, which holds no study file

    @property
    def trials(self) -> pd.DataFrame:
        """One row per run of any phase; `hpstudy.analysis.frames.TRIALS_COLUMNS`."""
        return self.frames.trials

    @property
    def steps(self) -> pd.DataFrame:
        """One row per step of every run; `hpstudy.analysis.frames.STEPS_COLUMNS`."""
        return self.frames.steps

    @cached_property
    def study(self) -> Study:
        """The study file as it was when the study began or last went on.

        Raises UserError for tables from W&B, and for a file that is not what the study fixed when it began.
        """
        if self.store is None:
            raise UserError(f"{self.frames.name}: W&B holds no study file; load it by name from its run store")
        path = self.store.root / "study.toml"
        text = path.read_text(encoding="utf-8", errors="replace")  # a damaged one is no TOML then, or is not as it was
        study = parse_study(text, name=self.store.root.name, path=path)
        began = self.store.read_json("study.json") or {}
        changed = [*changed_keys(began, study.resolved())] if began else []
        asked = self.environment.get("study_sha256")
        if began and asked not in (None, question_sha256(began)):
            changed.append(f"study.json: its hash must be {asked}")
        if changed:
            raise UserError([f"{path}: edited after its study began: {line}; put it back" for line in changed])
        return study

    @property
    def environment(self) -> dict[str, Any]:
        """What the study runs on, and what its numbers depend on; empty for tables from W&B."""
        return (self.store.read_json("environment.json") if self.store else None) or {}

    def verdict(self) -> Verdict:
        """Whether the winner beats the baseline, from fresh seeds alone; `.sentence` says it, `.contrasts` hold it."""
        return verdict(self.frames, self.study, looks=len(read_looks(self.store)) if self.store else 1)

    @property
    def confirmed(self) -> pd.DataFrame:
        """The runs on fresh seeds: `trials` with candidate, fraction of the full budget, and loss."""
        return confirmed(self.frames, self.study)

    @property
    def noise(self) -> Noise | None:
        """How far the baseline varies from seed to seed, and what that lets the study see; None before two seeds."""
        return noise(self.frames, self.study)

    @property
    def halflives(self) -> pd.DataFrame:
        """Each run's betas as half-lives in tokens and its weight decay as a timescale in steps."""
        return self.trials[list(HALFLIVES)]


def load(name: str, runs: str | Path = "runs") -> StudyResults:
    """The study `name` in the folder `runs`, or the tables of "wandb:ENTITY/PROJECT/STUDY"; raises as its frames do."""
    online = name.startswith(frames.WANDB_PREFIX)
    return StudyResults(frames=frames.load(name, runs), store=None if online else RunStore(Path(runs) / name))
