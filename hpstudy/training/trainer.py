"""The fixed trainer: a generator of step records. It knows nothing of Optuna, W&B, pruning or files."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from hpstudy.data.corpus import Corpus, WindowSampler, val_windows
from hpstudy.hparams import HParams
from hpstudy.records import Run, StepRecord
from hpstudy.schedule import Evaluation, StepPlan, plan
from hpstudy.spec import TrainerSpec, flops_per_token
from hpstudy.training.checkpoint import Checkpoint, TrainingState
from hpstudy.training.cuda import GRAPH_FLOPS, Backward, Reading, Step, captured, captured_step
from hpstudy.training.device import Placement
from hpstudy.training.gpt import GPT, initialize
from hpstudy.training.optimizer import AdamW, FlatParameters, clip_, norm, share_lost_to_bf16
from hpstudy.training.ranks import ALONE, Ranks

EVAL_TOKENS = 16_384  # of one forward pass of an evaluation; fixed, so that no hyperparameter changes its rounding
COMPILE_FLOPS, COMPILE_SECONDS = 5e13, 10.0  # of one run of about 20 in a study; 10^15 FLOP take a GPU 5 to 30 s

Capture = Literal["step", "micro-batch", "nothing"]


def compiling_pays(spec: TrainerSpec) -> bool:
    """Whether compiled blocks save a study on a GPU more seconds than compiling costs each of its workers: 5 to 30.

    A function of the spec alone, because compiled and other kernels round differently.
    """
    if spec.tokens is None:
        return spec.seconds is None or spec.seconds >= COMPILE_SECONDS
    return spec.tokens * flops_per_token(spec.model, spec.tokenizer, spec.context) >= COMPILE_FLOPS


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
        capture: Capture | None = None,
        compile: bool | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """`steps_ahead`: steps launched before the figures of the last one are read; by default 1 on GPUs, else 0.

        `capture`: what is launched as one graph if it is small: the whole step (the default on GPUs), or at most the
        micro-batch.
        `compile`: whether the model's blocks are compiled; by default on GPUs, if runs are long enough to repay it.
        `ranks`: those that train every run together. They launch no step ahead, so that all have launched the same
        steps wherever a run ends, and capture no more than the micro-batch.
        """
        self.spec = spec
        self.ranks = ranks
        self.placement = placement
        self.vocab_size = corpus.vocab_size
        self._steps_ahead = int(placement.is_cuda and ranks.alone) if steps_ahead is None else steps_ahead
        largest: Capture = "step" if ranks.alone else "micro-batch"
        self._captures: Capture = capture or (largest if placement.is_cuda else "nothing")
        self._corpus = corpus
        self._model = GPT(spec.model, corpus.vocab_size, spec.context).to(placement.device)
        if placement.is_cuda and compiling_pays(spec) if compile is None else compile:
            self._model.compile_blocks()
        self._flat = FlatParameters(self._model)
        self._before = torch.empty_like(self._flat.weights)
        self._graph: tuple[int, Backward] | None = None  # of the last micro-batch size; only one is kept in memory
        self._step_graph: Step | None = None  # of the run in training, whose hyperparameters it holds
        self._proved: dict[tuple[int, int], bool] = {}  # (batch, micro-batch) -> whether its graph was right
        self._lr: float | Tensor = torch.zeros((), device=placement.device) if placement.is_cuda else 0.0
        self._val_batches = self._val_batches_of(confirm=False)
        self._confirm_batches = self._val_batches_of(confirm=True) if spec.confirm_val else self._val_batches
        self._evaluated_on = self._val_batches  # by the run in training

        self._optimizer: AdamW | None = None
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
        optimizer = self._optimizer = AdamW(self._flat, hparams)
        self._step_graph = None
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
            windows_2BT = self._windows(sampler, step)
            reading.send(self._launch(hparams, optimizer, step, windows_2BT))
            unread.append((step, reading))
            self._step = step.step

            # yield records, evaluating when due; a GPU's come one step late
            while len(unread) > (0 if step.eval_index or self._catching_up else self._steps_ahead):
                yield self._record(hparams, *unread.popleft())

    def _launch(self, hparams: HParams, optimizer: AdamW, step: StepPlan, windows_2BT: Tensor) -> Tensor:
        """Starts a step's work on the device and returns its figures; see `StepPlan.record`."""
        if isinstance(self._lr, Tensor):
            self._lr.fill_(step.lr)  # a graph reads it there
        else:
            self._lr = step.lr
        micro_batch = step.micro_batch(hparams, self.spec)
        shape = (windows_2BT.shape[1], micro_batch)
        whole = (
            self._captures == "step"
            and step.batch_tokens == hparams.batch_tokens  # not the batches of a ramp, each of another shape
            and self._flops(step.batch_tokens) <= GRAPH_FLOPS
            and self._proved.get(shape, True)
        )
        take_step = partial(self._take_step, hparams, optimizer, micro_batch, whole)
        if not whole:
            return take_step(windows_2BT)
        if self._step_graph is None:
            state: list[Tensor] = []
            if shape not in self._proved:
                state = [self._flat.weights, *optimizer.tensors]
            first_2BT = windows_2BT[:, :micro_batch].to(self.placement.device)
            self._step_graph = captured_step(
                take_step,
                windows_2BT,
                backward=lambda: self._backward(first_2BT[0], first_2BT[1], 1.0),
                state=state,
                exact=self.placement.deterministic,
            )
            self._proved[shape] = self._step_graph is not None
        return (self._step_graph or take_step)(windows_2BT)

    def _take_step(
        self, hparams: HParams, optimizer: AdamW, micro_batch: int, whole: bool, windows_2BT: Tensor
    ) -> Tensor:
        """One step, from its windows to its figures. Nothing in it waits for the device."""
        # accumulate gradients over the micro-batches
        inputs_BT, targets_BT = windows_2BT.to(self.placement.device, non_blocking=True)
        loss = self._accumulate_gradients(inputs_BT, targets_BT, micro_batch, whole)

        # clip by the norm, then update
        clipping = clip_(self._flat, hparams.clip_mode, hparams.grad_clip)
        self._before.copy_(self._flat.weights)
        optimizer.step(self._lr, clipping.divisor)

        # ||update|| / ||weights||; about 1e-3 at a healthy learning rate
        ratio = norm(self._flat.weights - self._before) / norm(self._before)
        return torch.stack([loss, clipping.norm, clipping.clipped, ratio])

    def _record(self, hparams: HParams, step: StepPlan, reading: Reading) -> StepRecord:
        """What a step measured. Reading it is the only synchronisation of a step without an evaluation."""
        figures, seconds = reading.read()
        return step.record(
            figures,
            seconds,
            micro_batch=step.micro_batch(hparams, self.spec),
            context=self.spec.context,
            evaluation=self._evaluation() if step.eval_index else None,
        )

    def memory_gib(self) -> tuple[float, float]:
        """(peak memory of the rank that needs most, memory that the rank with least could use)."""
        peaks, rooms = zip(*self.ranks.gather(*self.placement.memory_gib()), strict=True)
        return max(peaks), min(rooms)

    def time_evaluation(self) -> float:
        """Seconds of an evaluation, after one that may compile."""
        return [self._evaluation().seconds for _ in range(2)][1]

    def time_steps(self, hparams: HParams, steps: int) -> list[float]:
        """Seconds of each of `steps` full-batch steps, after two of warm-up. Keeps no result."""
        full_batch = replace(hparams, batch_ramp_fraction=0.0)
        far = 1000 * self.spec.evals * hparams.batch_tokens  # long enough that no evaluation is due
        run = Run(run_id="measure", phase="search", trial=None, seed=self.spec.seed, tokens=far, hparams=full_batch)
        return [record.step_seconds for record in islice(self.train(run), 2, 2 + steps)]

    def _windows(self, sampler: WindowSampler, step: StepPlan) -> Tensor:
        """This rank's inputs and targets of a step, [2, B, T] on the host: a range of windows for any micro-batch."""
        count = self.spec.rank_sequences(step.batch_tokens)
        first = step.tokens_before // self.spec.context + self.ranks.rank * count
        windows_2BT = torch.from_numpy(sampler.windows(first, count))
        return windows_2BT.pin_memory() if self.placement.is_cuda else windows_2BT  # copied without waiting

    def _accumulate_gradients(self, inputs: Tensor, targets: Tensor, micro_batch: int, whole: bool) -> Tensor:
        """The mean loss over the whole batch, with its gradient in the flat buffer.

        Each micro-batch's loss is weighted by its share of the batch, so that the gradients add up to the gradient of
        the batch's mean, also of all ranks. `whole`: the step is or will be one graph, so that micro-batches need none.
        """
        backward = self._backward if whole else self._backward_of(inputs[:micro_batch], targets[:micro_batch])
        self._flat.grads_and_loss.zero_()
        total, sequences = self._flat.loss, len(inputs) * self.ranks.count
        for x_BT, y_BT in zip(torch.split(inputs, micro_batch), torch.split(targets, micro_batch), strict=True):
            total += backward(x_BT, y_BT, micro_batch / sequences)
        self.ranks.sum_(self._flat.grads_and_loss)
        return total

    def _flops(self, tokens: int) -> int:
        """Of training on `tokens` tokens, about."""
        return 6 * self.num_params * tokens

    def _backward(self, inputs_BT: Tensor, targets_BT: Tensor, share: float | Tensor) -> Tensor:
        with self.placement.autocast():
            loss: Tensor = self._model(inputs_BT, targets_BT) * share
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _backward_of(self, inputs_BT: Tensor, targets_BT: Tensor) -> Backward:
        """`_backward` for inputs of this shape; as a graph if the model is so small that launches would dominate."""
        if self._captures == "nothing" or self._flops(inputs_BT.numel()) > GRAPH_FLOPS:
            return self._backward
        if self._graph is None or self._graph[0] != len(inputs_BT):
            self._graph = None  # frees the old one first
            exact = self.placement.deterministic
            graph = captured(self._backward, self._flat.grads, inputs_BT, targets_BT, exact=exact)
            self._graph = len(inputs_BT), graph
        return self._graph[1]

    @torch.no_grad()
    def _evaluation(self) -> Evaluation:
        start = time.perf_counter()
        lost = share_lost_to_bf16(self._before, self._flat.weights)
        # each rank sums up some batches; what they add up to does not depend on which
        losses = torch.zeros(len(self._evaluated_on), dtype=torch.float64, device=self.placement.device)
        for index in range(self.ranks.rank, len(losses), self.ranks.count):
            x_BT, y_BT = self._evaluated_on[index]
            with self.placement.autocast():
                losses[index] = self._model(x_BT, y_BT).double() * y_BT.numel()
        self.ranks.sum_(losses)
        total = torch.zeros((), dtype=torch.float64, device=self.placement.device)
        for loss in losses:  # in order: torch's own sum takes another
            total += loss
        count = sum(y_BT.numel() for _, y_BT in self._evaluated_on)
        val_loss, bf16_lost = torch.stack([total / count, lost.double()]).tolist()
        return Evaluation(val_loss=val_loss, bf16_lost=bf16_lost, seconds=time.perf_counter() - start)

    def _val_batches_of(self, *, confirm: bool) -> list[tuple[Tensor, Tensor]]:
        windows = val_windows(self._corpus, self.spec.context, confirm=confirm)
        rows = max(1, EVAL_TOKENS // self.spec.context)
        inputs_BT, targets_BT = (torch.from_numpy(part).to(self.placement.device) for part in windows)
        return list(zip(torch.split(inputs_BT, rows), torch.split(targets_BT, rows), strict=True))
