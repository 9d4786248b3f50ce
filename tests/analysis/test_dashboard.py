"""The note of a study and the attributes of its trials, from the run store."""

from __future__ import annotations

from collections.abc import Callable

from hpstudy.analysis.dashboard import study_note, trial_attributes
from hpstudy.analysis.results import StudyResults
from hpstudy.analysis.state import state
from hpstudy.files import to_json
from hpstudy.study import Study

Tiny, Build = Callable[..., Study], Callable[[Study], StudyResults]


def test_the_note_has_question_answer_verdict_and_next_step(tiny: Tiny, confirmed: Build) -> None:
    results = confirmed(tiny(more="[confirm]\nseeds = [101, 102, 103]\n"))
    assert results.store is not None
    note = study_note(results.store)
    assert note.startswith("## Does the smallest study there is run?\n\n**Better.** Tuned values reach 3.6111 nats")
    assert results.verdict().sentence in note
    assert "10 of 10 trials; " in note
    assert f"`{state(results).command}`" in note


def test_the_note_says_what_is_wrong_with_a_study_that_cannot_be_read(tiny: Tiny, confirmed: Build) -> None:
    results = confirmed(tiny())
    assert results.store is not None
    (results.store.root / "study.toml").write_text("broken = ")
    assert str(results.store.root / "study.toml") in study_note(results.store)


def test_a_trial_has_its_run_outcome_speed_and_page(tiny: Tiny, confirmed: Build) -> None:
    results = confirmed(tiny())
    store = results.store
    assert store is not None
    url = "https://wandb.ai/e/p/runs/w-search-0001"
    (store.folder("search-0001") / "wandb.json").write_text(to_json({"mode": "online", "url": url, "id": "w"}))
    assert trial_attributes(store, 1) == {
        "run": "search-0001",
        "outcome": "complete",
        "tokens/s": 25_600,
        "W&B": url,
    }
    assert trial_attributes(store, 7) == {"run": "search-0007", "outcome": "diverged", "tokens/s": 25_600}


def test_a_trial_that_runs_has_its_run_alone(tiny: Tiny, confirmed: Build) -> None:
    store = confirmed(tiny()).store
    assert store is not None
    assert trial_attributes(store, 99) == {"run": "search-0099"}
