"""Several studies together: p values adjusted over all, what they share, and the noise that one takes from others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpstudy.analysis.results import StudyResults
from hpstudy.analysis.together import adjusted_levels, cautions, pooled_noise
from hpstudy.hparams import GPT3
from hpstudy.statistics.difference import holm
from hpstudy.study import Study, parse_study, seeds_of_others
from tests.helpers.stores import BASELINE, LOWER, NOISY, SEEDS, ends, results_of, stored

MakeResults = Callable[..., StudyResults]


@pytest.fixture
def results(study: Callable[..., Study], tmp_path: Path) -> MakeResults:
    """The results of a study of a name, whose candidate has these losses."""

    def make(name: str, losses: tuple[float, ...] = LOWER, *, seeds: tuple[int, ...] = SEEDS) -> StudyResults:
        frames = stored(tmp_path / name, ends({"search-0003": losses}))
        made = replace(results_of(study(seeds), frames, tmp_path / name), frames=replace(frames, name=name))
        named = parse_study(made.study.path.read_text(), name=name, path=made.study.path)
        made.__dict__["study"] = named
        return made

    return make


def test_p_values_are_adjusted_by_holm_over_the_studies_with_a_verdict(results: MakeResults) -> None:
    studies = [results("lower"), results("noisy", NOISY), results("none", seeds=(101, 102))]
    levels = [found.verdict().contrasts[0].level for found in studies[:2]]
    *adjusted, none = adjusted_levels(studies)
    assert adjusted == pytest.approx(list(holm(levels)))
    assert none is None


def test_the_verdicts_that_are_expected_to_be_false_are_counted(results: MakeResults) -> None:
    first, *others = cautions([results("lower"), results("noisy", NOISY)])
    assert first == (
        "Each verdict alone errs with a chance of 5%: if nothing differed anywhere, about 0.1 of these 2 would still "
        "claim a difference (1 do). The last column is adjusted for all of them."
    )
    assert others == ["lower and noisy have the same baseline on the same seeds, so their errors go together."]


def test_one_study_alone_has_nothing_in_common(results: MakeResults) -> None:
    assert list(cautions([results("lower")])) == []


def test_the_noise_of_others_is_pooled_around_the_mean_of_each_side(results: MakeResults) -> None:
    mine, other = results("mine"), results("other")
    made = replace(mine.study, name="new", overrides={"batch_tokens": GPT3.batch_tokens})  # the batch of stored runs
    pooled = pooled_noise(made, [other])
    assert pooled is not None
    squares = sum(float(np.var(side, ddof=1)) * 4 for side in (BASELINE, LOWER))
    assert (pooled.runs, pooled.df, pooled.studies) == (10, 8, ("other",))
    assert pooled.sd == pytest.approx((squares / 8) ** 0.5)
    assert pooled_noise(replace(made, name="other"), [other]) is None  # itself
    assert pooled_noise(replace(made, spec=replace(made.spec, context=32)), [other]) is None
    assert pooled_noise(replace(made, overrides={"batch_tokens": 512}), [other]) is None


def test_seeds_that_another_study_of_the_folder_used_are_named(study: Callable[..., Study], tmp_path: Path) -> None:
    results_of(study(), stored(tmp_path, ends()), tmp_path)  # the study tiny in tmp_path/runs
    other = replace(study((105, 106, 107)), name="other")
    (warning,) = seeds_of_others(other, tmp_path / "runs")
    assert warning.startswith(f"[confirm] seeds: 105 were also used by {tmp_path / 'runs' / 'tiny'}: ")
    assert list(seeds_of_others(replace(other, name="tiny"), tmp_path / "runs")) == []
    assert list(seeds_of_others(study((106, 107, 108)), tmp_path / "runs")) == []
