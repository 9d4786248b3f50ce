"""The values that a study has found, beside its baseline's."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable
from dataclasses import replace

import pytest

from hpstudy.analysis.results import StudyResults, load
from hpstudy.analysis.tuned import Change, tuned
from hpstudy.study import Choices, Study, parse_study

CONFIRM = "[confirm]\nseeds = [101, 102, 103]\n"
Tiny, Build = Callable[..., Study], Callable[[Study], StudyResults]


def test_a_confirmed_winner_has_its_values_ratios_and_half_lives(tiny: Tiny, confirmed: Build) -> None:
    results = confirmed(tiny(more=CONFIRM))
    row = results.trials.set_index("run_id").loc["search-0001"]
    found = results.tuned
    assert found is not None
    assert (found.run_id, found.confirmed) == ("search-0001", True)
    lr, beta2 = found.changes
    assert lr == Change(key="lr", baseline=6e-4, tuned=row["lr"], ratio=row["lr"] / 6e-4)
    assert (beta2.key, beta2.baseline, beta2.tuned, beta2.measure, beta2.unit) == (
        "beta2", 0.95, row["beta2"], "half-life", "tokens",
    )  # fmt: skip
    assert beta2.baseline_measure == pytest.approx(256 * math.log(0.5) / math.log(0.95))
    assert beta2.tuned_measure == pytest.approx(256 * math.log(0.5) / math.log(row["beta2"]))
    assert found.values == {"lr": row["lr"], "beta2": row["beta2"]}


def test_before_a_verdict_it_is_the_best_trial_that_is_not_the_baseline(tiny: Tiny, searched: Build) -> None:
    found = searched(tiny()).tuned
    assert found is not None
    assert (found.run_id, found.confirmed) == ("search-0001", False)


def test_without_a_complete_trial_there_is_none(tiny: Tiny, write_run, tmp_path) -> None:
    write_run(tiny(), "search-0000", "search", 4.0, trial=0)
    write_run(tiny(), "search-0001", "search", math.nan, trial=1)
    assert load("tiny", tmp_path / "runs").tuned is None


def test_its_toml_trains_with_exactly_these_values(tiny: Tiny, confirmed: Build) -> None:
    study = tiny(more=CONFIRM)
    found = confirmed(study).tuned
    assert found is not None
    text = found.as_toml(study)
    assert tomllib.loads(text)["hparams"] == {"batch_tokens": 256, "micro_batch": 16, **found.values}
    rest = 'question = "Again?"\nformat = 2\n[trainer]\nmodel = "gpt-2x64"\ncontext = 16\ntokens = 5120\n[search]\n'
    again = parse_study(rest + text, name="again", path=study.path)
    assert (again.baseline.lr, again.baseline.beta2) == (found.hparams.lr, found.hparams.beta2)


def test_a_baseline_of_zero_has_no_ratio_and_a_key_without_effect_is_left_out(tiny: Tiny, searched: Build) -> None:
    study = tiny()
    study = replace(
        study,
        hparams=study.hparams | {"weight_decay": 0.0},
        space={
            "weight_decay": Choices(values=(0.0, 0.1)),
            "grad_clip": Choices(values=(0.5, 1.0)),
            "clip_mode": Choices(values=("global", "none")),
        },
    )
    row = {**searched(tiny()).trials.iloc[1].to_dict(), "weight_decay": 0.1, "grad_clip": 0.5, "clip_mode": "none"}
    decay, mode = tuned(study, "search-0001", row, confirmed=False).changes
    assert (decay.key, decay.baseline, decay.tuned, decay.ratio) == ("weight_decay", 0.0, 0.1, None)
    assert (mode.key, mode.baseline, mode.tuned, mode.ratio) == ("clip_mode", "global", "none", None)
