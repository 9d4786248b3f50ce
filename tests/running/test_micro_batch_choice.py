"""Which micro-batches are tried, after which one it ends, and which one is chosen."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpstudy.running import micro_batch
from hpstudy.running.micro_batch import HEADROOM, LEAST_TOKENS, Probe, candidates, choose, climb, explore

NOTICEABLE = micro_batch.NOTICEABLE["cpu"]
GIB = st.floats(min_value=0.01, max_value=10)


def probes_of(
    speeds: dict[int, float | None], *, fixed_gib: float = 0.0, each_gib: float = 0.0, room_gib: float = 16.0
) -> list[Probe]:
    """The probes on a device with these speeds, whose memory is fixed_gib and each_gib per sequence."""

    def probe(size: int) -> Probe:
        return Probe(
            size=size, tok_per_sec=speeds[size], peak_gib=fixed_gib + each_gib * size, room_gib=room_gib, message="no"
        )

    return climb(list(speeds), probe, NOTICEABLE)


@pytest.mark.parametrize(
    ("sequences", "context", "expected"),
    [
        (32, 1024, [1, 2, 4, 8, 16, 32]),
        (32, 128, [8, 16, 32]),
        (48, 2048, [1, 2, 4, 8, 16, 48]),
        (17, 512, [17]),
        (4, 16, [4]),
    ],
)
def test_sizes_are_divisors_that_double_or_more(sequences: int, context: int, expected: list[int]):
    assert candidates(sequences, context) == expected


@given(sequences=st.integers(1, 5000), context=st.integers(1, 4096))
def test_every_candidate_divides_the_batch_and_fills_a_forward_pass(sequences: int, context: int):
    sizes = candidates(sequences, context)
    assert sizes
    assert all(sequences % size == 0 for size in sizes)
    assert all(size * context >= min(LEAST_TOKENS, sequences * context) for size in sizes)
    assert all(2 * before <= after for before, after in pairwise(sizes))


@pytest.mark.parametrize(
    ("first", "room_gib", "tried"),
    [(8, 100.0, [8, 16, 32]), (8, 6.0, [1, 2, 4]), (1, 6.0, [1, 2, 4]), (99, 100.0, [32]), (1, 0.5, [1])],
)
def test_a_device_starts_at_its_own_first_size_and_falls_back_to_smaller_ones(first, room_gib, tried):
    def probe(size: int) -> Probe:
        return Probe(size=size, tok_per_sec=float(size), peak_gib=float(size), room_gib=room_gib)

    assert [found.size for found in explore([1, 2, 4, 8, 16, 32], first, probe, NOTICEABLE)] == tried


@given(
    speeds=st.lists(st.none() | st.floats(min_value=1, max_value=1e6), min_size=1, max_size=12),
    fixed=GIB,
    each=GIB,
    room=GIB,
)
def test_the_choice_is_the_smallest_of_the_fastest_that_fit(speeds, fixed: float, each: float, room: float):
    known = {2**n: speed for n, speed in enumerate(speeds)}
    probes = probes_of(known, fixed_gib=fixed, each_gib=each, room_gib=room)
    assert [p.size for p in probes] == [2**n for n in range(len(probes))]
    assert all(p.fits for p in probes[:-1])  # nothing is tried after a size that does not fit
    size = choose(probes, NOTICEABLE)
    if size is None:
        assert known[1] is None
        return
    ran = {p.size: p.tok_per_sec for p in probes if p.fits} or {1: known[1]}
    fastest = max(ran.values())
    assert ran[size] >= (1 - NOTICEABLE) * fastest
    assert all(ran[other] < (1 - NOTICEABLE) * fastest for other in ran if other < size)


@given(each=GIB, fixed=GIB)
def test_a_size_beyond_the_headroom_is_never_tried_once_two_peaks_are_known(each: float, fixed: float):
    """If main memory runs out, the kernel may kill other processes, so such a size must not even be tried."""
    room = fixed + each * 8  # 8 sequences take all of it
    probes = probes_of({1: 10.0, 2: 20.0, 4: 40.0, 8: 80.0}, fixed_gib=fixed, each_gib=each, room_gib=room)
    assert 8 not in [p.size for p in probes]
    assert probes[-1].peak_gib <= (1 - HEADROOM) * room or probes[-1].size <= 2 or not probes[-1].fits


def test_two_sizes_in_a_row_that_are_not_faster_end_it():
    probes = probes_of({1: 100.0, 2: 200.0, 4: 203.0, 8: 201.0, 16: 900.0})
    assert [p.size for p in probes] == [1, 2, 4, 8]
    assert choose(probes, NOTICEABLE) == 2


@pytest.mark.parametrize(("kind", "chosen"), [("cpu", 64), ("cuda", 128)])
def test_less_memory_is_worth_a_difference_that_is_not_noticeable(kind: str, chosen: int):
    measured = {64: 502_000, 128: 510_300}  # gpt-125m on an H100
    probes = [Probe(size=size, tok_per_sec=speed) for size, speed in measured.items()]
    assert choose(probes, micro_batch.NOTICEABLE[kind]) == chosen


def test_one_size_that_is_not_faster_does_not_end_it():
    probes = probes_of({1: 100.0, 2: 99.0, 4: 300.0, 8: 600.0})
    assert choose(probes, NOTICEABLE) == 8


def test_a_size_that_does_not_run_ends_it():
    probes = probes_of({1: 100.0, 2: 200.0, 4: None, 8: 800.0})
    assert [str(p) for p in probes] == ["1 (100 tok/s, 0.00 GiB)", "2 (200 tok/s, 0.00 GiB)", "4 (does not run: no)"]
    assert choose(probes, NOTICEABLE) == 2


def test_nothing_is_chosen_if_nothing_runs():
    assert choose(probes_of({1: None, 2: 1.0}), NOTICEABLE) is None
