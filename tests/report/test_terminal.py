"""The last screen says what was found, answers the question, names the next step, and fits a small terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hpstudy.analysis.foreseen import savings
from hpstudy.analysis.results import StudyResults, load
from hpstudy.analysis.state import state
from hpstudy.records import Run
from hpstudy.report.terminal import last_screen
from hpstudy.study import Study
from tests.helpers.stores import begun, keep_ended

FRESH = "\n[confirm]\nseeds = [101, 102, 103]\n"
LOSS, SPEED = "val/loss", "train/tok_per_sec"
BASE = (4.00, 4.01, 4.02)  # losses by seed
SPACE = 'lr = { low = 1e-4, high = 3e-2, scale = "log" }\n'
EVERY = (
    SPACE
    + "beta1 = { low = 0.8, high = 0.95 }\neps = { low = 1e-9, high = 1e-7 }\n"
    + "weight_decay = { low = 0.0, high = 0.2 }\n"
    + "grad_clip = { low = 0.5, high = 2.0 }\nwarmup_fraction = { low = 0.1, high = 0.6 }\n"
    + "decay_fraction = { low = 0.7, high = 1.0 }\nmin_lr_fraction = { low = 0.0, high = 0.2 }\n"
    + "batch_ramp_fraction = { low = 0.0, high = 0.1 }\n"
)


def keep(study: Study, root: Path, losses: tuple[float, ...] | None, speeds: tuple[float, ...] = (1e3,) * 3) -> None:
    """A search of two trials, and their runs on fresh seeds: the baseline at BASE, trial 1 at `losses` and `speeds`."""
    store = begun(root, name=study.name, text=study.path.read_text(), values=study.resolved())
    store.write_json("environment.json", {"device": "cpu", "precision": "fp32"})
    tokens = study.spec.tokens
    assert tokens is not None
    if not study.space:
        for seed, loss in zip((101, 102, 103), BASE, strict=True):
            hparams = study.baseline_hparams(tokens)
            run_id = f"baseline-s{seed}"
            run = Run(run_id=run_id, phase="baseline", trial=None, seed=seed, tokens=tokens, hparams=hparams)
            keep_ended(store, run, loss)
        return
    ours = replace(study.baseline_hparams(tokens), lr=0.0024, beta2=0.99)
    baseline = Run(
        run_id="search-0000", phase="search", trial=0, seed=0, tokens=tokens, hparams=study.baseline_hparams(tokens)
    )
    trial = replace(baseline, run_id="search-0001", trial=1, hparams=ours)
    keep_ended(store, baseline, 4.5)
    keep_ended(store, trial, 4.25, tok_per_sec=speeds[0])
    for seed, theirs, mine, speed in zip((101, 102, 103), BASE, losses or (), speeds, strict=False):
        keep_ended(
            store, replace(baseline, run_id=f"baseline-s{seed}", phase="baseline", trial=None, seed=seed), theirs
        )
        fresh = replace(trial, run_id=f"confirm-0001-s{seed}", phase="confirm", seed=seed, of="search-0001")
        keep_ended(store, fresh, mine, tok_per_sec=speed)
    store.write_json(
        "confirm.json", [{"trials": 2, "seeds": list(study.seeds), "candidates": ["search-0001"]}] if losses else []
    )


@pytest.fixture
def study_of(tiny: Callable[..., Study]) -> Callable[..., Study]:
    """The tiny study with two trials and three fresh seeds, and what `yes` means if it is given."""

    def build(more: str = FRESH, *, yes: list[str] | None = None, metrics: list[str] | None = None) -> Study:
        changes = {"trials = 5": "trials = 2"}
        if yes:
            changes["format = 1"] = f"format = 1\nyes = {json.dumps(yes)}"
        objective = f"\n[objective]\nmetric = {json.dumps(metrics)}\n" if metrics else ""
        return tiny(replace=changes, more=objective + more)

    return build


def shown(study: Study, root: Path, *, width: int = 80, height: int | None = 24, encoding: str = "utf-8") -> list[str]:
    results = load(study.name, root / "runs")
    page = Path("runs/tiny/report/index.html")
    text = last_screen(results, state(results), page, width=width, height=height, encoding=encoding)
    return text.plain.splitlines()


def answer(lines: list[str]) -> str:
    """The line after the question."""
    return lines[lines.index("  Does the smallest study there is run?") + 1].strip()


def test_a_decided_study_shows_both_sides_and_ends_with_its_answer_and_its_links(study_of, tmp_path: Path) -> None:
    study = study_of(yes=["worse", "equivalent"])
    keep(study, tmp_path, (3.70, 3.72, 3.71))
    verdict = load("tiny", tmp_path / "runs").verdict()
    (c,) = verdict.contrasts
    lines = shown(study, tmp_path)
    assert lines[:7] == [
        # 8 runs of 5,120 tokens at 1,000 tokens a second
        "  tiny   8 runs · 41k tokens · 41s of training · cpu fp32",
        "               GPT-3            tuned            3 seed pairs",
        # standard errors: 0.01 / sqrt(3)
        f"  val loss     4.0100 ±0.0058   3.7100 ±0.0058   −0.300 [−{-c.low:.3f}, −{-c.high:.3f}]",
        "  lr           0.0006           0.0024           ×4",
        # 256 tokens a step * ln(0.5) / ln(beta)
        "  beta2        0.95             0.99             half-life 3.46k → 17.7k tokens",
        "",
        "  Does the smallest study there is run?",
    ]
    assert answer(lines) == f"✗ No: the tuned values are better (p = {c.level:.2g})"
    assert lines[8:11] == ["", "    report  runs/tiny/report/index.html", "    W&B     none"]
    line = state(load("tiny", tmp_path / "runs")).command
    assert lines[11] == f"    next    {line}"
    assert line.endswith(f"/runs/tiny/tiny.toml --runs {tmp_path / 'runs'} --trials 4")
    assert lines[12] == "            a longer search may find still better values"


@pytest.mark.parametrize(
    ("losses", "yes", "said", "heading"),
    [
        ((3.70, 3.72, 3.71), None, "✓ The tuned values are better (p = ", "tuned"),
        ((3.70, 3.72, 3.71), ["better"], "✓ Yes: the tuned values are better (p = ", "tuned"),
        ((4.30, 4.32, 4.31), None, "· The only trial is worse (p = ", "best found"),
        ((4.30, 4.32, 4.31), ["better"], "✗ Nothing better: the only trial is worse (p = ", "best found"),
        (
            (3.90, 4.21, 3.95),
            ["better"],
            "· Undecided: 3 seeds a side cannot tell the losses apart (p = ",
            "best found",
        ),
        (
            (4.001, 4.0115, 4.0208),
            ["equivalent"],
            "✓ Yes: the best values found are as good, within 0.01 nats (p = ",
            "best found",
        ),
    ],
)
def test_each_answer_has_its_mark_its_words_and_its_p_value(
    study_of, tmp_path: Path, losses: tuple[float, ...], yes: list[str] | None, said: str, heading: str
) -> None:
    study = study_of(FRESH + "margin = 0.01\n", yes=yes)
    keep(study, tmp_path, losses)
    lines = shown(study, tmp_path)
    assert answer(lines).startswith(said)
    assert lines[1].split()[1:-3] == heading.split()


def test_a_search_that_is_not_confirmed_shows_one_seed_and_no_verdict(study_of, tmp_path: Path) -> None:
    study = study_of("")
    keep(study, tmp_path, None)
    lines = shown(study, tmp_path)
    assert lines[1].split() == ["GPT-3", "best", "so", "far", "one", "seed", "each"]
    assert lines[2].split() == ["val", "loss", "4.500", "4.250", "−0.250"]
    assert answer(lines) == "· No verdict: it takes 3 fresh seeds, and [confirm] seeds states fewer."


def test_two_objectives_show_loss_and_speed_and_speed_alone_comes_first(study_of, tmp_path: Path) -> None:
    speeds = (1500.0, 1510.0, 1490.0)
    both, alone = study_of(metrics=[LOSS, SPEED]), tmp_path / "alone"
    keep(both, tmp_path, (3.70, 3.72, 3.71), speeds)
    rows = {line.split("   ")[0].strip(): line for line in shown(both, tmp_path)[2:4]}
    assert list(rows) == ["val loss", "tok/s"]
    assert rows["tok/s"].split()[1:4] == ["1000", "1500", "×1.500"]
    fast = study_of(metrics=[SPEED])
    keep(fast, alone, (4.00, 4.01, 4.02), speeds)
    lines = shown(fast, alone)
    assert [line.split("   ")[0].strip() for line in lines[2:4]] == ["tok/s", "val loss"]
    assert answer(lines).startswith("✓ The tuned values are faster (p ")


def test_a_study_that_searches_nothing_shows_its_baseline(tiny, tmp_path: Path) -> None:
    none = {SPACE: "", 'beta2 = { low = 0.9, high = 0.999, scale = "log1m" }\n': "", "trials = 5": "trials = 1"}
    study = tiny(replace=none, more=FRESH)
    keep(study, tmp_path, None)
    lines = shown(study, tmp_path)
    assert lines[2].split() == ["val", "loss", "4.0100", "±0.0058"]
    assert answer(lines) == "· The baseline reaches 4.0100 ±0.0058 nats."


def test_what_lowers_trust_is_one_line_that_names_the_place_in_the_report(study_of, tmp_path: Path) -> None:
    study = study_of()
    keep(study, tmp_path, (3.70, 3.72, 3.71))
    store = load("tiny", tmp_path / "runs").store
    assert store is not None
    assert not any("see How sure" in line for line in shown(study, tmp_path))
    chosen = {"trials": 2, "seeds": list(study.seeds), "candidates": ["search-0001"]}
    store.write_json("confirm.json", [{**chosen, "trials": 1}, chosen])
    store.write_json("environment.json", {"accepted": ["torch was 1, is 2"]})
    lines = shown(study, tmp_path)
    assert "    an extended search and a changed environment: see How sure in the report" in lines


@pytest.mark.parametrize(("encoding", "mark", "minus"), [("ascii", "x No", "-0.300 [-"), ("latin-1", "x No", "-0.300")])
def test_a_stream_without_a_character_gets_plain_ones(study_of, tmp_path: Path, encoding, mark, minus) -> None:
    study = study_of(yes=["worse"])
    keep(study, tmp_path, (3.70, 3.72, 3.71))
    screen = "\n".join(shown(study, tmp_path, encoding=encoding))
    screen.encode(encoding)
    assert mark in screen
    headings, row = screen.splitlines()[1:3]
    assert headings.index("tuned") == row.index("3.7100")
    assert minus in screen
    assert ("±" in screen) == (encoding == "latin-1")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_screen_fits_its_terminal_and_counts_the_keys_that_do_not(tiny, tmp_path: Path, width: int) -> None:
    old = SPACE + 'beta2 = { low = 0.9, high = 0.999, scale = "log1m" }\n'
    study = tiny(replace={old: EVERY, "trials = 5": "trials = 2"}, more=FRESH)
    keep(study, tmp_path, (3.70, 3.72, 3.71))
    lines = shown(study, tmp_path, width=width, height=18)
    own = [line for line in lines if str(tmp_path) not in line and "index.html" not in line]
    assert max(map(len, own)) <= width
    assert len(lines) <= 16  # and two for the prompt
    (more,) = (line for line in lines if line.endswith("more keys in the report"))
    found = load("tiny", tmp_path / "runs").tuned
    assert found is not None
    listed = sum(line.strip().split()[0] in found.values for line in lines if line.strip())
    assert listed + int(more.split()[1]) == len(found.values)
    assert not any("more keys" in line for line in shown(study, tmp_path, width=width, height=None))


def test_next_has_the_flags_that_the_user_gave(study_of, tmp_path: Path) -> None:
    study = study_of()
    keep(study, tmp_path, (3.70, 3.72, 3.71))
    results: StudyResults = load("tiny", tmp_path / "runs")
    now = state(results, flags=["--wandb", "offline"])
    assert now.command == f"{state(results).command} --wandb offline"


def test_what_foresight_saved_is_one_line(gallery) -> None:
    results = gallery("foresight")
    page = Path("runs/foresight/report/index.html")
    lines = last_screen(results, state(results), page, width=80, height=24).plain.splitlines()
    saved = savings(results)
    said = f"foresight stopped {saved.stopped} of 40 trials and saved {saved.share:.0%} of the tokens"
    assert [line.strip() for line in lines if "foresight stopped" in line] == [said]
    assert len(lines) <= 22
