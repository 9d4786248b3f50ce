"""Where a step's time goes: kernels and operations sorted by name, and shares that add up."""

from __future__ import annotations

import time

import pytest
import torch

from hpstudy.training.device import place
from hpstudy.training.profile import KINDS, OTHER, REST, busy_time, kind_of, time_shares
from tests.helpers.training import make_trainer, run

# of torch 2.11, its compiler and NVIDIA's libraries on an H100; the long ones are cut
KERNELS = {
    "triton_tem_fused_flex_attention_0": "attention",
    "triton_tem_fused_flex_attention_backward_2": "attention",
    "void flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<64, cutlass::bfloat16_t": "attention",
    "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_3_64x64x128": "attention",
    "fmha_cutlassB_f32_aligned_64x64_k64_sm80(PyTorchMemEffAttention::AttentionBackwardKernel<": "attention",
    "nvjet_tst_192x192_64x3_2x1_v_bz_coopB_NTN": "matrix products",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64": "matrix products",
    "void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_128x128_16x5_nn_align4>": "matrix products",
    "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float": "matrix products",
    "_softmax_gradient_kernel": "cross-entropy",
    "triton_per_fused__to_copy_add_native_layer_norm_native_layer_norm_backward_view_6": "LayerNorm",
    "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float, false>": "LayerNorm",
    "void at::native::(anonymous namespace)::GammaBetaBackwardCUDAKernelTemplate<float, float": "LayerNorm",
    "triton_red_fused__to_copy_gelu_gelu_backward_sum_view_1": "GELU",
    "void at::native::vectorized_elementwise_kernel<4, at::native::GeluBackwardCUDAKernelImpl(": "GELU",
    "void at::native::(anonymous namespace)::compute_grad_weight<float, long>(long const*": "embedding gradient",
    "void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel<at_cuda_detail::cub::": "embedding gradient",
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor<": "AdamW and norms",
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::NormTwoOps<": "AdamW and norms",
    "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "sums over ranks",
    "Memcpy HtoD (Pinned -> Device)": "copies",
    "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(": "copies",
    "triton_poi_fused_add_view_6": "elementwise and sums",
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, func_wrapper_t<": "elementwise and sums",
    "a_kernel_of_next_year": OTHER,
}
OPERATIONS = {
    "aten::linear/aten::addmm": "matrix products",
    "_OutputLoss/aten::matmul/aten::mm": "matrix products",
    "_OutputLoss/aten::exp_": "cross-entropy",
    "autograd::engine::evaluate_function: BmmBackward0/BmmBackward0/aten::bmm": "attention",
    "aten::softmax/aten::_softmax": "attention",
    "aten::scaled_dot_product_attention/aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "autograd::engine::evaluate_function: NativeLayerNormBackward0/aten::add_": "LayerNorm",
    "autograd::engine::evaluate_function: AddmmBackward0/AddmmBackward0/aten::sum": "elementwise and sums",
    "aten::linear/aten::to/aten::_to_copy/aten::copy_": "copies",
    "aten::_fused_adamw_": "AdamW and norms",
}


@pytest.mark.parametrize(("name", "kind"), [*KERNELS.items(), *OPERATIONS.items()])
def test_a_name_says_what_kind_of_work_it_is(name: str, kind: str):
    assert kind_of(name) == kind


def test_time_is_busy_once_however_many_spans_cover_it():
    # 0 to 10 with another inside, 8 to 12 overlaps it, 20 to 21 stands alone
    assert busy_time([(20.0, 21.0), (0.0, 10.0), (8.0, 12.0), (3.0, 4.0)]) == 13.0
    assert busy_time([]) == 0.0


def test_the_shares_of_a_step_add_up_to_one_and_know_its_parts():
    steps = make_trainer().train(run())

    def three_steps() -> float:
        start = time.perf_counter()
        for _ in range(3):
            next(steps)
        return time.perf_counter() - start

    next(steps)
    shares = time_shares(three_steps, place("cpu", "fp32"))
    assert list(shares) == [*KINDS, OTHER, REST["cpu"]]
    assert sum(shares.values()) == pytest.approx(1)
    assert all(0 <= share < 1 for share in shares.values())
    assert shares["sums over ranks"] == 0
    parts = set(KINDS) - {"sums over ranks"}
    assert all(shares[kind] > 0 for kind in parts)
    assert shares[OTHER] < 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_most_of_a_gpus_time_has_a_known_kind():
    trainer = make_trainer(device="cuda")
    steps = trainer.train(run())

    def five_steps() -> float:
        start = time.perf_counter()
        for _ in range(5):
            next(steps)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    next(steps)
    torch.cuda.synchronize()
    shares = time_shares(five_steps, trainer.placement)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["matrix products"] > 0
    assert shares["AdamW and norms"] > 0
    assert shares[OTHER] < 0.1


def test_time_outside_torch_is_the_rest():
    def half_asleep() -> float:
        start = time.perf_counter()
        torch.ones(8, 8) @ torch.ones(8, 8)
        time.sleep(0.1)
        return time.perf_counter() - start

    assert time_shares(half_asleep, place("cpu", "fp32"))["outside torch"] > 0.5


def test_there_are_no_shares_if_the_profiler_recorded_nothing():
    assert time_shares(lambda: 1.0, place("cpu", "fp32")) == {}
