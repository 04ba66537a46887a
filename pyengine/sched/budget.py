"""How much a step may compute: a number of tokens, and beside running streams also a time.

A stream's next token comes with the next step, so a long prompt computed in one piece stalls all streams. With a target
for the time between tokens, prompts are cut so that the step is expected to meet it. Where nothing decodes nobody waits
for a token, and prompts get all the tokens a step may have. Cutting changes no token, only when it comes.

Prompts never starve: at least half of a step's time is theirs, however long the decodes alone take, and the first
prompt of a step gets at least MIN_CHUNK tokens. Where more of them wait than BACKLOG times the target would compute,
the target gives way to STRETCH times itself until hardly more wait than a step computes: longer steps compute a
prompt's token for less, and whoever waits is served before the next come.
"""

from __future__ import annotations

import math
from typing import Protocol

from pyengine.sched.cost_model import CostModel, StepWork
from pyengine.sched.step import StepInput

MIN_CHUNK = 32  # tokens; fewer are not worth the look at a prompt's blocks
FIRST_CHUNK = 256  # while no step's time is known
MARGIN = 0.02  # of the target, and as many standard deviations of the steps' scatter as one in a hundred exceeds:
DEVIATIONS = 2.33
BACKLOG, CAUGHT_UP = 3.5, 1.0  # targets of work
STRETCH = 2.5
DECODE_SHARE = 0.5  # of a step, where decodes alone would leave prompts less
OBSERVE_EVERY = 8  # steps of decodes only are much alike


class Budget:
    """What is left of a step; ``grant`` hands it out to prompts in the order of the calls."""

    def __init__(self, num_tokens: int):
        self._num_tokens = num_tokens

    @property
    def is_open(self) -> bool:
        """Whether the next ``grant`` gives something."""
        return self._num_tokens > 0

    def grant(self, num_wanted: int, num_before: int) -> int:
        """Tokens, of ``num_wanted``, for a prompt of which ``num_before`` are computed."""
        granted = min(num_wanted, self._num_tokens)
        self._num_tokens -= granted
        return granted


class _TimedBudget(Budget):
    """A budget that also closes when the expected time of the step's ``work`` reaches ``allowed_s``."""

    def __init__(self, num_tokens: int, allowed_s: float, work: StepWork, model: CostModel):
        super().__init__(num_tokens)
        self._allowed_s = allowed_s
        self._work = work
        self._model = model
        self._minimum = MIN_CHUNK

    def grant(self, num_wanted: int, num_before: int) -> int:
        most = min(num_wanted, self._num_tokens)
        granted = self._largest(min(self._minimum, most), most, num_before)
        self._work = self._work.with_prompt(granted, num_before)
        self._minimum = 1
        # Nobody begins with the crumbs of a step.
        full = granted < most or self._model.seconds(self._work.with_prompt(MIN_CHUNK, 0)) > self._allowed_s
        self._num_tokens = 0 if full else self._num_tokens - granted
        return granted

    def _largest(self, low: int, high: int, num_before: int) -> int:
        """The most tokens in [low, high] that keep to the time; ``low`` if none do. The time grows with the tokens."""
        if self._fits(high, num_before):
            return high
        while high - low > 1 + low // 64:
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(middle, num_before) else (low, middle)
        return low

    def _fits(self, num_new: int, num_before: int) -> bool:
        return self._model.seconds(self._work.with_prompt(num_new, num_before)) <= self._allowed_s


class StepPolicy(Protocol):
    """Decides the budget of each step; told how long steps took."""

    def budget(self, num_decodes: int, num_context: int, num_waiting: int) -> Budget:
        """For prompts, beside ``num_decodes`` decodes over ``num_context`` tokens in the cache.

        Args:
            num_waiting: tokens of prompts that are not computed yet.
        """
        ...

    def observe(self, step: StepInput, seconds: float) -> None: ...


class FixedBudget:
    """The same number of tokens in every step."""

    def __init__(self, max_num_tokens: int):
        self._max_num_tokens = max_num_tokens

    def budget(self, num_decodes: int, num_context: int, num_waiting: int) -> Budget:
        return Budget(self._max_num_tokens - num_decodes)

    def observe(self, step: StepInput, seconds: float) -> None:
        """``step`` took the device so long."""


class TimedBudget:
    """Prompts beside decodes get the time that the decodes leave of ``target_s``; infinity: all tokens, but ``model``
    learns.
    """

    def __init__(self, max_num_tokens: int, target_s: float, model: CostModel | None = None):
        self._max_num_tokens = max_num_tokens
        self._target_s = target_s
        self._num_skipped = 0
        self._catches_up = False
        self.model = model or CostModel()

    def budget(self, num_decodes: int, num_context: int, num_waiting: int) -> Budget:
        num_tokens = self._max_num_tokens - num_decodes
        if not num_decodes or self._target_s == math.inf:
            return Budget(num_tokens)
        if not self.model.num_observed:
            return Budget(min(num_tokens, FIRST_CHUNK))
        decodes = StepWork(num_decodes, num_context + num_decodes)
        decodes_s = self.model.seconds(decodes)
        waiting_s = self.model.seconds(decodes.with_prompt(num_waiting, 0)) - decodes_s
        self._catches_up = waiting_s > (CAUGHT_UP if self._catches_up else BACKLOG) * self._target_s
        target_s = STRETCH * self._target_s if self._catches_up else self._target_s
        aim_s = target_s / (1 + MARGIN + DEVIATIONS * self.model.scatter)
        return _TimedBudget(num_tokens, max(aim_s, decodes_s / DECODE_SHARE), decodes, self.model)

    def observe(self, step: StepInput, seconds: float) -> None:
        if step.reads:
            return  # its prompts took more than the computing of their KV
        if not len(step.prompt_ids):
            self._num_skipped += 1
            if self._num_skipped < OBSERVE_EVERY and self.model.num_observed >= OBSERVE_EVERY:
                return
            self._num_skipped = 0
        self.model.observe(StepWork.of(step), seconds)
