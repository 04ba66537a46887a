"""Whether a block is copied back from the host or computed anew: whichever is expected to be faster."""

from __future__ import annotations

from pyengine.sched.cost_model import CostModel, StepWork

USUAL_WORK = StepWork(num_decodes=64, num_context=0, num_prompt_tokens=512)  # what it would be computed beside


class SwapChoice:
    """``copy_s``: measured seconds to copy a block of ``block_size`` tokens in. While ``model`` knows nothing, blocks
    are copied: on every machine measured so far that is many times faster.
    """

    def __init__(self, copy_s: float, block_size: int, model: CostModel):
        self._copy_s = copy_s
        self._block_size = block_size
        self._model = model

    def __call__(self, num_blocks: int, num_tokens_before: int) -> bool:
        if not self._model.num_observed:
            return True
        more = USUAL_WORK.with_prompt(num_blocks * self._block_size, num_tokens_before)
        return num_blocks * self._copy_s <= self._model.seconds(more) - self._model.seconds(USUAL_WORK)
