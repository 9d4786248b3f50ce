"""The studies that come with hpstudy: each loads without a warning, asks its question, and has the stated size."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpstudy.study import Choices, FloatRange, Study, load_study
from hpstudy.study.ladder import load_ladder
from tests.helpers.study_files import illegal_values

STUDIES = Path(__file__).parents[2] / "studies"
LADDERS = {"ladder"}
NAMES = sorted({path.stem for path in STUDIES.glob("*.toml")} - LADDERS)


def shipped(name: str) -> Study:
    return load_study(str(STUDIES / f"{name}.toml"))


def test_the_studies_that_the_documents_name_are_shipped() -> None:
    basics = {"quickstart", "gpt3-baseline", "gpt3-125m", "joint", "micro-batch"}
    one_knob = {"lr", "betas", "weight-decay", "epsilon", "clipping", "warmup", "batch-ramp"}
    assert set(NAMES) == basics | one_knob


def test_the_shipped_ladder_has_four_rungs_over_thirty_times_the_weights_and_is_sized_for_a_laptop() -> None:
    ladder = load_ladder(str(STUDIES / "ladder.toml"))
    assert ladder.check is not None
    assert len(ladder.rungs) == 4
    assert ladder.rungs[-1].weights > 30 * ladder.rungs[0].weights
    compute = 0.0
    for size in (*ladder.rungs, ladder.check):
        study = ladder.study(ladder.rung_text(size), ladder.part(size.label))
        assert len(study.space) >= 3
        runs = study.trials + (2 if size is not ladder.check else 2 + 5) * 3
        compute += 6 * study.spec.model.num_params(study.vocab_size, study.spec.context) * size.tokens * runs
    assert compute < 1e15  # an hour and a half on two cores at 100 GFLOP/s each


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_study_loads_without_a_warning_and_asks_a_question(name: str) -> None:
    study = shipped(name)
    assert study.warnings == ()
    assert study.question.endswith("?")
    assert study.name == name


@pytest.mark.parametrize("name", NAMES)
def test_trial_0_of_a_shipped_study_is_its_baseline(name: str) -> None:
    study = shipped(name)
    proposal = study.baseline_proposal()
    assert proposal is not None
    assert study.trial_hparams(proposal, study.spec.tokens) == study.baseline_hparams(study.spec.tokens)
    assert illegal_values(study.baseline_hparams(study.spec.tokens)) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_study_begins_with_a_comment(name: str) -> None:
    assert (STUDIES / f"{name}.toml").read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gpt3-125m"])
def test_every_study_except_gpt3_125m_is_sized_for_a_laptop(name: str) -> None:
    study = shipped(name)
    assert study.spec.tokens is not None
    runs = study.trials + 2 * len(study.confirm.seeds)
    compute = 6 * study.spec.model.num_params(study.vocab_size, study.spec.context) * study.spec.tokens * runs
    assert compute < 2e14  # an hour at 50 GFLOP/s
    assert study.spec.corpus == "asv"


def test_quickstart_searches_the_keys_that_the_readme_states() -> None:
    study = shipped("quickstart")
    assert study.space["lr"] == FloatRange(low=3e-4, high=3e-2, scale="log")
    assert list(study.space) == ["lr", "beta1", "beta2", "weight_decay"]


def test_the_grids_have_every_combination() -> None:
    assert shipped("epsilon").space["eps"] == Choices(values=(1e-8, 1e-4))
    assert shipped("epsilon").trials == 2
    assert shipped("clipping").trials == 3
    assert shipped("clipping").confirm.top == 2  # both ways that are not the baseline's are confirmed
    assert shipped("micro-batch").trials == 7


def test_gpt3_125m_is_gpt3_small_on_a_billion_tokens() -> None:
    study = shipped("gpt3-125m")
    assert study.spec.model.num_params(study.vocab_size, study.spec.context) == 124_439_808
    assert study.spec.tokens is not None
    assert study.spec.tokens >= 1_000_000_000
    assert study.baseline_hparams(study.spec.tokens).batch_tokens == 2**19
    assert study.auto_micro_batch


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gpt3-baseline"])
def test_every_study_with_a_search_states_which_answers_mean_yes(name: str) -> None:
    assert shipped(name).yes


def test_joint_is_also_compared_with_a_tuned_learning_rate() -> None:
    study = shipped("joint")
    assert "tuned-lr" in study.also
    assert study.confirm.speedup


def test_the_micro_batch_study_compares_every_size_with_the_largest() -> None:
    study = shipped("micro-batch")
    assert study.metrics == ("train/tok_per_sec",)
    assert study.baseline_hparams(study.spec.tokens).micro_batch == 64
    assert study.yes == ("slower",)
