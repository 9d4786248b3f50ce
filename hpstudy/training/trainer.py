"""The fixed trainer: a generator of step records. It knows nothing of Optuna, W&B, pruning or files."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from hpstudy.data.corpus import Corpus, WindowSampler, val_windows
from hpstudy.hparams import HParams
from hpstudy.records import Run, StepRecord
from hpstudy.spec import TrainerSpec
from hpstudy.training.checkpoint import Checkpoint, TrainingState
from hpstudy.training.cuda import GRAPH_FLOPS, Backward, Reading, captured
from hpstudy.training.device import Placement
from hpstudy.training.gpt import GPT, initialize
from hpstudy.training.optimizer import FlatParameters, clip_, make_adamw, norm, share_lost_to_bf16, update_
from hpstudy.training.schedule import Evaluation, StepPlan, plan

EVAL_TOKENS = 16_384  # of one forward pass of an evaluation; fixed, so that no hyperparameter changes its rounding


class Trainer:
    """Trains runs of one spec, one after the other. Model, buffers and corpus are built once and reset in place.

    A run trained twice gives the same numbers bitwise, whatever was trained before or beside it. They depend on the
    spec, the run, the device, the precision and the threads. Only times differ.
    """

    def __init__(
        self,
        spec: TrainerSpec,
        corpus: Corpus,
        placement: Placement,
        *,
        steps_ahead: int | None = None,
        capture: bool | None = None,
        compile: bool | None = None,
    ) -> None:
        """`steps_ahead`: steps launched before the figures of the last one are read; by default 1 on GPUs, else 0.

        `capture`: whether micro-batches of small models are launched as one graph; by default on GPUs.
        `compile`: whether the model's blocks are compiled; by default on GPUs.
        """
        self.spec = spec
        self.placement = placement
        self.vocab_size = corpus.vocab_size
        self._steps_ahead = int(placement.is_cuda) if steps_ahead is None else steps_ahead
        self._captures = placement.is_cuda if capture is None else capture
        self._compiles = placement.is_cuda if compile is None else compile
        self._corpus = corpus
        self._model = GPT(spec.model, corpus.vocab_size, spec.context).to(placement.device)
        if self._compiles:
            self._model.compile_blocks()
        self._flat = FlatParameters(self._model)
        self._before = torch.empty_like(self._flat.weights)
        self._graph: tuple[int, Backward] | None = None  # of the last micro-batch size; only one is kept in memory
        self._val_batches = self._val_batches_of(confirm=False)
        self._confirm_batches = self._val_batches_of(confirm=True) if spec.confirm_val else self._val_batches
        self._evaluated_on = self._val_batches  # by the run in training

        self._optimizer: torch.optim.AdamW | None = None
        self._step = 0  # the last step launched
        self._unread: deque[tuple[StepPlan, Reading]] = deque()  # steps launched and not yet yielded
        self._catching_up = False

    @property
    def num_params(self) -> int:
        """Parameters of the model, without the vocabulary's padding."""
        return self._model.num_params

    def state(self) -> TrainingState | None:
        """The run's state after the step that `train` yielded last. Read it before the next step.

        None if the device is ahead of that step. The call then makes the trainer catch up, so that a later one has it.
        """
        self._catching_up = bool(self._unread)
        if self._unread or self._optimizer is None:
            return None
        return TrainingState(step=self._step, weights=self._flat.weights, optimizer=self._optimizer.state_dict())

    def train(self, run: Run, checkpoint: Checkpoint | None = None) -> Iterator[StepRecord]:
        """Trains a run from its first step and yields the record of every step.

        With a `checkpoint` it resumes after that, with the same numbers as if it had never stopped. On a GPU a record
        comes one step late, while the next step runs, except after an evaluation and at the end.
        """
        # initialise weights and optimizer, or restore them
        hparams, spec = run.hparams, self.spec
        start = checkpoint.state if checkpoint else None
        initialize(self._model, run.seed)
        self._evaluated_on = self._val_batches if run.seed == spec.seed else self._confirm_batches
        optimizer = self._optimizer = make_adamw(self._flat, hparams)
        if start is not None:
            self._flat.weights.copy_(start.weights)
            optimizer.load_state_dict(start.optimizer)

        # data and schedule are functions of the step alone
        sampler = WindowSampler(self._corpus, spec.context, run.seed)
        steps = plan(hparams, budget=run.tokens, unit=spec.ramp_unit, evals=spec.evals)
        unread = self._unread
        unread.clear()
        self._catching_up = False

        for step in islice(steps, start.step if start else 0, None):
            reading = Reading(self._flat.weights.device)

            # accumulate gradients over the micro-batches
            loss = self._accumulate_gradients(sampler, step, step.micro_batch(hparams, spec.context))

            # clip by the norm, then update
            clipping = clip_(self._flat, hparams.clip_mode, hparams.grad_clip)
            self._before.copy_(self._flat.weights)
            update_(optimizer, step.lr, clipping.divisor)

            # ||update|| / ||weights||; about 1e-3 at a healthy learning rate
            ratio = norm(self._flat.weights - self._before) / norm(self._before)
            reading.send(torch.stack([loss, clipping.norm, clipping.clipped, ratio]))
            unread.append((step, reading))
            self._step = step.step

            # yield records, evaluating when due; a GPU's come one step late
            while len(unread) > (0 if step.eval_index or self._catching_up else self._steps_ahead):
                yield self._record(hparams, *unread.popleft())

    def _record(self, hparams: HParams, step: StepPlan, reading: Reading) -> StepRecord:
        """What a step measured. Reading it is the only synchronisation of a step without an evaluation."""
        figures, seconds = reading.read()
        return step.record(
            figures,
            seconds,
            micro_batch=step.micro_batch(hparams, self.spec.context),
            context=self.spec.context,
            evaluation=self._evaluation() if step.eval_index else None,
        )

    def time_evaluation(self) -> float:
        """Seconds of an evaluation, after one that may compile."""
        return [self._evaluation().seconds for _ in range(2)][1]

    def time_steps(self, hparams: HParams, steps: int) -> list[float]:
        """Seconds of each of `steps` full-batch steps, after two of warm-up. Keeps no result."""
        full_batch = replace(hparams, batch_ramp_fraction=0.0)
        far = 1000 * self.spec.evals * hparams.batch_tokens  # long enough that no evaluation is due
        run = Run(run_id="measure", phase="search", trial=None, seed=self.spec.seed, tokens=far, hparams=full_batch)
        return [record.step_seconds for record in islice(self.train(run), 2, 2 + steps)]

    def _accumulate_gradients(self, sampler: WindowSampler, step: StepPlan, micro_batch: int) -> Tensor:
        """The mean loss over the whole batch, with its gradient in the flat buffer.

        The batch is one range of windows, whatever the micro-batch. Each micro-batch's loss is weighted by its share of
        the batch, so that the gradients add up to the gradient of the batch's mean.
        """
        context = self.spec.context
        first, count = step.tokens_before // context, step.batch_tokens // context
        inputs, targets = (self._to_device(windows) for windows in sampler.windows(first, count))
        backward = self._backward_of(inputs[:micro_batch], targets[:micro_batch])
        self._flat.grads.zero_()
        total = torch.zeros((), device=self.placement.device)
        for x_BT, y_BT in zip(torch.split(inputs, micro_batch), torch.split(targets, micro_batch), strict=True):
            total += backward(x_BT, y_BT, micro_batch / count)
        return total

    def _backward(self, inputs_BT: Tensor, targets_BT: Tensor, share: float | Tensor) -> Tensor:
        with self.placement.autocast():
            loss: Tensor = self._model(inputs_BT, targets_BT) * share
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _backward_of(self, inputs_BT: Tensor, targets_BT: Tensor) -> Backward:
        """`_backward` for inputs of this shape; as a graph if the model is so small that launches would dominate."""
        flops = 6 * self.num_params * inputs_BT.numel()
        if not self._captures or flops > GRAPH_FLOPS:
            return self._backward
        if self._graph is None or self._graph[0] != len(inputs_BT):
            self._graph = None  # frees the old one first
            self._graph = len(inputs_BT), captured(self._backward, self._flat.grads, inputs_BT, targets_BT)
        return self._graph[1]

    @torch.no_grad()
    def _evaluation(self) -> Evaluation:
        start = time.perf_counter()
        lost = share_lost_to_bf16(self._before, self._flat.weights)
        total = torch.zeros((), dtype=torch.float64, device=self.placement.device)
        count = 0
        for x_BT, y_BT in self._evaluated_on:
            with self.placement.autocast():
                total += self._model(x_BT, y_BT).double() * y_BT.numel()
            count += y_BT.numel()
        val_loss, bf16_lost = torch.stack([total / count, lost.double()]).tolist()
        return Evaluation(val_loss=val_loss, bf16_lost=bf16_lost, seconds=time.perf_counter() - start)

    def _val_batches_of(self, *, confirm: bool) -> list[tuple[Tensor, Tensor]]:
        inputs, targets = val_windows(self._corpus, self.spec.context, confirm=confirm)
        rows = max(1, EVAL_TOKENS // self.spec.context)
        return [
            (self._to_device(inputs[i : i + rows]), self._to_device(targets[i : i + rows]))
            for i in range(0, len(inputs), rows)
        ]

    def _to_device(self, windows: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(windows)
        if not self.placement.is_cuda:
            return tensor
        return tensor.pin_memory().to(self.placement.device, non_blocking=True)  # the host does not wait for the copy
