"""How a baseline differs from GPT-3: the headline and the report name the same keys."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hpstudy.analysis.departures import Departure, departures, departures_sentence
from hpstudy.analysis.results import StudyResults
from hpstudy.hparams import GPT3, RULES
from hpstudy.report import write_report
from hpstudy.study import Study

Tiny = Callable[..., Study]
CONFIRM = "[confirm]\nseeds = [101, 102, 103]\n"
BATCH = "batch_tokens = 256\nmicro_batch = 16"
AS_GPT3 = {  # long enough that its warm-up needs no scaling
    BATCH: f"batch_tokens = {GPT3.batch_tokens}\nmicro_batch = 16\nwarmup_fraction = {GPT3.warmup_fraction}",
    "tokens = 5120": "tokens = 52_428_800",
}


def overridden(**values: Any) -> dict[str, str]:
    """Text for `tiny`: GPT-3's values with overrides of the baseline."""
    lines = "".join(f"{key} = {value!r}\n" for key, value in values.items())
    return {**AS_GPT3, "[trainer]": f"[baseline.overrides]\n{lines}\n[trainer]"}


def keys(study: Study) -> list[str]:
    return [departure.key for departure in departures(study)]


def test_gpt3_itself_has_no_departures(tiny: Tiny) -> None:
    study = tiny(replace=AS_GPT3)
    assert departures(study) == []
    assert departures_sentence(study) == "The baseline is GPT-3's."


def test_the_scaled_warm_up_of_a_short_run_is_a_departure(tiny: Tiny) -> None:
    study = tiny()  # 10 of its 20 steps warm up
    assert departures(study) == [
        Departure(key="warmup_fraction", value=0.5, gpt3=GPT3.warmup_fraction, unit="of the run's tokens"),
        Departure(key="batch_tokens", value=256, gpt3=524_288, unit="tokens"),
    ]
    assert departures_sentence(study) == (
        "The baseline is GPT-3's except for warmup_fraction 0.5 of the run's tokens (GPT-3: 0.00125), "
        "batch_tokens 256 tokens (GPT-3: 524,288)."
    )


def test_every_override_of_the_baseline_is_a_departure(tiny: Tiny) -> None:
    study = tiny(replace=overridden(lr=2.5e-3, beta2=0.99, grad_clip=0.25, batch_ramp_fraction=0.0))
    assert [str(departure) for departure in departures(study)] == [
        "lr 0.0025 (GPT-3: 0.0006)",
        "beta2 0.99 (GPT-3: 0.95)",
        "grad_clip 0.25 (GPT-3: 1)",
        "batch_ramp_fraction 0 of the run's tokens (GPT-3: 0.01333)",
    ]


def test_the_micro_batch_is_never_a_departure(tiny: Tiny) -> None:
    assert keys(tiny(replace=AS_GPT3 | {"micro_batch = 16": "micro_batch = 4"})) == []
    assert keys(tiny(replace={"micro_batch = 16": "micro_batch = 2"})) == ["warmup_fraction", "batch_tokens"]
    automatic = tiny(replace={"micro_batch = 16": 'micro_batch = "auto"'})
    assert "micro_batch" not in keys(automatic)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.23456789e-3, "0.001235"), (2e-8, "2e-08"), (0.123456, "0.1235")],
)
def test_values_have_at_most_four_significant_digits(tiny: Tiny, value: float, text: str) -> None:
    (departure,) = departures(tiny(replace=overridden(lr=value)))
    assert str(departure) == f"lr {text} (GPT-3: 0.0006)"


def test_every_value_that_has_a_unit_is_followed_by_it(tiny: Tiny) -> None:
    study = tiny(
        replace=overridden(
            decay_fraction=0.75, min_lr_fraction=0.2, batch_ramp_fraction=0.5, batch_ramp_start=0.25, weight_decay=0.0
        )
    )
    found = {departure.key: str(departure) for departure in departures(study)}
    assert set(found) == {
        "decay_fraction",
        "min_lr_fraction",
        "batch_ramp_fraction",
        "batch_ramp_start",
        "weight_decay",
    }
    for key, text in found.items():
        value, gpt3 = re.fullmatch(rf"{key} (\S+)(?: {re.escape(RULES[key].unit)})? \(GPT-3: (\S+)\)", text).groups()
        assert float(value) == asdict(study.baseline_hparams(study.spec.tokens))[key]
        assert float(gpt3) == pytest.approx(asdict(GPT3)[key], rel=1e-3)
        assert not RULES[key].unit or f" {RULES[key].unit} " in text


def test_the_headline_and_the_report_name_the_same_keys(
    tiny: Tiny, confirmed: Callable[[Study], StudyResults], tmp_path: Path
) -> None:
    overrides = "[baseline.overrides]\nlr = 0.0025\nbeta2 = 0.99\n\n[trainer]"
    results = confirmed(tiny(more=CONFIRM, replace={"[trainer]": overrides}))
    expected = ["lr", "beta2", "warmup_fraction", "batch_tokens"]
    assert keys(results.study) == expected
    assert "the baseline (GPT-3's values except for lr, beta2, warmup_fraction and batch_tokens)" in (
        results.verdict().headline
    )
    page = write_report(results, tmp_path / "report")
    sentence = (
        "The baseline is GPT-3's except for lr 0.0025 (GPT-3: 0.0006), beta2 0.99 (GPT-3: 0.95), "
        "warmup_fraction 0.5 of the run's tokens (GPT-3: 0.00125), batch_tokens 256 tokens (GPT-3: 524,288)."
    )
    assert departures_sentence(results.study) == sentence
    assert sentence.replace("'", "&#39;") in page.read_text()
    assert sentence.replace("_", r"\_") in page.with_name("report.md").read_text()
