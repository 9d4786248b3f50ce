"""`replay`: one run again."""

from __future__ import annotations

from pathlib import Path

from hpstudy.cli.consoles import out
from hpstudy.errors import MachineError, UserError
from hpstudy.running.replay import replay as train_again
from hpstudy.study import parse_study, study_name
from hpstudy.tracking.store import RunStore


def replay(name: str, run_id: str, runs: Path, device: str) -> None:
    """Prints how a run of a study, as it began, goes again; raises MachineError when it is another one."""
    store = RunStore(runs / study_name(name))
    frozen = store.root / "study.toml"
    if not frozen.exists():
        raise UserError(f"{store.root}: no study has begun there; start it with `hpstudy run {name}`")
    study = parse_study(frozen.read_text(encoding="utf-8"), name=store.root.name, path=frozen)
    found = train_again(study, store, run_id, device)
    console = out()
    if found.first is None:
        console.print(f"{run_id}: {found.steps} of {found.steps} steps bitwise as recorded", soft_wrap=True)
    else:
        console.print(
            f"{run_id}: not bitwise as recorded; first at {found.first}\n"
            f"largest difference of a loss over {found.steps} steps: {found.largest:.3g} nats "
            f"(tolerance between machines: {found.tolerance:g})",
            markup=False,
            soft_wrap=True,
        )
    for difference in found.elsewhere:
        console.print(f"not as when it was recorded: {difference}", markup=False, soft_wrap=True)
    if not found.good:
        rule = "beyond the tolerance" if found.elsewhere else "though nothing that numbers depend on has changed"
        raise MachineError(f"{run_id}: does not repeat, {rule}; the record was edited, or this machine errs")
