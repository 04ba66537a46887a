"""What a step costs, learnt from the steps that ran: seconds as a sum of what the step does.

    seconds = w0 + w1 * decodes + w2 * prompt tokens + w3 * context tokens + w4 * (prompt token, earlier token) pairs
              + w5 * (tokens beyond 64) + w6 * (tokens beyond 256)

No weight is negative. The last two bend the line: few tokens cost the time in which the weights are read, whatever
their number, many cost arithmetic, and where the one turns into the other depends on the device. Where the dense
layers' products were measured before the start (``TokenCurve``), these stand in the place of the two: on a GPU they are
a staircase, one tile of rows after another. The weights come from least squares with forgetting; errors count relative
to the step's time, so that short steps are fitted as well as long ones.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pyengine.sched.step import StepInput

BENDS = (64, 256)
# Features are divided by these, a typical large value of each, so that all weights are of the size of a step's time.
SCALES = (1.0, 128.0, 1024.0, 65536.0, 4e6)
BEND_SCALES = (1024.0, 1024.0)
FORGETTING = 0.98  # an observation counts half after 34 others
NOISE = 0.05  # of a step's time
LEAST_SHARE = 1e-3  # of the longest step: a shorter one is fitted as well as one of that, which keeps the sums solvable
ODD = 3.0  # times longer than expected: a graph was captured, the machine was busy; believed when it repeats
NUM_ODD = 3
NUM_SETTLED = 8  # observations before anything is found odd
DRAW = 1.0
SOLVABLE = 1e-12  # of the matrix's trace, thousands of times what its sums may be wrong by
MAX_ERROR = 0.3  # more is a change rather than scatter
LEAST_S = 1e-9  # of any step: errors are relative, and the fit may say 0


@dataclass(frozen=True, slots=True)
class StepWork:
    """The numbers that a step's time is made of, but for the constant.

    Attributes:
        num_pairs: for each prompt token of the step the tokens before it, added up: the attention's work.
        num_context: tokens of all sequences in the cache, those of this step included: what the attention reads.
    """

    num_decodes: int
    num_context: int
    num_prompt_tokens: int = 0
    num_pairs: float = 0.0

    @classmethod
    def of(cls, step: StepInput) -> StepWork:
        new, computed = step.num_new_tokens, step.num_computed_tokens
        num_context = int(computed.sum() + new.sum())
        if not len(step.prompt_ids):
            return cls(len(new), num_context)
        prompts = step.prompt_offsets >= 0
        n, before = new[prompts].astype(float), computed[prompts]
        return cls(len(new) - len(n), num_context, int(n.sum()), float((n * (before + n / 2)).sum()))

    def with_prompt(self, num_new: int, num_before: int) -> StepWork:
        """With ``num_new`` tokens of a prompt of which ``num_before`` are computed."""
        return StepWork(
            self.num_decodes,
            self.num_context + num_before + num_new,
            self.num_prompt_tokens + num_new,
            self.num_pairs + num_new * (num_before + num_new / 2),
        )

    @property
    def num_tokens(self) -> int:
        return self.num_decodes + self.num_prompt_tokens

    def features(self) -> list[float]:
        values = (1.0, self.num_decodes, self.num_prompt_tokens, self.num_context, self.num_pairs)
        return [value / scale for value, scale in zip(values, SCALES, strict=True)]


class TokenCurve:
    """Seconds of all products of a step with so many tokens, from measurements at some numbers of tokens.

    Up to 1,024 tokens a number costs what the next larger measured one does, since a product computes whole tiles; from
    there on the times are joined by lines, and the last line goes on. It never falls.

    Args:
        measured: (tokens, seconds), at least two.
    """

    STEPS_TO = 1024

    def __init__(self, measured: Sequence[tuple[int, float]]) -> None:
        measured = sorted(measured)
        self._sizes = [size for size, _ in measured]
        self._seconds = np.maximum.accumulate([seconds for _, seconds in measured]).tolist()
        self.scale = self._seconds[-1]

    def __call__(self, num_tokens: int) -> float:
        index = bisect_left(self._sizes, num_tokens)
        if index < len(self._sizes) and (self._sizes[index] <= self.STEPS_TO or index == 0):
            return self._seconds[index]
        index = min(max(index, 1), len(self._sizes) - 1)
        (low, high), (less, more) = self._sizes[index - 1 : index + 1], self._seconds[index - 1 : index + 1]
        return less + (more - less) * (num_tokens - low) / (high - low)


class CostModel:
    """Learns by ``observe``; ``seconds`` says what it believes. Knows nothing at first but ``curve``, if there is one.

    Kept are the normal equations, which stay well-behaved however long they fade; the solution is drawn to the last
    one, so that what is not observed for long is remembered. Nothing costs less than no time.
    """

    def __init__(self, curve: TokenCurve | None = None) -> None:
        self.num_observed = 0
        self._curve = curve
        size = len(self._features(StepWork(0, 0)))
        self._weights = [0.0] * size
        self._matrix = np.zeros((size, size))
        self._vector = np.zeros(size)
        self._longest_s = 0.0  # of the steps that still count
        self._num_odd = 0
        self._variance = 0.0  # of the relative error

    @property
    def scatter(self) -> float:
        """Standard deviation of a step's time, relative to what was expected."""
        return math.sqrt(self._variance)

    def seconds(self, work: StepWork) -> float:
        return sum(weight * value for weight, value in zip(self._weights, self._features(work), strict=True))

    def observe(self, work: StepWork, seconds: float) -> None:
        seconds, expected = max(seconds, LEAST_S), max(self.seconds(work), LEAST_S)
        if self._is_odd(expected, seconds):
            return
        if self.num_observed >= NUM_SETTLED:
            self._variance += (1 - FORGETTING) * (min(abs(seconds / expected - 1), MAX_ERROR) ** 2 - self._variance)
        features = np.asarray(self._features(work))
        self.num_observed += 1
        self._longest_s = max(seconds, math.sqrt(FORGETTING) * self._longest_s)
        weight = (NOISE * max(seconds, LEAST_SHARE * self._longest_s)) ** -2
        self._matrix = FORGETTING * self._matrix + weight * np.outer(features, features)
        self._vector = FORGETTING * self._vector + weight * seconds * features
        # Weak beside any single observation, strong enough that there is a solution.
        draw = max(DRAW / self._longest_s**2, SOLVABLE * self._matrix.trace())
        vector = self._vector + draw * np.asarray(self._weights)
        self._weights = _solve_nonnegative(self._matrix + draw * np.eye(len(vector)), vector).tolist()

    def _features(self, work: StepWork) -> list[float]:
        if self._curve is not None:
            return [*work.features(), self._curve(work.num_tokens) / self._curve.scale]
        bends = (max(work.num_tokens - bend, 0) for bend in BENDS)
        return [*work.features(), *(value / scale for value, scale in zip(bends, BEND_SCALES, strict=True))]

    def _is_odd(self, expected: float, seconds: float) -> bool:
        """A step far beyond expectation teaches nothing, unless the next ones are like it: then all is learnt anew."""
        if seconds < ODD * expected or self.num_observed < NUM_SETTLED:
            self._num_odd = 0
            return False
        self._num_odd += 1
        if self._num_odd < NUM_ODD:
            return True
        self._num_odd = 0
        self._matrix, self._vector, self._longest_s = self._matrix * 0, self._vector * 0, 0.0
        return False


def _solve_nonnegative(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """The solution of matrix @ x = vector with those unknowns left out that would be negative."""
    free = np.ones(len(vector), bool)
    solution = np.zeros(len(vector))
    while free.any():
        solution[:] = 0
        solution[free] = np.linalg.solve(matrix[np.ix_(free, free)], vector[free])
        if (solution >= 0).all():
            break
        free &= solution > 0
    return solution
