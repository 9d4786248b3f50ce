"""The vocabulary of each tokenizer, and the names that are refused."""

from __future__ import annotations

import pytest

from hpstudy.errors import UserError
from hpstudy.spec import vocab_size


@pytest.mark.parametrize(("name", "size"), [("gpt2", 50257), ("bytes", 256), ("gpt2:256", 256), ("gpt2:50256", 50256)])
def test_a_tokenizer_has_its_vocabulary_without_padding(name: str, size: int) -> None:
    assert vocab_size(name) == size


@pytest.mark.parametrize("name", ["gpt2:", "gpt2:0", "gpt2:255", "gpt2:50257", "gpt2:-300", "gpt2:³³³", "gpt2:4e3"])
def test_a_number_of_ranks_outside_its_limits_is_refused(name: str) -> None:
    with pytest.raises(UserError) as caught:
        vocab_size(name)
    assert str(caught.value) == f'"gpt2:N" needs a whole number N with 256 <= N <= 50256, but got "{name}"'


@pytest.mark.parametrize(
    ("name", "hint"), [("gpt3", '; did you mean "gpt2"?'), ("", ""), ("bytes:256", '; did you mean "bytes"?')]
)
def test_an_unknown_tokenizer_is_refused_with_the_known_ones(name: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        vocab_size(name)
    assert str(caught.value) == f'unknown tokenizer "{name}"{hint}; known are "gpt2", "gpt2:N" and "bytes"'
