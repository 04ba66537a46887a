"""The gated product: accuracy, and the bits of linear followed by silu_mul, whichever kernel computes it."""

from __future__ import annotations

import pytest
import torch
from oracle import Poisoned, assert_accurate, same_bits

from pyengine import ops
from pyengine.ops import PackedWeight, reference

SHAPES = [(1, 8, 64), (1, 1536, 576), (3, 104, 96), (17, 56, 256), (64, 192, 576), (129, 72, 1536)]  # m, cols, k
ROWS = (1, 2, 7, 8, 9, 16, 33, 64, 65, 100, 128, 129, 150, 192, 193, 224, 255, 256, 257)
MOST_ROWS = 300


def problem(m, cols, k, device, dtype):
    x, weight = torch.randn(m, k).to(device, dtype), (2 * torch.randn(2 * cols, k) / k**0.5).to(device, dtype)
    return x, weight


def two_ops(x, packed):
    return ops.silu_mul(ops.linear(x, packed))


def call(x, packed):
    """The op between guards of NaN, and its scratch."""
    m, cols = x.shape[0], packed.n // 2
    out = Poisoned(torch.full((m, cols), torch.nan, dtype=x.dtype, device=x.device))
    gate_up = Poisoned(torch.full((m, packed.n), torch.nan, dtype=x.dtype, device=x.device))
    rows = Poisoned(x)
    ops._linear_silu_mul(out.view, rows.view, packed.data, gate_up.view)
    for guarded in (out, gate_up, rows):
        guarded.assert_guards_intact()
    return out.view, gate_up.view


@pytest.fixture(params=["chosen", "forced"])
def each_streaming(request, device):
    """The streaming kernel where it is chosen, then wherever it can compute at all."""
    if request.param == "forced" and device == "cpu":
        pytest.skip("nothing to force on the CPU")
    if request.param == "forced":
        ops.set_tuning("stream_rows", 256)
    yield request.param
    if request.param == "forced":
        ops.set_tuning("stream_rows", 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_reference(device, dtype, shape):
    x, weight = problem(*shape, device, dtype)
    actual = ops.linear_silu_mul(x, ops.pack_weight(weight))
    assert actual.dtype == dtype and actual.is_contiguous()
    truth = reference.linear_silu_mul(x.double(), PackedWeight(weight.double(), *weight.shape))
    gate, up = torch.nn.functional.linear(x, weight).chunk(2, dim=1)
    # What an error of a product's sum becomes: silu's slope is below 1.1, |silu(g)| at most |g|.
    gate_sum, up_sum = (x.double().abs() @ weight.double().abs().T).chunk(2, dim=1)
    summed = 1.1 * up.double().abs() * gate_sum + gate.double().abs() * up_sum
    assert_accurate(actual, truth, torch.nn.functional.silu(gate) * up, summed=summed)


@pytest.mark.parametrize(("cols", "k"), [(8, 64), (24, 576), (1000, 128), (1536, 576), (3072, 1024), (14336, 256)])
def test_bits_of_the_two_ops(device, dtype, cols, k, each_streaming):
    """At every number of rows, those of many rows, which no kernel for few has a part in: strided, one row of zeros."""
    x, weight = problem(MOST_ROWS, cols, k, device, dtype)
    x[5], x[6] = 0, 50 * x[6]  # gates that vanish and that let all through
    packed = ops.pack_weight(weight)
    many = two_ops(x, packed)
    assert not many.isnan().any()
    for m in ROWS:
        begin = min(m // 3, MOST_ROWS - m)
        out, _ = call(x[begin : begin + m], packed)
        assert same_bits(out, many[begin : begin + m]), f"{m} rows"
        assert same_bits(ops.linear_silu_mul(x[begin : begin + m], packed), out), f"{m} rows, contiguous"


@pytest.mark.usefixtures("each_streaming")
@pytest.mark.parametrize("device,dtype", [("cuda", "bfloat16"), ("cuda", "float16")], indirect=True)
@pytest.mark.parametrize(("cols", "k"), [(1000, 128), (1536, 576)])
def test_few_rows_of_whole_numbers(device, dtype, cols, k):
    """Sums that are exact in any order, so that the CPU can say what they are, without a library."""
    x, weight = (torch.randint(-2, 3, shape).double() for shape in ((256, k), (2 * cols, k)))
    x[5] = 0
    expected = ops.silu_mul((x @ weight.T + 0).to(device, dtype))
    x, packed = x.to(device, dtype), ops.pack_weight(weight.to(device, dtype))
    for m in ROWS[:-1]:
        assert same_bits(call(x[:m], packed)[0] + 0, expected[:m] + 0), f"{m} rows"  # + 0: zeros may be -0


@pytest.mark.parametrize("device,dtype", [("cuda", "bfloat16"), ("cuda", "float16")], indirect=True)
@pytest.mark.parametrize(("cols", "k"), [(1536, 576), (3072, 1024), (14336, 4096)])
def test_few_rows_take_one_kernel_on_hopper(device, dtype, cols, k):
    """It leaves the scratch alone: the layers of SmolLM2, Qwen3-0.6B and Llama 3.1 8B."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the streaming kernel is of sm_90a")
    x, weight = problem(MOST_ROWS, cols, k, device, dtype)
    packed = ops.pack_weight(weight)
    many = two_ops(x, packed)
    for m in (1, 32, 64, 100, 128, 144, 192, 224, 256):
        out, gate_up = call(x[:m], packed)
        assert gate_up.isnan().all(), f"{m} rows went through gate_up"
        assert same_bits(out, many[:m]), f"{m} rows"


@pytest.mark.parametrize("device,dtype", [("cuda", "bfloat16")], indirect=True)
def test_what_no_tile_fits_goes_by_two_ops(device, dtype, each_streaming):
    """k that is no multiple of a box, x whose rows begin at half a vector."""
    x, weight = problem(40, 64, 96, device, dtype)
    packed = ops.pack_weight(weight)
    assert same_bits(call(x, packed)[0], two_ops(x, packed))
    x, weight = problem(40, 64, 128, device, dtype)
    packed = ops.pack_weight(weight)
    shifted = torch.empty(40, 136, device=device, dtype=dtype)[:, 4:132]
    shifted.copy_(x)
    assert same_bits(ops.linear_silu_mul(shifted, packed), two_ops(shifted, packed))


def test_replayed_graph(device, dtype):
    """Captured in a chain with the kernels around it, as in a step: what it reads is what the one before it writes."""
    if device != "cuda":
        pytest.skip("recorded programs: test_recorder.py")
    x, weight = problem(48, 1536, 576, device, dtype)
    norm, packed = torch.ones(576, device=device, dtype=dtype), ops.pack_weight(weight)
    down = ops.pack_weight(torch.randn(576, 1536).to(device, dtype) / 40)

    def mlp(gated):
        hidden = ops.rms_norm(x, norm, 1e-5)
        for _ in range(4):
            hidden = ops.rms_norm(ops.linear(gated(hidden, packed), down), norm, 1e-5)
        return hidden

    mlp(ops.linear_silu_mul)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = mlp(ops.linear_silu_mul)
    for _ in range(5):
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert same_bits(captured, mlp(two_ops))


def test_no_rows(device, dtype):
    _, weight = problem(1, 16, 64, device, dtype)
    empty = torch.empty(0, 64, device=device, dtype=dtype)
    assert ops.linear_silu_mul(empty, ops.pack_weight(weight)).shape == (0, 16)
