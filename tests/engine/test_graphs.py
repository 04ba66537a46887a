"""When a captured pass is made and which one a batch runs in; the capture itself is a stand-in that counts."""

from types import SimpleNamespace

import pytest
import torch

from pyengine.runner.graphs import GraphPass


class Device:
    """Runs and captures nothing; remembers the sizes, and how many passes were replayed."""

    def __init__(self, max_num_seqs: int):
        self.captured, self.replayed, self.eager = [], [], []
        self.passes = GraphPass(max_num_seqs, self._capture)

    def batch(self, size: int) -> SimpleNamespace:
        return SimpleNamespace(num_seqs=size)

    def forward(self, batch: SimpleNamespace) -> torch.Tensor:
        self.eager.append(batch.num_seqs)
        return torch.full((1,), batch.num_seqs)

    def start(self) -> int:
        return self.passes.capture_ahead(self.batch, self.forward)

    def step(self, num_seqs: int) -> int:
        size = self.passes.padded_size(num_seqs)
        assert size >= num_seqs
        assert self.passes.run(self.batch(size), self.forward).item() == size
        return size

    def _capture(self, batch, forward):
        self.captured.append(batch.num_seqs)
        graph = SimpleNamespace(replay=lambda: self.replayed.append(batch.num_seqs))
        return graph, torch.full((1,), batch.num_seqs)




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
    assert device.captured == device.eager == sizes[::-1]
    expected = [next(size for size in sizes if size >= n) for n in range(1, most + 1)]
    assert [device.step(n) for n in range(1, most + 1)] == expected
    assert device.replayed == expected and device.captured == sizes[::-1]


def test_without_a_start_a_size_is_captured_when_it_comes():
    device = Device(32)
    assert device.step(3) == 4 and device.captured == [4]
    assert device.step(3) == 4 and device.eager == [4] and device.replayed == [4]
