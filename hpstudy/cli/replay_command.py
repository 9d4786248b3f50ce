"""`replay`: trains one run again."""

from __future__ import annotations

from pathlib import Path

from hpstudy.cli.common import out
from hpstudy.errors import MachineError
from hpstudy.running.replay import replay as train_again
from hpstudy.study import load_frozen, study_name
from hpstudy.tracking.store import RunStore


def replay(name: str, run_id: str, runs: Path, device: str) -> None:
    """Prints how a run repeats. Raises MachineError if it does not."""
    store = RunStore(runs / study_name(name))
    found = train_again(load_frozen(store.root), store, run_id, device)
    console = out()
    if found.first is None:
        console.print(f"{run_id}: {found.steps} of {found.steps} steps repeat bitwise", soft_wrap=True)
    else:
        console.print(
            f"{run_id}: does not repeat bitwise; first difference at {found.first}\n"
            f"largest difference of a loss over {found.steps} steps: {found.largest:.3g} nats "
            f"(tolerance between machines: {found.tolerance:g})",
            markup=False,
            soft_wrap=True,
        )
    for change in found.changed:
        console.print(f"changed since it was recorded: {change}", markup=False, soft_wrap=True)
    if not found.good:
        rule = "beyond the tolerance" if found.changed else "though nothing that numbers depend on has changed"
        raise MachineError(f"{run_id}: does not repeat, {rule}; the record was edited, or this machine makes errors")
