"""A ladder on the command line: `run` trains its parts in order, `check` prices them, `ladder` shows what it found."""

from __future__ import annotations

import json
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpstudy.analysis.ladder import (
    FILE,
    LadderResults,
    begun_ladder,
    fitted_keys,
    load_ladder_results,
    raw_keys,
)
from hpstudy.analysis.numbers import duration, short
from hpstudy.analysis.results import load
from hpstudy.analysis.state import Stage, state
from hpstudy.cli.common import err, out, print_json, say
from hpstudy.cli.layout import Column, say_fact, say_table
from hpstudy.cli.study_commands import flags_of, train
from hpstudy.data.corpus import check_size, corpus_of
from hpstudy.errors import UserError
from hpstudy.files import command, write_atomic
from hpstudy.running.capacity import num_workers
from hpstudy.running.confirm import planned
from hpstudy.running.cost import estimate
from hpstudy.running.local import LocalExecutor
from hpstudy.spec import flops_per_token
from hpstudy.study import Study
from hpstudy.study.frozen import SOURCE, source_of
from hpstudy.study.ladder import CHECK, TABLE, TARGET, Ladder, Size, load_ladder, parse_ladder, write_part
from hpstudy.study.load import LOCAL
from hpstudy.study.schema import FORMAT
from hpstudy.tracking.store import RunStore, begun_studies

if TYPE_CHECKING:
    from hpstudy.running.interface import Options

WRITTEN = "Written by `hpstudy ladder"  # the first words of a target's file
MAY_CHANGE = (TARGET, f"{TARGET}_tokens")  # keys of [ladder] after it has begun
H100_FLOPS, H100_MFU = 989e12, 0.4  # dense bf16, and a usual share of it


def run(name: str, options: Options, *, as_json: bool = False) -> None:
    """Runs or resumes every part of a ladder, writes its page and the target's study, and prints what it found."""
    if options.trials is not None:
        raise UserError("--trials: a ladder's trials are those of [ladder] trials; edit the file before it begins")
    ladder = begun(load_ladder(name), options.runs)
    err().print(f"{ladder.name}: {ladder.question}")
    root = options.runs / ladder.name
    for size in ladder.rungs:
        found = load_ladder_results(ladder, options.runs)
        first = [_start(found, size)] if found.rungs else []
        _train(ladder, options, ladder.part(size.label), ladder.rung_text(size, first), name)
    if ladder.check is not None:
        for part, text in _check_parts(ladder, options.runs):
            _train(ladder, options, part, text, name)
    finish(load_ladder_results(ladder, options.runs), as_json=as_json, root=root)


def show(name: str, runs: Path, *, as_json: bool = False) -> None:
    """Writes the page of a ladder that has begun and, once all rungs have ended, its target's study; prints both."""
    found = begun_ladder(name, runs)
    finish(found, as_json=as_json, root=found.root)


def finish(found: LadderResults, *, as_json: bool, root: Path) -> None:
    """Writes the page, ladder.json and the target's study, and prints the screen or the values."""
    from hpstudy.report.ladder import ladder_screen, write_ladder_report

    target = write_target(found)
    write_atomic(root / "ladder.json", json.dumps(as_values(found, target), indent=1) + "\n")
    page = write_ladder_report(found, root / "report")
    if as_json:
        print_json(as_values(found, target))
        return
    console = out()
    console.print(ladder_screen(found, console.width), soft_wrap=True, end="")
    say_fact(console, "report", str(page))
    if target is not None:
        say_fact(console, "target", f"{target}: {command('run', target.stem, found.runs)}")


def begun(ladder: Ladder, runs: Path) -> Ladder:
    """The ladder as it began in the folder `runs`, or as it begins now. Raises UserError if its file has changed."""
    path = runs / ladder.name / FILE
    if RunStore(path.parent).begun:
        raise UserError(f"{path.parent}: a study of that name has begun there; give the ladder another name")
    if not path.exists():
        RunStore(path.parent).create()
        states = "format" in tomllib.loads(ladder.text)
        text = ladder.text if states else f"format = {FORMAT}  # hpstudy's newest when the ladder began\n{ladder.text}"
        write_atomic(path, text)
    before = parse_ladder(path.read_text(encoding="utf-8"), name=ladder.name, path=path)
    if changes := list(_changes(before, ladder)):
        raise UserError(
            f"{ladder.path}: changed after its ladder began: {change}; put the values back, or copy the file under "
            "another name for another ladder"
            for change in changes
        )
    write_atomic(path.parent / SOURCE, json.dumps(source_of(ladder.path, path.parent)) + "\n")
    return replace(before, table=ladder.table, target=ladder.target)


def _changes(before: Ladder, now: Ladder) -> Iterator[str]:
    """`[search] lr: was ..., is ...` for each key that may not change and has."""
    old, new = (
        {**ladder.data, TABLE: ladder.table.model_dump(mode="json", exclude=set(MAY_CHANGE))}
        for ladder in (before, now)
    )
    old.setdefault("format", FORMAT)
    new.setdefault("format", old["format"])
    for section in dict.fromkeys([*old, *new]):
        was, is_ = old.get(section), new.get(section)
        if isinstance(was, Mapping) and isinstance(is_, Mapping):
            for key in dict.fromkeys([*was, *is_]):
                if was.get(key) != is_.get(key):
                    yield f"[{section}] {key}: was {json.dumps(was.get(key))}, is {json.dumps(is_.get(key))}"
        elif was != is_:
            yield f"{section}: was {json.dumps(was)}, is {json.dumps(is_)}"


def _start(found: LadderResults, size: Size) -> Mapping[str, Any]:
    """The point that a rung tries first: what the laws of the smaller ones predict there."""
    smaller = tuple(
        rung for rung in found.rungs if found.ladder.rungs.index(rung.size) < found.ladder.rungs.index(size)
    )
    return replace(found, rungs=smaller).point(size) if smaller else {}


def _check_parts(ladder: Ladder, runs: Path) -> Iterator[tuple[str, str]]:
    """The name and the file of each part of the check: its search, then its sides."""
    assert ladder.check is not None
    seeds = check_seeds(ladder)
    yield ladder.part(CHECK), ladder.check_text(ladder.check, seeds)
    found = load_ladder_results(ladder, runs)
    for side, values in found.side_values(ladder.check).items():
        name = ladder.part(f"{CHECK}-{side}")
        yield name, ladder.side_text(ladder.check, side, values, seeds)


def check_seeds(ladder: Ladder) -> tuple[int, ...]:
    """The fresh seeds of the check: the first that the file states, or that follow from its name and values."""
    assert ladder.check is not None
    study = ladder.study(ladder.rung_text(ladder.check), ladder.part(CHECK))
    return study.seeds[: ladder.table.check_seeds]


def _train(ladder: Ladder, options: Options, part: str, text: str, name: str) -> None:
    """Trains a part of the ladder to its end, unless it has ended, and writes its report."""
    if part in begun_studies(options.runs) and state(load(part, options.runs)).stage in (Stage.DONE, Stage.UNDECIDED):
        return
    path = write_part(options.runs / ladder.name, part, text)
    train(str(path), options, resume=command("run", name, options.runs, *flags_of(options)))
    from hpstudy.cli.report_commands import report_page

    results = load(part, options.runs)
    say(f"{part}: {report_page(results)}")


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
    text = ladder.target_text(
        ladder.target,
        found.point(ladder.target),
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
        raw = raw_keys([key])[0]
        yield f"  {raw}: {found.estimate(key, target)}, with its 90% interval"
    if (stable := found.largest_lr(target)) is not None:
        yield f"  the largest stable lr is about {stable}"
    if found.answer is not None:
        yield found.verdict
    yield _price(found, target)


def _price(found: LadderResults, target: Size) -> str:
    """What a run of the target costs: FLOPs, time on this device at the speed of the largest rung, and on an H100."""
    study, last = found.study_at(target), found.rungs[-1]
    spec = study.spec
    flops = float(flops_per_token(spec.model, spec.tokenizer, spec.context)) * target.tokens
    speed = float(last.results.trials["tok_per_sec"].median())
    rate = speed * last.flops / last.size.tokens
    device = str(last.results.environment.get("device_name") or last.results.environment.get("device"))
    here = f"{duration(flops / rate)} here ({device}, at the {short(rate)}FLOP/s of {last.size.label})"
    return (
        f"One run takes {flops:.2g} FLOPs: about {here}, or {duration(flops / (H100_FLOPS * H100_MFU))} on an H100 at "
        f"{H100_MFU:.0%} MFU."
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
                "optimum": {raw: interval(rung.estimate(key)) for key, raw in zip(keys, raw_keys(keys), strict=True)},
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
            part: {raw: interval(found.estimate(key, size)) for key, raw in zip(keys, raw_keys(keys), strict=True)}
            for part, size in ((CHECK, ladder.check), (TARGET, ladder.target))
            if size is not None and found.laws
        },
        "check": [
            {"side": each.side, "loss": each.loss, "regret": each.regret, "low": each.low, "high": each.high}
            for each in found.regrets
        ],
        "target": None if target is None else str(target),
    }


def check(name: str, runs: Path, device: str) -> None:
    """Validates a ladder and prints what each rung costs here, from a few timed steps, and what the target would."""
    from hpstudy.running.interface import Options

    ladder, console = load_ladder(name), out()
    options = Options(runs=runs, device=device, wandb="disabled")
    sides = 2 + len(ladder.table.check_rules)
    rows, total, rate = list[tuple[str, ...]](), 0.0, 0.0
    parts = [(size, size.label) for size in ladder.rungs]
    if ladder.check is not None:
        parts.append((ladder.check, CHECK))
    for size, label in parts:
        study = _part_study(ladder, size, label)
        corpus = corpus_of(study.spec)
        check_size(corpus, study.spec.context, study.largest_batch_tokens)
        shares = [share for phase in planned(study, None).values() for share in phase]
        if label == CHECK:
            shares += [1.0] * sides * (1 + ladder.table.check_seeds)
        with tempfile.TemporaryDirectory() as folder:
            cost = estimate(study, device, shares, LocalExecutor(Path(folder)), say)
        workers = num_workers(study, cost.environment, options, lambda _line: None)
        seconds = cost.seconds([shares], workers)
        total += seconds
        spec = study.spec
        rate = float(flops_per_token(spec.model, spec.tokenizer, spec.context)) * cost.run_tokens / cost.train_seconds
        rows.append(
            (
                label if label != CHECK else f"check {size.label}",
                short(size.weights),
                short(size.tokens),
                f"{size.tokens / size.weights:.2g}",
                f"{size.tokens / corpus.num_train_tokens:.2g}",
                str(study.trials),
                str(len(shares)),
                duration(seconds),
            )
        )
    header = ("rung", "weights", "tokens", "per weight", "epochs", "trials", "runs", "time")
    columns = zip(header, zip(*rows, strict=True), strict=True)
    console.print(f"{ladder.name}: {ladder.question}")
    say_table(console, [Column(heading=head, cells=cells, right=head != "rung") for head, cells in columns])
    keys = ", ".join(_part_study(ladder, ladder.rungs[0], ladder.rungs[0].label).space)
    say_fact(console, "keys", keys)
    upper = "up to " if not ladder.data.get("confirm", {}).get("seeds") else ""
    say_fact(console, "cost", f"{upper}{duration(total)} in all")
    if ladder.target is not None:
        spec = _part_study(ladder, ladder.target, ladder.target.label).spec
        flops = float(flops_per_token(spec.model, spec.tokenizer, spec.context)) * ladder.target.tokens
        last = ladder.rungs[-1]
        say_fact(
            console,
            "target",
            f"{ladder.target.label}: {flops:.2g} FLOPs a run, about {duration(flops / rate)} here; "
            f"{ladder.target.weights / last.weights:.2g}x the largest rung's weights",
        )


def _part_study(ladder: Ladder, size: Size, label: str) -> Study:
    """The study of a rung, or of the check's own search."""
    text = ladder.check_text(size, check_seeds(ladder)) if label == CHECK else ladder.rung_text(size)
    return ladder.study(text, ladder.part(label))
