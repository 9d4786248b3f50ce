"""Several runs of equal shape trained as one model whose parameters are stacked along a leading K.

Small steps are mostly overhead of their operations, which a pack pays once. Each run keeps its own weights, data,
schedule, AdamW and clipping. Nothing is reduced over K, so that no run can disturb another.
Shapes: K runs, S numbers in the flat buffer of one run, B sequences, T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Sequence

import torch
from torch import Tensor

from hpstudy.data.corpus import Corpus, WindowSampler
from hpstudy.records import Run, StepRecord
from hpstudy.spec import TrainerSpec
from hpstudy.training.device import Placement
from hpstudy.training.gpt import GPT, initialize
from hpstudy.training.optimizer import CLIP_EPS, Clipping, FlatParameters, norm, share_lost_to_bf16
from hpstudy.training.schedule import Evaluation, plan

ValBatches = Sequence[tuple[Tensor, Tensor]]


class Pack:
    """K models as one. Built once, and reset in place by every `train`."""

    def __init__(
        self,
        spec: TrainerSpec,
        corpus: Corpus,
        placement: Placement,
        num_runs: int,
        compiles: bool,
        val_batches: ValBatches,
    ) -> None:
        self._spec, self._corpus, self._placement, self._val_batches = spec, corpus, placement, val_batches
        self._solo = GPT(spec.model, corpus.vocab_size, spec.context)  # draws first weights, gives the rows' layout
        self._row = FlatParameters(self._solo)
        self._num_decayed = self._row.decayed.numel()
        self._weights_KS = torch.zeros(num_runs, len(self._row.weights), device=placement.device)
        self._before_KS, self._grads_KS, self._mean_KS, self._square_KS = (
            torch.zeros_like(self._weights_KS) for _ in range(4)
        )
        self._grads: list[Tensor] = []
        model = GPT(spec.model, corpus.vocab_size, spec.context).to(placement.device)
        for param, row in zip(model.parameters(), self._solo.parameters(), strict=True):
            span = slice(row.storage_offset(), row.storage_offset() + row.numel())
            param.data = self._weights_KS[:, span].view(num_runs, *row.shape)
            self._grads.append(self._grads_KS[:, span].view(num_runs, *row.shape))
        self._params = list(model.parameters())
        self._model = model
        if compiles:
            model.compile_blocks()

    def train(self, runs: Sequence[Run], stopped: Container[str]) -> Iterator[tuple[str, StepRecord]]:
        """Trains runs of equal shape in lockstep from their first step; see Trainer.train."""
        spec = self._spec
        for row, run in zip(self._weights_KS, runs, strict=True):
            initialize(self._solo, run.seed)
            row.copy_(self._row.weights)
        self._mean_KS.zero_()
        self._square_KS.zero_()
        samplers = {run.seed: WindowSampler(self._corpus, spec.context, run.seed) for run in runs}
        plans = (plan(run.hparams, budget=run.tokens, unit=spec.ramp_unit, evals=spec.evals) for run in runs)
        rows = _Rows(runs, self._placement.device)
        for steps in zip(*plans, strict=True):
            if all(run.run_id in stopped for run in runs):
                return
            start, step = time.perf_counter(), steps[0]
            first, count = step.tokens_before // spec.context, step.batch_tokens // spec.context
            windows = {seed: sampler.windows(first, count) for seed, sampler in samplers.items()}
            x_KBT, y_KBT = (
                torch.stack([torch.from_numpy(windows[run.seed][part]) for run in runs]).to(self._placement.device)
                for part in (0, 1)
            )
            micro_batch = step.micro_batch(runs[0].hparams, spec.context)
            loss_K = self._accumulate_gradients(x_KBT, y_KBT, micro_batch)
            clipping = self._clip_(rows)
            self._before_KS.copy_(self._weights_KS)
            self._update_(rows, step.step, [step.lr for step in steps], clipping.divisor)
            ratio_K = norm(self._weights_KS - self._before_KS) / norm(self._before_KS)
            figures = torch.stack([loss_K, clipping.norm, clipping.clipped, ratio_K], dim=1).tolist()
            seconds = time.perf_counter() - start
            evaluations = self._evaluations() if step.eval_index else [None for _ in runs]
            for run, own, figure, evaluation in zip(runs, steps, figures, evaluations, strict=True):
                if run.run_id not in stopped:
                    size = {"micro_batch": micro_batch, "context": spec.context}
                    yield run.run_id, own.record(figure, seconds, **size, evaluation=evaluation)

    def _accumulate_gradients(self, x_KBT: Tensor, y_KBT: Tensor, micro_batch: int) -> Tensor:
        """The mean loss of each run over its whole batch, [K], with the gradients in the buffer."""
        self._grads_KS.zero_()
        total_K = torch.zeros(len(x_KBT), device=x_KBT.device)
        share = micro_batch / x_KBT.shape[1]
        for x, y in zip(torch.split(x_KBT, micro_batch, 1), torch.split(y_KBT, micro_batch, 1), strict=True):
            with self._placement.autocast():
                loss_K = self._model(x, y) * share
            torch._foreach_add_(self._grads, torch.autograd.grad(loss_K.sum(), self._params))
            total_K += loss_K.detach()
        return total_K

    def _clip_(self, rows: _Rows) -> Clipping:
        """Clips each run by its own rule; see optimizer.clip_."""
        norm_K = norm(self._grads_KS)
        divisor_K = ((norm_K + CLIP_EPS) / rows.global_limit).clamp(min=1.0)
        clipped_K = norm_K > rows.global_limit
        if rows.clips_tensors:
            for grad in self._grads:
                own_K = torch.linalg.vector_norm(grad.flatten(1), dim=1, dtype=torch.float64).float()
                scale_K = (rows.tensor_limit / (own_K + CLIP_EPS)).clamp(max=1.0)
                grad.mul_(scale_K.view(-1, *[1] * (grad.ndim - 1)))
                clipped_K |= own_K > rows.tensor_limit
        return Clipping(norm=norm_K, clipped=clipped_K, divisor=divisor_K)

    def _update_(self, rows: _Rows, step: int, lrs: list[float], divisor_K: Tensor) -> None:
        """One AdamW step of every run, rounded as in torch's fused kernel as far as plain operations allow."""
        lr = torch.tensor(lrs, dtype=torch.float64)
        step_size, root = (lr / (1 - rows.beta1**step)), (1 - rows.beta2**step).sqrt()
        decay, step_size, root = (
            x.float()[:, None].to(divisor_K.device) for x in (1 - lr * rows.weight_decay, step_size, root)
        )
        grads_KS = self._grads_KS.div_(divisor_K[:, None])
        self._weights_KS[:, : self._num_decayed].mul_(decay)
        self._mean_KS.lerp_(grads_KS, rows.weight1)
        self._square_KS.mul_(rows.keep2).addcmul_(grads_KS * rows.weight2, grads_KS)
        denominator_KS = torch.sqrt(self._square_KS, out=grads_KS).div_(root).add_(rows.eps)
        self._weights_KS.sub_((self._mean_KS / denominator_KS).mul_(step_size))

    @torch.no_grad()
    def _evaluations(self) -> list[Evaluation]:
        start = time.perf_counter()
        num_runs, count = len(self._weights_KS), 0
        total_K = torch.zeros(num_runs, dtype=torch.float64, device=self._placement.device)
        for x_BT, y_BT in self._val_batches:
            with self._placement.autocast():
                losses_K = self._model(x_BT.expand(num_runs, -1, -1), y_BT.expand(num_runs, -1, -1))
            total_K += losses_K.double() * y_BT.numel()
            count += y_BT.numel()
        lost_K = torch.stack(
            [share_lost_to_bf16(*rows) for rows in zip(self._before_KS, self._weights_KS, strict=True)]
        )
        figures = torch.stack([total_K / count, lost_K.double()], dim=1).tolist()
        seconds = time.perf_counter() - start
        return [Evaluation(val_loss=loss, bf16_lost=lost, seconds=seconds) for loss, lost in figures]


class _Rows:
    """The runs' own hyperparameters as columns. A limit that a run does not clip by is infinite."""

    def __init__(self, runs: Sequence[Run], device: str) -> None:
        every = [run.hparams for run in runs]
        # in float64 on the host, because they are taken to the power of the step
        self.beta1, self.beta2, self.weight_decay = (
            torch.tensor([getattr(hparams, key) for hparams in every], dtype=torch.float64)
            for key in ("beta1", "beta2", "weight_decay")
        )
        self.weight1, self.weight2, self.keep2 = (
            x.float()[:, None].to(device) for x in (1 - self.beta1, 1 - self.beta2, self.beta2)
        )
        self.eps = torch.tensor([[hparams.eps] for hparams in every], device=device)
        limits = {
            mode: [hparams.grad_clip if hparams.clip_mode == mode else torch.inf for hparams in every]
            for mode in ("global", "per_tensor")
        }
        self.clips_tensors = any(hparams.clip_mode == "per_tensor" for hparams in every)
        self.global_limit = torch.tensor(limits["global"], device=device)
        self.tensor_limit = torch.tensor(limits["per_tensor"], device=device)
