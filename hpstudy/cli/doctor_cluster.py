"""`doctor --cluster`: what each node of a cluster has, and which nodes would train a study together."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from hpstudy.analysis.numbers import listed
from hpstudy.cli.common import out, say
from hpstudy.cli.layout import Column, say_fact, say_table
from hpstudy.errors import MachineError
from hpstudy.running.messages import Setup
from hpstudy.running.survey import PLACE_SECONDS, Facts, Surveyed, kinds, survey
from hpstudy.spec import TrainerSpec


def doctor(address: str, spec: TrainerSpec, runs: Path, device: str) -> None:
    """Prints a row per node, the kinds of nodes, and what slows or endangers them.

    Raises MachineError if a node that has room for workers cannot train.
    """
    from hpstudy.running.cluster.executor import RayExecutor
    from hpstudy.running.cluster.joining import tokens_required

    there = next(folder for folder in (runs.absolute(), *runs.absolute().parents) if folder.exists())
    with tempfile.TemporaryDirectory(prefix=".hpstudy-doctor-", dir=there) as folder:
        cluster = RayExecutor(address, spec, device, Path(folder), lambda _: None)
        say("starting a worker on each node")
        nodes = survey(cluster, Setup(spec=spec, device=device, base=Path.cwd()), Path(folder))
    _print(out(), nodes, runs, tokens_required())
    if unable := [node for node in nodes if node.problem]:
        raise MachineError("\n".join(f"{node.place.name}: cannot train: {node.problem}" for node in unable))
    if not any(node.environment or node.busy for node in nodes):
        raise MachineError(f"no node takes a worker: {cluster.room()}; add a node that does")


def _print(console: Console, nodes: Sequence[Surveyed], runs: Path, tokens: bool) -> None:
    say_table(console, _columns(nodes))
    for label, text in (*_kinds(nodes), *_notes(nodes, runs), ("tokens", _security(tokens))):
        say_fact(console, label, text)


def _columns(nodes: Sequence[Surveyed]) -> list[Column]:
    def known(show: Callable[[Facts], str]) -> list[str]:
        return [show(node.facts) if node.facts else "-" for node in nodes]

    codes = [node.environment["code_sha256"][:6] if node.environment else "" for node in nodes]
    versions = known(lambda facts: facts.hpstudy)
    return [
        Column(heading="node", cells=[node.place.name for node in nodes]),
        Column(heading="workers", cells=[_workers(node) for node in nodes]),
        Column(heading="CPUs", cells=[f"{node.place.cpus:g}" for node in nodes], right=True),
        Column(heading="GPUs", cells=[f"{node.place.gpus:g}" for node in nodes], right=True),
        Column(heading="torch", cells=known(lambda facts: facts.torch)),
        Column(heading="Python", cells=known(lambda facts: facts.python)),
        Column(heading="hpstudy", cells=[f"{v} {code}".strip() for v, code in zip(versions, codes, strict=True)]),
        Column(heading="nice", cells=known(lambda facts: str(facts.niceness)), right=True),
        Column(heading="sees runs", cells=known(lambda facts: "yes" if facts.sees_folder else "no")),
        Column(heading="cache GiB", cells=known(lambda facts: f"{facts.cache_free_gib:.0f}"), right=True),
    ]


def _workers(node: Surveyed) -> str:
    return "ok" if node.environment else "no" if node.problem else "busy" if node.busy else "none"


def _kinds(nodes: Sequence[Surveyed]) -> Iterator[tuple[str, str]]:
    """(label, text) of each kind of the nodes that can train."""
    for number, (kind, names, changes) in enumerate(kinds(nodes), 1):
        which = next(node.environment for node in nodes if node.kind == kind) or {}
        capability = which["cpu_capability"].partition(" ")[0]  # without the list of its instructions
        details = " ".join(filter(None, (which["device"], capability, which["precision"])))
        yield f"kind {number}", f"{listed(names)}: {kind}; {details}"
        if changes:
            yield (
                "",
                f"refused for a study that began on kind 1: {'; '.join(changes)} (`mixed = true` in the study's "
                "[cluster] admits them)",
            )


def _notes(nodes: Sequence[Surveyed], runs: Path) -> Iterator[tuple[str, str]]:
    """(label, text) of what keeps nodes from workers, or slows them."""
    for node in nodes:
        if node.place.lacks:
            yield "none", f"{node.place.name} takes no workers: a worker needs {node.place.lacks}"
    if busy := [node.place.name for node in nodes if node.busy]:
        yield "busy", f"not tried: {listed(busy)}; no place became free there in {PLACE_SECONDS:.0f} s"
    known = [(node.place.name, node.facts) for node in nodes if node.facts]
    if nice := [name for name, facts in known if facts.niceness > 0]:
        yield (
            "niceness",
            f"{listed(nice)} {'let' if len(nice) > 1 else 'lets'} every other program go first, which slows "
            "trainings; set RAY_worker_niceness=0 where `ray start` runs",
        )
    if blind := [name for name, facts in known if not facts.sees_folder]:
        yield (
            "runs",
            f"{listed(blind)} {'do' if len(blind) > 1 else 'does'} not see {runs}, so checkpoints are carried "
            "over the network; a shared folder for --runs saves that",
        )


def _security(tokens: bool) -> str:
    if tokens:
        return "required; only programs with the cluster's token can run code on it"
    return (
        "not required; whoever reaches the cluster's ports can run code on its nodes "
        "(to require one, set RAY_AUTH_MODE=token where `ray start` and hpstudy run)"
    )
