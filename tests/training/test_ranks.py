"""Several ranks train a run together: the losses of one process, the same bits on every rank and every time."""

from __future__ import annotations

import socket
from dataclasses import replace
from itertools import islice
from unittest.mock import Mock

import pytest

from hpstudy.training import trainer as trainer_module
from hpstudy.training.checkpoint import Checkpoint, TrainingState
from hpstudy.training.ranks import LOOPBACK, PeerLost, Ranks, open_store
from tests.helpers.ranks import curves_of, together
from tests.helpers.training import BATCH, CONTEXT, HPARAMS, SPEC, curve, make_trainer, run, timeless

SMALL = replace(HPARAMS, micro_batch=2)
ROUNDING = 1e-6  # measured over 20 steps: 2e-7 of a loss and 1e-5 of a norm


@pytest.mark.parametrize("count", [2, 4])
def test_ranks_have_the_losses_of_one_process_and_agree_to_the_last_bit(count: int):
    alone, ranks = curve(make_trainer(), run(SMALL)), curves_of(count, run(SMALL))
    assert all(found == ranks[0] for found in ranks)
    for key in ("loss", "val_loss"):
        expected, found = ([getattr(record, key) for record in records] for records in (alone, ranks[0]))
        assert [x is None for x in found] == [x is None for x in expected]
        assert [x for x in found if x] == pytest.approx([x for x in expected if x], rel=ROUNDING)
    assert [r.grad_norm for r in ranks[0]] == pytest.approx([r.grad_norm for r in alone], rel=100 * ROUNDING)
    exact = ("step", "tokens", "lr", "batch_tokens", "micro_batch", "accumulation", "eval_index")
    assert [[getattr(r, key) for key in exact] for r in ranks[0]] == [[getattr(r, key) for key in exact] for r in alone]


@pytest.mark.parametrize("count", [2, 3])
def test_ranks_have_the_same_bits_every_time(count: int):
    batches = replace(SMALL, batch_tokens=6 * CONTEXT, micro_batch=1)
    assert curves_of(count, run(batches)) == curves_of(count, run(batches))


def test_an_evaluation_of_the_same_weights_has_the_same_bits_whatever_the_ranks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trainer_module, "EVAL_TOKENS", 4 * CONTEXT)  # of one of 8 batches
    still, spec = run(replace(HPARAMS, lr=0.0, batch_tokens=6 * CONTEXT, micro_batch=2)), replace(SPEC, evals=1)
    expected = curve(make_trainer(spec), still)[-1].val_loss
    assert [curves_of(count, still, spec)[0][-1].val_loss for count in (1, 2, 3)] == [expected] * 3


def test_a_run_that_ranks_resume_has_the_bits_of_one_that_never_stopped():
    def interrupted(ranks: Ranks) -> tuple[list[object], list[object]]:
        trainer = make_trainer(replace(SPEC, processes=2), ranks=ranks)
        whole = curve(trainer, run(SMALL))
        first = [timeless(record) for record in islice(trainer.train(run(SMALL)), 7)]
        state = trainer.state()
        assert state is not None
        tensors = {
            number: {name: t.clone() for name, t in part.items()} for number, part in state.optimizer["state"].items()
        }
        copy = TrainingState(step=state.step, weights=state.weights.clone(), optimizer={"state": tensors})
        fresh = make_trainer(replace(SPEC, processes=2), ranks=ranks)
        return whole, first + curve(fresh, run(SMALL), Checkpoint(fingerprint="", bad_steps=0, state=copy))

    for whole, resumed in together(2, interrupted):
        assert resumed == whole


def test_each_rank_takes_its_part_of_every_batch_of_a_ramp():
    spec = replace(SPEC, ramp_multiple=4)
    ramped = replace(HPARAMS, micro_batch=2, batch_ramp_fraction=0.5, batch_ramp_start=0.25)
    alone, (first, second) = curve(make_trainer(spec), run(ramped)), curves_of(2, run(ramped), spec)
    assert first == second
    assert [r.batch_tokens for r in first] == [r.batch_tokens for r in alone]
    assert first[0].batch_tokens == 4 * CONTEXT < BATCH
    assert [r.loss for r in first] == pytest.approx([r.loss for r in alone], rel=ROUNDING)


def test_ranks_know_each_others_values():
    assert Ranks().gather(1.5, 2) == [[1.5, 2]]
    assert together(3, lambda ranks: ranks.gather(ranks.rank, 0.1)) == [[[0, 0.1], [1, 0.1], [2, 0.1]]] * 3
    assert together(2, lambda ranks: ranks.of_first(ranks.rank + 7)) == [7, 7]


def test_memory_is_that_of_the_rank_that_needs_most_and_of_the_one_that_has_least():
    def memory(ranks: Ranks) -> tuple[float, float]:
        trainer = make_trainer(replace(SPEC, processes=2), ranks=ranks)
        trainer.placement = Mock(memory_gib=lambda: [(3.0, 10.0), (2.0, 9.0)][ranks.rank])
        return trainer.memory_gib()

    assert together(2, memory) == [(3.0, 9.0)] * 2


def test_a_sum_without_a_peer_is_an_error_of_its_own():
    def leave_or_sum(ranks: Ranks) -> str:
        ranks.gather(0)
        if ranks.rank == 1:
            return "left"
        with pytest.raises(PeerLost, match="rank 0 of 2 has lost another"):
            ranks.gather(0)
        return "lost it"

    assert together(2, leave_or_sum) == ["lost it", "left"]


def test_the_store_of_the_ranks_is_reached_from_this_machine_alone():
    store = open_store()
    socket.create_connection((LOOPBACK, store.port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", store.port)).close()
