"""How a study's baseline differs from GPT-3."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from hpstudy.analysis.numbers import plain
from hpstudy.hparams import GPT3, RULES
from hpstudy.study import Study, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """One hyperparameter in which a baseline differs from GPT-3."""

    key: str
    value: Value
    gpt3: Value
    unit: str

    def __str__(self) -> str:
        """`batch_tokens 2,048 tokens (GPT-3: 524,288)`."""
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.key} {plain(self.value)}{unit} (GPT-3: {plain(self.gpt3)})"


def departures(study: Study) -> list[Departure]:
    """Every value of the baseline that is not GPT-3's, the warm-up of a short run included.

    GPT-3's paper states no micro-batch, and it changes no loss, so it is not compared.
    """
    baseline, gpt3 = asdict(study.baseline), asdict(GPT3)
    return [
        Departure(key=key, value=value, gpt3=gpt3[key], unit=RULES[key].unit)
        for key, value in baseline.items()
        if value != gpt3[key] and key != "micro_batch"
    ]


def departures_sentence(study: Study) -> str:
    """The departures with their values, in one sentence."""
    found = departures(study)
    return f"The baseline is GPT-3's except for {', '.join(map(str, found))}." if found else "The baseline is GPT-3's."
