"""What optuna-dashboard shows of a study beside its journal: a note with the answer, and what each trial's run was."""

from __future__ import annotations

from typing import Any

from hpstudy.analysis.in_short import in_short
from hpstudy.analysis.results import load
from hpstudy.analysis.state import state
from hpstudy.errors import HpstudyError
from hpstudy.records import trial_run_id
from hpstudy.tracking.store import RunStore, delivery


def study_note(store: RunStore) -> str:
    """The answer so far and the next step, as Markdown. Says what is wrong with a study that cannot be read."""
    try:
        results = load(store.root.name, store.root.parent)
        now = state(results)
        answer, sentence = in_short(results, now), results.verdict().sentence
    except HpstudyError as error:
        return f"{error}\n"
    return (
        f"## {results.study.question}\n\n**{answer.badge}.** {answer.sentence}\n\n{sentence}\n\n"
        f"{now.stage.capitalize()}, {now.trials} of {now.planned} trials; {now.advice}: `{now.command}`\n"
    )


def trial_attributes(store: RunStore, number: int) -> dict[str, Any]:
    """A trial's run, and once it has ended its outcome, tokens per second, and page on W&B."""
    run_id = trial_run_id("search", number)
    found: dict[str, Any] = {"run": run_id}
    if (result := store.result(run_id)) is not None:
        found["outcome"] = result.outcome.value
        if result.tok_per_sec is not None:
            found["tokens/s"] = round(result.tok_per_sec)
        if url := delivery(store.folder(run_id)).get("url"):
            found["W&B"] = url
    return found
