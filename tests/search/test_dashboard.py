"""What optuna-dashboard serves of a study: its journal as it grows, and the run store beside it. Nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest

from hpstudy.search import Search
from hpstudy.search.dashboard import Shown, only_reading
from hpstudy.study import Study
from tests.helpers.samples import result


class Served:
    """The application on a journal, called without a network."""

    def __init__(self, study: Study, journal: Path) -> None:
        self.storage = Shown(study, journal, lambda: "**Yes.** As good.", lambda n: {"run": f"search-{n:04d}"})
        self._app = only_reading(optuna_dashboard.wsgi(self.storage))

    def __call__(self, path: str, method: str = "GET") -> tuple[str, Any]:
        """The status and the JSON of a request."""
        environ: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": method}
        setup_testing_defaults(environ)
        answered: list[str] = []
        body = b"".join(self._app(environ, lambda *start: answered.append(start[0])))
        return answered[0], json.loads(body)


@pytest.fixture
def study(tiny: Callable[..., Study]) -> Study:
    """A search of lr on a log scale and of beta2 as 1 - beta2."""
    return tiny()


@pytest.fixture
def journal(study: Study, tmp_path: Path) -> Path:
    """Two trials have ended, and one runs."""
    path = tmp_path / "optuna.journal"
    search = Search(study, path)
    for _ in range(2):
        proposal = search.ask()
        assert proposal is not None
        search.tell(proposal.number, result())
    search.ask()
    return path


def attributes(trial: dict[str, Any]) -> dict[str, str]:
    return {attr["key"]: attr["value"] for attr in trial["user_attrs"]}


def test_a_study_has_its_note_and_the_names_of_its_objectives(study: Study, journal: Path) -> None:
    _, detail = Served(study, journal)("/api/studies/0")
    assert detail["note"]["body"] == "**Yes.** As good."
    assert detail["objective_names"] == ["val/loss"]


def test_trials_have_real_betas_and_what_is_known_of_their_runs(study: Study, journal: Path) -> None:
    _, detail = Served(study, journal)("/api/studies/0")
    trials = Search(study, journal, read_only=True).trials()
    assert len(detail["trials"]) == len(trials) == 3
    for shown, trial in zip(detail["trials"], trials, strict=True):
        assert attributes(shown) == {"beta2": repr(trial.values["beta2"]), "run": f"search-{trial.number:04d}"}
    assert [trial["state"] for trial in detail["trials"]] == ["Complete", "Complete", "Running"]


def test_a_trial_that_ends_while_the_page_is_open_is_shown(study: Study, journal: Path) -> None:
    served = Served(study, journal)
    assert len(served.storage.get_all_trials(0)) == 3
    search = Search(study, journal)
    search.tell(2, result())
    states = [trial.state for trial in served.storage.get_all_trials(0)]
    assert states == [optuna.trial.TrialState.COMPLETE] * 3


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/api/studies/0", "DELETE"),
        ("/api/studies", "POST"),
        ("/api/studies/0/note", "PUT"),
        ("/api/trials/2/tell", "POST"),
        ("/api/trials/2/user-attrs", "POST"),
    ],
)
def test_the_page_cannot_change_the_study(study: Study, journal: Path, path: str, method: str) -> None:
    before = journal.read_bytes()
    status, body = Served(study, journal)(path, method)
    assert status == "403 Forbidden"
    assert "does not let this page change them" in body["reason"]
    assert journal.read_bytes() == before


def test_to_show_a_study_writes_no_file(study: Study, journal: Path) -> None:
    before = journal.read_bytes()
    served = Served(study, journal)
    for path in ("/api/studies", "/api/studies/0", "/api/meta"):
        assert served(path)[0] == "200 OK"
    assert journal.read_bytes() == before
    assert list(journal.parent.glob("*.lock*")) == []


def test_names_are_where_optuna_looks_for_them(study: Study, journal: Path) -> None:
    shown = Served(study, journal).storage.get_all_studies()[0].system_attrs
    made = optuna.create_study(directions=study.directions)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        made.set_metric_names(["val/loss"])
    assert made._storage.get_study_system_attrs(made._study_id).items() <= shown.items()
