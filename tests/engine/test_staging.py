"""What a step sends arrives whole, in one copy, whatever was sent before it."""

from __future__ import annotations

import numpy as np
import torch

from pyengine.runner.staging import RING, Staging


def test_slots_and_arrays_arrive_step_after_step(backend):
    staging = Staging(torch.device(backend), capacity=200)
    slots = [staging.slot(10), staging.slot(7)]
    rng = np.random.default_rng(0)
    for step in range(4 * RING):
        staging.begin()
        early = rng.integers(0, 1000, 3).astype(np.int32)  # before the slots are written, as block copies are
        early_tensor = staging.upload(early)
        arrays = [rng.integers(0, 1000, n) for n in (0, 5, 60, 80, 300)]  # the last ones do not fit
        arrays = [
            a.astype(t) for a, t in zip(arrays, (np.int32, np.float32, np.int64, np.int32, np.int32), strict=True)
        ]
        values = [rng.integers(0, 9, size).astype(np.int32) for size in (step % 10, 7)]
        views = [slot.write(v, slot.device.numel(), -1) for slot, v in zip(slots, values, strict=True)]
        tensors = [staging.put(array) for array in arrays]
        staging.flush()
        late = rng.random((2, 3)).astype(np.float32)
        late_tensor = staging.upload(late)
        for tensor, array in zip([early_tensor, *tensors, late_tensor], [early, *arrays, late], strict=True):
            assert np.array_equal(tensor.cpu().numpy(), array) and tensor.cpu().numpy().dtype == array.dtype
        for view, value in zip(views, values, strict=True):
            assert view.tolist() == [*value.tolist(), *[-1] * (len(view) - len(value))]
        assert [view.data_ptr() for view in views] == [slot.device.data_ptr() for slot in slots]


def test_a_step_of_decodes_is_one_copy(make_engine, monkeypatch):
    from engine_helpers import generate

    from pyengine.sampling_params import SamplingParams

    flushes = []
    monkeypatch.setattr(Staging, "flush", lambda self, flush=Staging.flush: flushes.append(1) or flush(self))
    engine = make_engine()
    params = SamplingParams(temperature=0.8, top_k=40, top_p=0.9, max_tokens=30, ignore_eos=True, seed=1)
    flushes.clear()
    generate(engine, {f"r{i}": ([i, 1, 2], params) for i in range(4)})
    assert len(flushes) == engine.stats().num_steps + 1, "more than the parameters of the new rows and one per step"
