"""The answer in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpstudy.analysis.in_short import opponent
from hpstudy.study.load import parse_study
from tests.helpers.gallery import GALLERY


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("decided", "GPT-3"),  # its batch is not GPT-3's, but is not searched
        ("opponents", "baseline"),  # searches the batch
        ("speed", "baseline"),  # searches the micro-batch, which GPT-3's paper does not state
    ],
)
def test_the_baseline_is_called_gpt3_if_it_has_its_value_of_every_searched_key(name: str, shown: str):
    assert opponent(parse_study(GALLERY[name].text, name=name, path=Path(f"{name}.toml"))) == shown
