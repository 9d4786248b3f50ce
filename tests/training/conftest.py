"""Trainings in tests run on one thread, as a worker's do: the numbers depend on it."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
