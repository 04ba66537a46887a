"""When a captured pass is made and which one a batch runs in; the capture itself is a stand-in that counts."""

from types import SimpleNamespace

import pytest
import torch

from pyengine.runner.device_state import PassSize
from pyengine.runner.graphs import GraphPass

MIXED = [16, 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 512]


class Device:
    """Runs and captures nothing; remembers the sizes, and which passes were replayed."""

    def __init__(self, max_num_seqs: int, max_num_tokens: int = 4):
        self.captured, self.replayed, self.eager = [], [], []
        self.passes = GraphPass(max_num_seqs, max_num_tokens, self._capture)

    def batch(self, size: PassSize) -> SimpleNamespace:
        return SimpleNamespace(size=size)

    def forward(self, batch: SimpleNamespace) -> torch.Tensor:
        self.eager.append(batch.size)
        return torch.full((1,), batch.size.num_tokens)

    def start(self) -> int:
        return self.passes.capture_ahead(self.batch, self.forward)

    def step(self, num_seqs: int, num_tokens: int | None = None) -> PassSize:
        wanted = PassSize(num_seqs, num_tokens or num_seqs, decodes=num_tokens is None)
        size = self.passes.padded_size(wanted)
        assert size.num_seqs >= num_seqs and size.num_tokens >= wanted.num_tokens and size.decodes == wanted.decodes
        assert self.passes.run(self.batch(size), self.forward).item() == size.num_tokens
        return size

    def _capture(self, batch, forward):
        self.captured.append(batch.size)
        graph = SimpleNamespace(replay=lambda: self.replayed.append(batch.size))
        return graph, torch.full((1,), batch.size.num_tokens)


def decodes(sizes: list[int]) -> list[PassSize]:
    return [PassSize(size, size, decodes=True) for size in sizes]


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (1, [1]),
        (3, [1, 2, 3]),
        (17, [1, 2, 4, 8, 16, 17]),
        (100, [1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 100]),
        (150, [1, 2, 4, 8, *range(16, 145, 16), 150]),
        (230, [1, 2, 4, 8, *range(16, 225, 16), 230]),
        (256, [1, 2, 4, 8, *range(16, 225, 16), 256]),
        (300, [1, 2, 4, 8, *range(16, 225, 16), 256, 300]),
    ],
)
def test_every_size_is_captured_before_the_start_and_every_batch_takes_the_next_larger_one(most, sizes):
    device = Device(most)
    assert device.start() == len(sizes)
    assert device.captured == device.eager == decodes(sizes[::-1])
    expected = decodes([next(size for size in sizes if size >= n) for n in range(1, most + 1)])
    assert [device.step(n) for n in range(1, most + 1)] == expected
    assert device.replayed == expected and device.captured == decodes(sizes[::-1])


def test_without_a_start_a_size_is_captured_when_it_comes():
    device = Device(32)
    [four] = decodes([4])
    assert device.step(3) == four and device.captured == [four]
    assert device.step(3) == four and device.eager == [four] and device.replayed == [four]


def test_small_steps_with_prompts_are_captured_and_large_ones_run_as_they_are():
    device = Device(64, 8192)
    num_decodes = len([1, 2, 4, 8, 16, 32, 48, 64])
    assert device.start() == num_decodes + len(MIXED)
    assert device.captured[0] == PassSize(64, 512, decodes=False), "the largest first"
    device.eager.clear()
    for num_seqs, num_tokens, padded in ((1, 2, 16), (40, 300, 320), (15, 16, 16), (63, 64, 64), (1, 512, 512)):
        assert device.step(num_seqs, num_tokens) == PassSize(min(padded, 64), padded, decodes=False)
    assert not device.eager and len(device.replayed) == 5
    assert device.step(9, 513) == PassSize(9, 513, decodes=False)
    assert device.eager == [PassSize(9, 513, decodes=False)] and len(device.captured) == num_decodes + len(MIXED)


def test_as_many_tokens_as_sequences_with_and_without_prompts_are_two_passes():
    device = Device(64, 8192)
    device.start()
    assert device.step(64) != device.step(63, 64)
    assert [size.decodes for size in device.replayed] == [True, False]


def test_no_size_exceeds_what_a_step_may_have():
    device = Device(8, 100)
    device.start()
    assert max(size.num_tokens for size in device.captured) == 96
    assert device.step(3, 97) == PassSize(3, 97, decodes=False) and device.eager[-1].num_tokens == 97


def test_sizes_that_a_larger_one_beats_are_left_out():
    """As on an H200, where 224 rows take longer than 256; 96 are slower by too little to be sure."""
    device = Device(256, 512)
    times = {16: 3.70, 32: 3.71, 64: 3.79, 96: 4.40, 128: 4.33, 160: 4.78, 192: 4.95, 224: 5.96, 256: 5.68, 320: 7.23}
    device.passes.prefer([(size, ms / 1000) for size, ms in reversed(times.items())])
    device.start()
    assert device.step(193) == device.step(224) == PassSize(256, 256, decodes=True)
    assert device.step(192) == PassSize(192, 192, decodes=True) and device.step(90) == PassSize(96, 96, decodes=True)
    assert device.step(3, 200).num_tokens == 256 and device.step(3, 300).num_tokens == 320
    assert not {size.num_tokens for size in device.captured} & {208, 224} and len(device.replayed) == 6


def test_what_is_measured_beyond_the_largest_graph_is_no_size():
    device = Device(100, 200)
    device.passes.prefer([(96, 0.009), (128, 0.002), (192, 0.009), (256, 0.001)])
    device.start()
    assert device.step(90).num_seqs == 100 and device.step(2, 180).num_tokens == 192


def test_scatter_of_small_models_moves_nothing():
    device = Device(256, 512)
    device.passes.prefer([(16, 0.00030), (64, 0.00025), (256, 0.00021)])
    assert device.step(9).num_seqs == 16 and device.step(60).num_seqs == 64
