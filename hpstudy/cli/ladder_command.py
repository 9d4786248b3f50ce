"""`ladder`, and `check` of a ladder: what it has found, the study of its target, and what its parts cost."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpstudy.analysis.ladder import LadderResults
from hpstudy.analysis.ladders import begun_ladder, refuse_too_few
from hpstudy.analysis.numbers import duration, short
from hpstudy.analysis.rungs import run_flops, shown_key
from hpstudy.cli.common import out, print_json, say
from hpstudy.cli.layout import Column, say_fact, say_table
from hpstudy.data.corpus import check_size, corpus_of
from hpstudy.errors import UserError
from hpstudy.files import write_atomic
from hpstudy.running.capacity import num_workers
from hpstudy.running.confirm import planned
from hpstudy.running.cost import estimate
from hpstudy.running.interface import Options
from hpstudy.running.local import LocalExecutor
from hpstudy.study import Study, study_name
from hpstudy.study.ladder import CHECK, TARGET, Ladder, Size, fitted_keys, load_ladder
from hpstudy.study.load import LOCAL

WRITTEN = "Written by `hpstudy ladder"  # the first words of a target's file
H100_FLOPS, H100_MFU = 989e12, 0.4  # dense bf16, and a usual share of it


def show(name: str, runs: Path, *, as_json: bool = False, figures: bool = False) -> None:
    """Writes the page of a ladder that has begun and, once all rungs have ended, its target's study; prints both.

    With `figures`, `report.md` has its own beside it.
    """
    finish(begun_ladder(study_name(name), runs), as_json=as_json, figures=figures)


def finish(found: LadderResults, *, as_json: bool, figures: bool = False) -> None:
    """Writes the page, ladder.json and the target's study, and prints the screen or the values."""
    from hpstudy.report.ladder import ladder_screen, write_ladder_report

    target = None
    try:
        target = write_target(found)
    finally:  # also if another file has the target's name
        values = as_values(found, target)
        write_atomic(found.root / "ladder.json", json.dumps(values, indent=1) + "\n")
        page = write_ladder_report(found, found.root / "report", images=figures)
    if as_json:
        print_json(values)
        return
    console = out()
    console.print(ladder_screen(found, console.width), soft_wrap=True, end="")
    say_fact(console, "report", str(page))


def write_target(found: LadderResults) -> Path | None:
    """Writes the target's study and returns its path; None if there is no target or a rung has not ended.

    Raises UserError if there is another file of that name.
    """
    ladder = found.ladder
    if ladder.target is None or len(found.rungs) < len(ladder.rungs) or not found.laws:
        return None
    path = LOCAL / f"{ladder.part(TARGET)}.toml"
    if path.exists() and WRITTEN not in path.read_text(encoding="utf-8").partition("\n")[0]:
        raise UserError(f"{path}: is not a file that a ladder has written; move it away, or rename the ladder")
    ranges = {key: found.range_at(key, ladder.target) for key in found.laws}
    first = found.point(ladder.target)
    for key, ends in ranges.items():
        if ends is not None:
            first[key] = min(max(float(first[key]), ends["low"]), ends["high"])
    text = ladder.target_text(
        ladder.target,
        first,
        {key: values for key, values in ranges.items() if values is not None},
        list(_target_heading(found, ladder.target)),
    )
    ladder.study(text, ladder.part(TARGET))  # a file that cannot be read is a fault of ours
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, text)
    return path


def _target_heading(found: LadderResults, target: Size) -> Iterator[str]:
    """What a reader of the target's study must know: where its values come from, and what it costs."""
    ladder, last = found.ladder, found.rungs[-1]
    yield f"{WRITTEN} {ladder.name}`: predicted from {len(found.rungs)} smaller studies, not measured."
    yield f"It extrapolates {found.factors(target)} beyond the largest of them, {last.size.label}."
    for key in found.laws:
        yield f"  {shown_key(key)}: {found.estimate(key, target)}, with its 90% interval"
    if (stable := found.largest_lr(target)) is not None:
        yield f"  the largest stable lr is about {stable}"
    yield from (
        f"Beware: {sentence}" for sentence in filter(None, [found.off_course(target), *found.not_transferred()])
    )
    yield found.verdict if found.answer is not None else "Nothing has tested the prediction."
    yield _price(found, target)


def _price(found: LadderResults, target: Size) -> str:
    """What a run of the target costs: FLOPs, time on this device at the speed of the largest rung, and on an H100."""
    study, last = found.study_at(target), found.rungs[-1]
    flops = run_flops(study)
    speed = float(last.results.trials["tok_per_sec"].median())
    rate = speed * last.flops / last.size.tokens
    device = str(last.results.environment.get("device_name") or last.results.environment.get("device"))
    here = f"{duration(flops / rate)} here ({device}, at the {rate / 1e9:.3g} GFLOP/s of {last.size.label})"
    runs = sum(map(len, planned(study, None).values()))
    return (
        f"One run takes {flops:.2g} FLOPs: about {here}, or {duration(flops / (H100_FLOPS * H100_MFU))} on an H100 at "
        f"{H100_MFU:.0%} of its peak, which is assumed; the study has up to {runs}."
    )


def as_values(found: LadderResults, target: Path | None) -> dict[str, Any]:
    """Everything that the ladder found, for `--json` and ladder.json."""
    ladder = found.ladder
    keys = fitted_keys(found.rungs[0].study) if found.rungs else ()

    def interval(estimate: Any) -> list[float] | None:
        return None if estimate is None else [estimate.value, estimate.low, estimate.high]

    return {
        "ladder": ladder.name,
        "question": ladder.question,
        "axes": list(ladder.axes),
        "answer": found.answer,
        "sentences": found.sentences(),
        "rungs": [
            {
                "study": rung.results.name,
                "weights": rung.size.weights,
                "tokens": rung.size.tokens,
                "best": rung.best,
                "optimum": {shown_key(key): interval(rung.estimate(key)) for key in keys},
            }
            for rung in found.rungs
        ],
        "laws": {
            key: {
                "slope": each.slope.tolist(),
                "interval": [end.tolist() for end in each.slope_interval()],
                "bend_p": each.bend,
            }
            for key, each in found.laws.items()
        },
        "predictions": {
            part: {shown_key(key): interval(found.estimate(key, size)) for key in keys}
            for part, size in ((CHECK, ladder.check), (TARGET, ladder.target))
            if size is not None and found.laws
        },
        "check": [
            {"side": each.side, "loss": each.loss, "regret": each.regret, "low": each.low, "high": each.high}
            for each in found.regrets
        ],
        "target": None if target is None else str(target),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cost:
    """What a part of a ladder costs on this machine; of the check with all its sides."""

    part: str
    weights: int
    tokens: int  # of one run
    epochs: float  # of the corpus, in one run
    trials: int
    runs: int
    seconds: float  # of all runs
    flops_per_second: float  # of one worker

    @property
    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        counts = (f"{self.tokens / self.weights:.2g}", f"{self.epochs:.2g}", str(self.trials), str(self.runs))
        return (self.part, short(self.weights), short(self.tokens), *counts, duration(self.seconds))


HEADER = ("rung", "weights", "tokens", "per weight", "epochs", "trials", "runs", "time")


def check(name: str, runs: Path, device: str, *, as_json: bool = False) -> None:
    """Validates a ladder and prints what each rung costs here, from a few timed steps, and what the target would."""
    ladder, console = load_ladder(name), out()
    refuse_too_few(ladder)
    parts = [(size, size.label) for size in ladder.rungs] + ([(ladder.check, CHECK)] if ladder.check else [])
    costs = [_cost(ladder, size, label, runs, device) for size, label in parts]
    total, target = sum(cost.seconds for cost in costs), ladder.target
    flops = run_flops(_part_study(ladder, target, target.label)) if target else None
    if as_json:
        listed = [asdict(cost) for cost in costs]
        print_json({"ladder": ladder.name, "parts": listed, "seconds": total, "target_flops": flops})
        return
    console.print(f"{ladder.name}: {ladder.question}")
    columns = zip(HEADER, zip(*(cost.cells for cost in costs), strict=True), strict=True)
    say_table(console, [Column(heading=head, cells=cells, right=head != "rung") for head, cells in columns])
    say_fact(console, "keys", ", ".join(_part_study(ladder, *parts[0]).space))
    upper = "up to " if not ladder.data.get("confirm", {}).get("seeds") else ""
    say_fact(console, "cost", f"{upper}{duration(total)} in all")
    if target is not None and flops is not None:
        here = duration(flops / costs[-1].flops_per_second)
        beyond = f"{target.weights / ladder.rungs[-1].weights:.2g}x the largest rung's weights"
        say_fact(console, "target", f"{target.label}: {flops:.2g} FLOPs a run, about {here} here; {beyond}")


def _cost(ladder: Ladder, size: Size, label: str, runs: Path, device: str) -> _Cost:
    """The cost of a part, from a few timed steps."""
    study = _part_study(ladder, size, label)
    corpus = corpus_of(study.spec)
    check_size(corpus, study.spec.context, study.largest_batch_tokens)
    shares = [share for phase in planned(study, None).values() for share in phase]
    if label == CHECK:
        shares += [1.0] * len(ladder.sides) * (1 + ladder.table.check_seeds)
    with tempfile.TemporaryDirectory() as folder:
        cost = estimate(study, device, shares, LocalExecutor(Path(folder)), say)
    options = Options(runs=runs, device=device, wandb="disabled")
    workers = num_workers(study, cost.environment, options, lambda _line: None)
    return _Cost(
        part=f"{CHECK} {size.label}" if label == CHECK else label,
        weights=size.weights,
        tokens=size.tokens,
        epochs=size.tokens / corpus.num_train_tokens,
        trials=study.trials,
        runs=len(shares),
        seconds=cost.seconds([shares], workers),
        flops_per_second=run_flops(study) / cost.train_seconds,
    )


def _part_study(ladder: Ladder, size: Size, label: str) -> Study:
    """The study of a rung, or of the check's own search."""
    text = ladder.check_text(size, ladder.check_seeds) if label == CHECK else ladder.rung_text(size)
    return ladder.study(text, ladder.part(label))
