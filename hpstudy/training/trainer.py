"""The fixed trainer: a generator of step records. It knows nothing of Optuna, W&B, pruning or files."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpstudy.hparams import HParams
from hpstudy.records import Run, Speed, StepRecord
from hpstudy.spec import TrainerSpec
from hpstudy.training.corpus import Corpus, WindowSampler, val_windows
from hpstudy.training.device import Placement
from hpstudy.training.gpt import GPT, initialize
from hpstudy.training.optimizer import FlatParameters, clip_, make_adamw, norm, share_lost_to_bf16, update_
from hpstudy.training.pack import Pack
from hpstudy.training.schedule import StepPlan, plan

MAX_GRAPHS = 256
EVAL_TOKENS = 16_384  # of one forward pass of an evaluation; fixed, so that no hyperparameter moves its rounding


class Trainer:
    """Trains runs of one spec, one after the other; model, buffers and corpus are built once and reset in place.

    The record of a step depends on (spec, run, device, precision, threads) alone: a run trained twice, or after any
    other run, yields the same numbers bitwise. Times are the exception.
    """

    def __init__(self, spec: TrainerSpec, corpus: Corpus, placement: Placement) -> None:
        self.spec = spec
        self.placement = placement
        self.vocab_size = corpus.vocab_size
        self._corpus = corpus
        self._model = GPT(spec.model, corpus.vocab_size, spec.context).to(placement.device)
        self._prepared: Callable[[GPT], Callable[[Tensor, Tensor], Any]] = (
            _compiled if placement.compiles else lambda model: model
        )
        self._loss = self._prepared(self._model)
        self._flat = FlatParameters(self._model)
        self._before = torch.empty_like(self._flat.weights)
        inputs, targets = val_windows(corpus, spec.context)
        rows = max(1, EVAL_TOKENS // spec.context)
        self._val_batches = [
            (self._to_device(inputs[i : i + rows]), self._to_device(targets[i : i + rows]))
            for i in range(0, len(inputs), rows)
        ]

        self._packs: dict[int, Pack] = {}  # by the number of runs

    @property
    def num_params(self) -> int:
        """Parameters of the model, the vocabulary unpadded."""
        return self._model.num_params

    def train(self, runs: Sequence[Run], stopped: Container[str] = ()) -> Iterator[tuple[str, StepRecord]]:
        """Trains runs from their first step and yields (run id, what the step measured), step by step.

        Several runs must be of equal shape (see Run.packs_with) and train in lockstep as one stacked model: a step's
        seconds are the wall time that they share, its tokens per second those of each run. Their losses are those of
        one at a time to rounding. A run yields no more once the caller has put its id into `stopped`.
        """
        if len(runs) > 1:
            assert all(runs[0].packs_with(run) for run in runs)
            yield from self._pack(len(runs)).train(runs, stopped)
            return
        for record in self._train_alone(runs[0]):
            yield runs[0].run_id, record
            if runs[0].run_id in stopped:
                return

    def _pack(self, num_runs: int) -> Pack:
        if num_runs not in self._packs:
            self._packs[num_runs] = Pack(
                self.spec, self._corpus, self.placement, num_runs, self._prepared, self._val_batches
            )
        return self._packs[num_runs]

    def _train_alone(self, run: Run) -> Iterator[StepRecord]:
        hparams, spec = run.hparams, self.spec
        initialize(self._model, run.seed)
        optimizer = make_adamw(self._flat, hparams)
        sampler = WindowSampler(self._corpus, spec.context, run.seed)
        steps = plan(hparams, budget=run.tokens, unit=spec.ramp_multiple * spec.context, evals=spec.evals)
        for step in steps:
            start = time.perf_counter()
            loss = self._accumulate_gradients(sampler, step, hparams.micro_batch)
            clipping = clip_(self._flat, hparams.clip_mode, hparams.grad_clip)
            self._before.copy_(self._flat.weights)
            update_(optimizer, step.lr, clipping.divisor)
            # ||update|| / ||weights||; about 1e-3 at a healthy rate
            ratio = norm(self._flat.weights - self._before) / norm(self._before)
            figures = torch.stack([loss, clipping.norm, clipping.clipped, ratio]).tolist()  # the only synchronisation
            seconds = time.perf_counter() - start
            yield StepRecord(
                step=step.step,
                tokens=step.tokens,
                loss=figures[0],
                grad_norm=figures[1],
                clipped=bool(figures[2]),
                lr=step.lr,
                update_to_weight=figures[3],
                batch_tokens=step.batch_tokens,
                micro_batch=hparams.micro_batch,
                accumulation=step.batch_tokens // (hparams.micro_batch * spec.context),
                step_seconds=seconds,
                tok_per_sec=step.batch_tokens / seconds,
                **(self._evaluation(step.eval_index) if step.eval_index else {}),
            )

    def measure(self, hparams: HParams, steps: int = 6, pack: int = 1) -> Speed:
        """Times full-batch steps (the median, after two of warm-up) and one evaluation, without keeping a result.

        Of a pack it times the steps of as many runs as one; the evaluation is always of one.
        """
        full_batch = replace(hparams, batch_ramp_fraction=0.0)
        far = 1000 * self.spec.evals * hparams.batch_tokens  # no point of the evaluation grid is reached
        run = Run(run_id="measure", phase="search", trial=None, seed=self.spec.seed, tokens=far, hparams=full_batch)
        runs = [replace(run, run_id=f"measure-{number}") for number in range(pack)]
        records = islice(self.train(runs), 0, (2 + steps) * pack, pack)  # those of the first run
        timed = [record.step_seconds for _, record in records][2:]
        self._evaluation(eval_index=1)  # compiles, where that is done
        start = time.perf_counter()
        self._evaluation(eval_index=1)
        return Speed(step_seconds=statistics.median(timed), eval_seconds=time.perf_counter() - start)

    def _accumulate_gradients(self, sampler: WindowSampler, step: StepPlan, micro_batch: int) -> Tensor:
        """Mean loss over the whole batch, with its gradient in the flat buffer.

        The batch is one range of windows whatever the micro-batch, and each equal micro-batch's loss is divided by
        their number, so that the sum of gradients is the gradient of the batch's mean.
        """
        context = self.spec.context
        first, count = step.tokens_before // context, step.batch_tokens // context
        inputs, targets = (self._to_device(windows) for windows in sampler.windows(first, count))
        self._flat.grads.zero_()
        total = torch.zeros((), device=self.placement.device)
        for x_BT, y_BT in zip(torch.split(inputs, micro_batch), torch.split(targets, micro_batch), strict=True):
            with self.placement.autocast():
                loss = self._loss(x_BT, y_BT) * (micro_batch / count)
            loss.backward()
            total += loss.detach()
        return total

    @torch.no_grad()
    def _evaluation(self, eval_index: int) -> dict[str, Any]:
        start = time.perf_counter()
        lost = share_lost_to_bf16(self._before, self._flat.weights)
        total = torch.zeros((), dtype=torch.float64, device=self.placement.device)
        count = 0
        for x_BT, y_BT in self._val_batches:
            with self.placement.autocast():
                total += self._loss(x_BT, y_BT).double() * y_BT.numel()
            count += y_BT.numel()
        val_loss, bf16_lost = torch.stack([total / count, lost.double()]).tolist()
        return {
            "val_loss": val_loss,
            "eval_index": eval_index,
            "eval_seconds": time.perf_counter() - start,
            "bf16_lost": bf16_lost,
        }

    def _to_device(self, windows: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(windows)
        if not self.placement.is_cuda:
            return tensor
        return tensor.pin_memory().to(self.placement.device, non_blocking=True)  # the host does not wait for the copy


def _compiled(model: GPT) -> Callable[[Tensor, Tensor], Any]:
    """The model with one graph per shape, which torch keeps on disk."""
    torch._dynamo.config.recompile_limit = MAX_GRAPHS  # beyond it torch would go on uncompiled without a word
    compiled: Callable[[Tensor, Tensor], Any] = torch.compile(model, dynamic=False)
    return compiled
