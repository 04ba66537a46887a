"""Packed weights, linear and embedding: accuracy, edges of the layout, bits independent of batch, place and threads."""

from __future__ import annotations

import pytest
import torch
from oracle import Poisoned, assert_accurate, same_bits

from pyengine import ops
from pyengine.ops import PackedWeight, reference

SHAPES = [(1, 16, 64), (1, 576, 576), (3, 100, 96), (17, 50, 256), (64, 192, 576), (129, 31, 1536)]  # m, n, k


def plain_linear(x, weight, bias=None, out_dtype=None):
    return torch.nn.functional.linear(x, weight, bias).to(out_dtype or x.dtype)


def problem(m, n, k, device, dtype):
    x, weight = torch.randn(m, k).to(device, dtype), (torch.randn(n, k) / k**0.5).to(device, dtype)
    return x, weight, torch.randn(n).to(device, dtype)


@pytest.fixture(params=["own", "avx2"])
def each_isa(request, device):
    """The machine's own instruction set, then AVX2, which every x86-64 of today has."""
    if request.param == "own":
        yield
        return
    own = ops.isa()
    if device != "cpu" or own == request.param:
        pytest.skip("already covered by the machine's own instruction set")
    ops.set_isa(request.param)
    yield
    ops.set_isa(own)


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("has_bias", "f32_out"), [(False, False), (True, False), (False, True)])
def test_linear(device, dtype, shape, has_bias, f32_out):
    x, weight, bias = problem(*shape, device, dtype)
    bias = bias if has_bias else None
    out_dtype = torch.float32 if f32_out else None
    actual = ops.linear(x, ops.pack_weight(weight), bias, out_dtype)
    assert actual.dtype == (out_dtype or dtype) and actual.is_contiguous()
    truth = reference.linear(
        x.double(), PackedWeight(weight.double(), *weight.shape), None if bias is None else bias.double()
    )
    assert_accurate(actual, truth, plain_linear(x, weight, bias), summed=x.double().abs() @ weight.double().abs().T)


def test_linear_strided_input(device, dtype):
    x, weight, bias = problem(6, 80, 128, device, dtype)
    packed, poisoned = ops.pack_weight(weight), Poisoned(x)
    assert same_bits(ops.linear(poisoned.view, packed, bias), ops.linear(x, packed, bias))


def test_linear_into_the_rows_of_a_buffer(device, dtype):
    x, weight, _ = problem(6, 80, 128, device, dtype)
    packed, buffer = ops.pack_weight(weight), torch.full((8, 80), 7.0, device=device)
    out = ops.linear(x, packed, out_dtype=torch.float32, out=buffer[:6])
    assert out.data_ptr() == buffer.data_ptr() and (buffer[6:] == 7).all()
    assert same_bits(buffer[:6], ops.linear(x, packed, out_dtype=torch.float32))


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize(("n", "k"), [(576, 576), (192, 1536), (40, 64)])
def test_row_does_not_depend_on_the_batch(device, dtype, n, k):
    """Row r alone, in batches of every size and at every place, to the bit."""
    x, weight, bias = problem(160, n, k, device, dtype)
    packed = ops.pack_weight(weight)
    alone = torch.cat([ops.linear(x[r : r + 1], packed, bias) for r in range(x.shape[0])])
    for begin, end in [(0, 2), (0, 3), (1, 5), (2, 10), (5, 20), (0, 16), (7, 39), (0, 64), (30, 100), (0, 160)]:
        assert same_bits(ops.linear(x[begin:end], packed, bias), alone[begin:end]), f"rows {begin}..{end}"


# each class, the edges of its padding and of the warpgroups
ROWS_OF_STREAM = (1, 7, 8, 9, 16, 33, 64, 65, 100, 128, 129, 150, 192, 193, 200, 255, 256)


@pytest.fixture(params=["chosen", "forced"])
def each_streaming(request, device):
    """The streaming kernel where it is chosen, then wherever it can compute at all. (`device` first: it may skip.)"""
    if request.param == "forced":
        ops.set_tuning("stream_rows", 256)
    yield
    if request.param == "forced":
        ops.set_tuning("stream_rows", 0)


@pytest.mark.usefixtures("each_streaming")
@pytest.mark.parametrize("device,dtype", [("cuda", "bfloat16"), ("cuda", "float16")], indirect=True)
@pytest.mark.parametrize(("has_bias", "f32_out"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize(
    ("n", "k"), [(8, 64), (1000, 64), (1000, 576), (576, 1536), (4096, 1024), (6152, 512), (1000, 4096), (40000, 128)]
)
def test_few_rows_have_the_bits_of_many(device, dtype, n, k, has_bias, f32_out):
    """On Hopper up to 256 rows may be computed by another kernel than more: strided rows, one of zeros, guarded."""
    x, weight, bias = problem(300, n, k, device, dtype)
    x[5] = 0
    packed, bias = ops.pack_weight(weight), bias if has_bias else None
    many = ops.linear(x, packed, bias, torch.float32 if f32_out else None)
    for m in ROWS_OF_STREAM:
        begin = min(m // 3, 300 - m)
        rows, out = Poisoned(x[begin : begin + m]), Poisoned(torch.full_like(many[:m], torch.nan))
        ops._linear(out.view, rows.view, packed.data, bias, None)
        assert same_bits(out.view, many[begin : begin + m]), f"{m} rows"
        out.assert_guards_intact()


@pytest.mark.usefixtures("each_streaming")
@pytest.mark.parametrize("device,dtype", [("cuda", "bfloat16"), ("cuda", "float16")], indirect=True)
@pytest.mark.parametrize(("has_bias", "f32_out"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize(("n", "k"), [(1000, 576), (6152, 512), (40000, 128)])
def test_few_rows_of_whole_numbers(device, dtype, n, k, has_bias, f32_out):
    """Sums that are exact in any order, so that the CPU can say what they are, to the bit and without a library."""
    x, weight, bias = (torch.randint(-2, 3, shape).double() for shape in ((256, k), (n, k), (n,)))
    out_dtype = torch.float32 if f32_out else dtype
    expected = (x @ weight.T + (bias if has_bias else 0)).to(out_dtype).to(device)
    x, packed = x.to(device, dtype), ops.pack_weight(weight.to(device, dtype))
    bias = bias.to(device, dtype) if has_bias else None
    for m in ROWS_OF_STREAM:
        rows, out = Poisoned(x[-m:]), Poisoned(torch.full_like(expected[-m:], torch.nan))
        ops._linear(out.view, rows.view, packed.data, bias, None)
        assert same_bits(out.view + 0, expected[-m:] + 0), f"{m} rows"  # + 0: a sum of zeros may be -0
        out.assert_guards_intact()


def test_result_does_not_depend_on_threads():
    x, weight, bias = problem(13, 200, 576, "cpu", torch.bfloat16)
    packed, before = ops.pack_weight(weight), ops.num_threads()
    results = []
    for n in (1, 2, 3):
        ops.set_num_threads(n)
        assert ops.num_threads() == n
        results.append(ops.linear(x, packed, bias))
    ops.set_num_threads(before)
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])


def test_pack_rows_builds_a_fused_weight(device, dtype):
    _, weight, _ = problem(1, 96, 64, device, dtype)
    fused = ops.empty_packed_weight(96, 64, dtype, device)
    for begin, end in ((0, 48), (64, 96), (48, 64)):
        ops.pack_rows(fused, begin, weight[begin:end])
    assert (fused.n, fused.k, fused.dtype, fused.device.type) == (96, 64, dtype, device)
    assert same_bits(fused.data, ops.pack_weight(weight).data)


def test_pack_rows_of_a_ragged_tail(device, dtype):
    _, weight, _ = problem(1, 50, 64, device, dtype)
    fused = ops.empty_packed_weight(50, 64, dtype, device)
    ops.pack_rows(fused, 0, weight[:32])
    ops.pack_rows(fused, 32, weight[32:])
    x = torch.randn(2, 64).to(device, dtype)
    assert same_bits(ops.linear(x, fused), ops.linear(x, ops.pack_weight(weight)))


def test_pack_rows_refuses_what_does_not_fit():
    packed = ops.empty_packed_weight(48, 64, torch.bfloat16, "cpu")
    rows = torch.randn(16, 64, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="row_offset must be a multiple of 16"):
        ops.pack_rows(packed, 8, rows)
    with pytest.raises(RuntimeError, match=r"rows \[48, 64\) do not fit into n=48"):
        ops.pack_rows(packed, 48, rows)


def test_cuda_weight_is_kept_as_it_is(device, dtype):
    weight = torch.randn(32, 64).to(device, dtype)
    assert (ops.pack_weight(weight).data.data_ptr() == weight.data_ptr()) == (device == "cuda")


def test_embedding(device, dtype):
    weight = torch.randn(50, 64).to(device, dtype)
    ids = torch.tensor([0, 49, 7, 7, 15, 16, 31, 32, -1, 50, 2**31 - 1, -(2**31)], dtype=torch.int32, device=device)
    actual = ops.embedding(ids, ops.pack_weight(weight))
    assert same_bits(actual, reference.embedding(ids, reference.pack_weight(weight)))
    assert (actual[8:] == 0).all()


def test_no_rows(device, dtype):
    packed = ops.pack_weight(torch.randn(32, 64).to(device, dtype))
    assert ops.linear(torch.empty(0, 64, device=device, dtype=dtype), packed).shape == (0, 32)
    assert ops.embedding(torch.empty(0, device=device, dtype=torch.int32), packed).shape == (0, 64)
