"""`sync` and `workspace`: what W&B has of a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from hpstudy.cli.common import err, out
from hpstudy.errors import MachineError
from hpstudy.files import command
from hpstudy.search.rule_trials import rule_runs
from hpstudy.statistics.race import Answer
from hpstudy.study import load_frozen, study_name
from hpstudy.tracking.store import RunStore
from hpstudy.tracking.wandb_settings import require_login, resolve_project
from hpstudy.tracking.wandb_sink import sink_for, whereabouts
from hpstudy.tracking.wandb_tags import tag_winner
from hpstudy.tracking.wandb_views import Shown, build, default_entity

if TYPE_CHECKING:
    from hpstudy.analysis.results import StudyResults

SYNC_SECONDS = 24 * 3600.0


def sync(name: str, runs: Path, verify: bool) -> None:
    """Sends every finished run that W&B does not have online, each step once; with `verify` checks the others too.

    The runs of a winner get a tag that says so.
    """
    from hpstudy.analysis.ladders import parts  # pandas takes half a second to import

    for part in parts(study_name(name), runs):
        _sync(part, runs, verify)


def _sync(name: str, runs: Path, verify: bool) -> None:
    from hpstudy.analysis.results import load

    store = RunStore(runs / name)
    study = load_frozen(store.root)
    require_login()
    failures: list[str] = []
    with store.locked():
        store.refuse_damage()
        sink = sink_for(study, store.root, "online", failures.append, rules=rule_runs(study))
        finished = [view for view in store.runs() if view.result]
        for view in finished:
            sink.replay(view, verify=verify)
        sink.close(timeout=SYNC_SECONDS)
        lacking = [view.run_id for view in finished if sink.lacks(view)]
    if failures or lacking:
        raise MachineError("\n".join(failures) or f"W&B lacks {', '.join(lacking)}")
    out().print(f"W&B has all {len(finished)} finished runs: {whereabouts(store.root, study.name)}", soft_wrap=True)
    _tag_winner(load(study.name, runs))


def workspace(name: str, runs: Path, save: bool) -> None:
    """Prints the views' JSON without any network, or saves them and prints their addresses."""
    from hpstudy.analysis.ladders import parts  # pandas takes half a second to import

    for part in parts(study_name(name), runs):
        _workspace(part, runs, save)


def _workspace(name: str, runs: Path, save: bool) -> None:
    from hpstudy.analysis.results import load

    loaded = load(name, runs)
    study = loaded.study
    if save:
        require_login("--save: ")
    project, entity = resolve_project(study.project, study.entity)
    views = build(
        study,
        sentence=loaded.verdict().sentence,
        shown=_shown(loaded),
        project=project,
        entity=entity or (default_entity() if save else ""),
    )
    if save:
        for url in views.save():
            out().print(url, soft_wrap=True)
        _tag_winner(loaded)
    else:
        out().print(json.dumps(views.spec(), indent=2), soft_wrap=True)
        save_it = command("workspace", name, runs, "--save")
        err().print(f"not saved: `{save_it}` sends them to W&B, in the project {project}", soft_wrap=True)


def _tag_winner(results: StudyResults) -> None:
    """Tags the runs of the candidate that fresh seeds have proven better, or faster, on W&B."""
    from hpstudy.analysis.answers import deciding

    study, trials = results.study, results.trials
    first = next((c for c in results.verdict().contrasts if not c.is_opponent), None)
    if first is None:
        return
    won = deciding(first, study) in (Answer.BETTER, Answer.FASTER)
    its_own = (trials["run_id"] == first.candidate) | (trials["of"] == first.candidate)
    project, entity = resolve_project(study.project, study.entity)
    tag_winner(project, entity, study.name, set(trials.loc[its_own & won, "run_id"].astype("str")))


def _shown(results: StudyResults) -> Shown:
    """The baseline's runs, the one on the search's seed first, and those of the winner or else of the best trial."""
    trials, found = results.trials, results.tuned
    ids = trials["wandb_id"]
    reference = trials["run_id"] == results.study.baseline_run_id
    winner = found.run_id if found else None
    return Shown(
        baselines=[*ids[reference], *ids[~reference & (trials["phase"] == "baseline")]],
        winner=winner,
        winners=[*ids[trials["run_id"] == winner], *ids[trials["of"] == winner]] if winner else [],
    )
