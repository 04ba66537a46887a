"""Paged attention against the reference, with NaN wherever nothing may be read, and its batch invariance bit by bit."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_accurate, same_bits
from paged import Heads, PagedCase, paged_case

from pyengine import ops
from pyengine.ops import AttentionMetadata, reference

BS = 16
RAGGED = [1, BS - 1, BS, BS + 1, 2 * BS + 3]
DECODES = [(1, n) for n in [*RAGGED, 255, 256, 257, 700]]
PREFILLS = [(n, n) for n in RAGGED]
CHUNKS = [(7, 20), (16, 300), (33, 280), (2, 2), (70, 513)]  # later chunks of a prompt
CASES = {
    "decodes": DECODES,
    "prefills": PREFILLS,
    "chunks": CHUNKS,
    "mixed": [*CHUNKS[:3], *DECODES[:5], *PREFILLS[:2]],
    "one": [(1, 1)],
}


def truth_and_plain(case: PagedCase, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The float64 result of the same inputs, and what plain torch makes of them in their own dtype."""
    live = case.num_queries
    truth = reference.paged_attention(
        case.q.double(), case.k_cache.double(), case.v_cache.double(), case.meta, case.scale, window
    )[:live]
    return truth, plain_attention(case, window)


def plain_attention(case: PagedCase, window: int) -> torch.Tensor:
    """Dense attention per sequence with every intermediate result in the tensors' dtype."""
    meta, rows = case.meta, []
    group = case.q.shape[1] // case.k_cache.shape[1]
    for s, seq_len in enumerate(meta.seq_lens.tolist()):
        begin, end = meta.query_start[s : s + 2].tolist()
        blocks = meta.block_tables[meta.table_rows[s]][: -(-seq_len // case.k_cache.shape[2])].long()
        k, v = (
            c[blocks].transpose(1, 2).flatten(0, 1)[:seq_len].repeat_interleave(group, 1)
            for c in (case.k_cache, case.v_cache)
        )
        scores = torch.einsum("qhd,khd->hqk", case.q[begin:end], k) * case.scale
        at, key = (
            torch.arange(seq_len - end + begin, seq_len, device=k.device)[:, None],
            torch.arange(seq_len, device=k.device),
        )
        hidden = (key > at) | ((key <= at - window) if window else False)
        rows.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v))
    return torch.cat(rows)


@pytest.mark.parametrize("lengths", CASES.values(), ids=CASES)
@pytest.mark.parametrize("heads", [Heads(4, 2, 64), Heads(8, 2, 128), Heads(3, 3, 64), Heads(9, 3, 64)], ids=str)
def test_against_reference(device, dtype, lengths, heads):
    case = paged_case(lengths, heads, dtype, device, num_padding=3)
    assert_accurate(case.attend(), *truth_and_plain(case, 0))


def test_many_decodes_and_a_long_one(device, dtype):
    """More work than a GPU has CTAs, which warps share, and a sequence that several of them share."""
    lengths = [(1, 3000), *((1, 1 + 37 * i % 400) for i in range(100))]
    case = paged_case(lengths, Heads(4, 2, 64), dtype, device, num_padding=3)
    assert_accurate(case.attend(), *truth_and_plain(case, 0))


@pytest.mark.parametrize("window", [1, 5, 16, 100, 300, 10_000])
def test_sliding_window(device, dtype, window):
    case = paged_case(CASES["mixed"], Heads(), dtype, device)
    assert_accurate(case.attend(window), *truth_and_plain(case, window))


@pytest.mark.parametrize("block_size", [32, 64, 256])
def test_block_sizes(device, dtype, block_size):
    case = paged_case(CASES["mixed"], Heads(), dtype, device, block_size)
    assert_accurate(case.attend(), *truth_and_plain(case, 0))


def test_large_scores_do_not_overflow(device, dtype):
    case = paged_case([(1, 300), (20, 40)], Heads(), dtype, device)
    case.q.mul_(100)
    assert_accurate(case.attend(), *truth_and_plain(case, 0))


def alone(case: PagedCase, s: int, first: int, last: int, device: str) -> PagedCase:
    """Queries [first, last) of sequence ``s`` as a step of its own; the cache is the same."""
    meta = case.meta
    begin, end = meta.query_start[s : s + 2].tolist()
    seq_len = int(meta.seq_lens[s]) - (end - begin) + last
    heads, head_dim = case.q.shape[1:]
    starts = torch.tensor([0, last - first], dtype=torch.int32, device=device)
    seq_lens = torch.tensor([seq_len], dtype=torch.int32, device=device)
    buffers = ops.make_attention_buffers(
        1, last - first, meta.max_seq_len, heads, case.k_cache.shape[1], head_dim, case.q.dtype, device
    )
    single = AttentionMetadata(
        meta.block_tables,
        meta.table_rows[s : s + 1].contiguous(),
        starts,
        seq_lens,
        last - first,
        meta.max_seq_len,
        *buffers,
    )
    return PagedCase(case.q[begin + first : begin + last], case.k_cache, case.v_cache, single, case.scale)


@pytest.mark.parametrize("window", [0, 40])
def test_sequence_does_not_depend_on_its_neighbours(device, dtype, window):
    lengths = CASES["mixed"]
    case = paged_case(lengths, Heads(9, 3, 64), dtype, device, num_padding=5)
    whole = case.attend(window)
    for s, (num_queries, _) in enumerate(lengths):
        begin = int(case.meta.query_start[s])
        assert same_bits(alone(case, s, 0, num_queries, device).attend(window), whole[begin : begin + num_queries]), (
            f"sequence {s}"
        )


@pytest.mark.parametrize("lengths", [(70, 70), (40, 300), (80, 560)], ids=str)
@pytest.mark.parametrize("window", [0, 50])
def test_row_does_not_depend_on_chunking(device, dtype, lengths, window):
    """A prompt cut into chunks of any size, down to one token (a decode), gives the same bits as whole."""
    num_queries, _ = lengths
    case = paged_case([lengths], Heads(8, 2, 64), dtype, device)
    whole = case.attend(window)
    for size in (1, 3, 16, 33):
        for first in range(0, num_queries, size):
            last = min(first + size, num_queries)
            assert same_bits(alone(case, 0, first, last, device).attend(window), whole[first:last]), (
                f"rows {first}..{last} of {size}"
            )


RAGGED_PROMPTS = [(33, 33), (64, 64), (65, 300), (130, 257), (129, 577)]  # beside the borders of 64 and 256 keys


@pytest.mark.parametrize("window", [0, 1, 90])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("group", [1, 3, 4])
def test_prompt_has_the_bits_of_short_steps(device, dtype, group, head_dim, window):
    """A prompt (on CUDA: whole CTAs, on sm_90a with wgmma) and its 8 tokens at a time (single warps, with mma.sync)."""
    case = paged_case(RAGGED_PROMPTS, Heads(2 * group, 2, head_dim), dtype, device)
    whole = case.attend(window)
    for s, (num_queries, seq_len) in enumerate(RAGGED_PROMPTS):
        begin = int(case.meta.query_start[s])
        for first in range(0, num_queries, 8):
            last = min(first + 8, num_queries)
            part = alone(case, s, first, last, device).attend(window)
            assert same_bits(part, whole[begin + first : begin + last]), f"rows {first}..{last} of {seq_len} keys"


def num_shared_rows(case: PagedCase) -> int:
    """Rows whose shared chunks the plan has computed together: the fifth word of its header (args.h)."""
    return int(case.meta.plan[:20].view(torch.int32)[4])


@pytest.mark.parametrize("heads", [Heads(8, 2, 128), Heads(9, 3, 64), Heads(4, 4, 96)], ids=str)
def test_sequences_that_share_blocks(device, dtype, heads):
    """Two families of sequences whose tables begin with the same blocks, beside others: every row has the bits that it
    has alone, whether the shared keys are read once or not."""
    families = [(1, 1300 + 37 * i) for i in range(40)], [(1 + i % 2, 1700 + 90 * i) for i in range(24)]
    case = paged_case([*families[0], (1, 900), (40, 1500), *families[1]], heads, dtype, device, num_padding=3)
    case.share_blocks(list(range(40)), 1280 // BS)
    case.share_blocks([41, *range(42, 66)], 1456 // BS)
    whole = case.attend()
    if device == "cuda":
        num_rows = (40 + 24 + 12) * heads.num_heads // heads.num_kv_heads
        assert num_shared_rows(case) == num_rows
    assert_accurate(whole, *truth_and_plain(case, 0))
    starts = case.meta.query_start.tolist()
    for s in (0, 1, 39, 40, 41, 42, 43, 65):
        part = alone(case, s, 0, starts[s + 1] - starts[s], device).attend()
        assert same_bits(part, whole[starts[s] : starts[s + 1]]), f"sequence {s}"


def test_threads_do_not_matter():
    case = paged_case(CASES["mixed"], Heads(), torch.bfloat16, "cpu")
    before, results = ops.num_threads(), []
    for n in (1, 2, 3):
        ops.set_num_threads(n)
        results.append(case.attend())
    ops.set_num_threads(before)
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])


def test_empty_sequences_are_padding(device, dtype):
    """A sequence without queries (seq_len 0) between live ones changes nothing."""
    case = paged_case([(3, 20), (0, 0), (1, 33), (0, 0)], Heads(), dtype, device)
    assert_accurate(case.attend(), *truth_and_plain_of_live(case))


def truth_and_plain_of_live(case: PagedCase) -> tuple[torch.Tensor, torch.Tensor]:
    live = [s for s, n in enumerate(case.meta.seq_lens.tolist()) if n]
    starts = case.meta.query_start.tolist()
    parts = [alone(case, s, 0, starts[s + 1] - starts[s], case.q.device.type) for s in live]
    truths, plains = zip(*(truth_and_plain(part, 0) for part in parts), strict=True)
    return torch.cat(truths), torch.cat(plains)
