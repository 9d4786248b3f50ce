"""Recorded runs of hpstudy's own as the trials of a search, and a study of their keys."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

from hpstudy.study import Study
from hpstudy.study.load import parse_study

RECORDED = Path(__file__).parents[1] / "recorded" / "runs.parquet"
SPACE = """
lr              = { low = 3e-4, high = 4e-2 }
beta1           = { low = 0.8, high = 0.98 }
beta2           = { low = 0.9, high = 0.999 }
weight_decay    = { low = 1e-3, high = 1.0 }
warmup_fraction = { low = 0.01, high = 0.3 }
min_lr_fraction = { low = 0.0, high = 0.2 }
batch_tokens    = { choices = [1024, 2048, 4096, 8192, 16384] }
"""


@cache
def recorded(group: str, model: str = "gpt-2x64") -> pd.DataFrame:
    """The recorded runs of a group, as the trials of a search."""
    found = pd.read_parquet(RECORDED)
    found = found[(found["group"] == group) & (found["model"] == model)]
    return found.assign(phase="search", outcome="complete", val_loss=found["loss"]).reset_index(drop=True)


def study_of(space: str = SPACE, *, budget: str = "") -> Study:
    """A study of the recorded runs' keys; `budget` is its table."""
    text = f"""
question = "What does not matter?"
trainer  = {{ model = "gpt-2x64", tokenizer = "gpt2:512", context = 128, tokens = 999_424 }}
hparams  = {{ batch_ramp_fraction = 0.0 }}
baseline = {{ overrides = {{ batch_tokens = 4096 }} }}
[search]
{space}
{budget}
"""
    return parse_study(text, name="recorded", path=Path("recorded.toml"))
