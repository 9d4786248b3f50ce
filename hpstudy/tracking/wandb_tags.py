"""The tag of a study's winner, which is known only after its runs were sent."""

from __future__ import annotations

from collections.abc import Collection

from hpstudy.tracking.wandb_read import answered

WINNER = "winner"


def tag_winner(project: str, entity: str | None, study: str, winners: Collection[str]) -> None:
    """Gives WINNER to the runs of a study with these run ids, and takes it from all others. Raises MachineError.

    Only runs whose tag is wrong are written.
    """
    import wandb  # here: it takes half a second

    with answered(f"the tags of the runs of {study}"):
        path = "/".join(part for part in (entity, project) if part)
        for remote in wandb.Api().runs(path, filters={"group": study}, lazy=False):
            is_winner = remote.config.get("run_id") in winners
            if is_winner is not (WINNER in remote.tags):
                remote.tags = [tag for tag in remote.tags if tag != WINNER] + [WINNER] * is_winner
                remote.update()
