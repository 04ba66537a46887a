"""Two hundred and fifty-six requests as different as they can be, run through an engine with everything they leave
behind: tokens, log-probabilities to the bit, reasons to finish.

Log-probabilities are what makes the comparison sharp. A flipped bit somewhere in a pass changes few tokens, however
close the logits are, but nearly every float32 log-probability of that row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from pyengine.engine import Engine
from pyengine.protocol import Request, TokenLogprob
from pyengine.sampling_params import SamplingParams

NUM_REQUESTS = 256
LONGEST = 1950
MOST_OUTPUT = 96
EDGES = (1, 2, 15, 16, 17, 255, 256, 257, 511, 512, 513, 1024, 1949, LONGEST)  # of blocks and chunks of attention
SHARED = (48, 257, 800, 1900)  # lengths of the prefixes that some share
NUM_ALONE = 24
CLOSE = 0.05  # nats between the likeliest two; bfloat16 rounds the hidden states of logits of 10 to about as much

Job = tuple[list[int], SamplingParams]


@dataclass
class Outcome:
    """What one sequence said."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None


Outcomes = dict[tuple[str, int], Outcome]


def make_jobs(vocab_size: int) -> dict[str, Job]:
    """The requests by name. Each kind of parameters meets each kind of prompt, since their numbers share no divisor."""
    rng = np.random.default_rng(2026)
    prefixes = [rng.integers(0, vocab_size, length).tolist() for length in SHARED]
    lengths = [*EDGES, *np.exp(rng.uniform(0, np.log(LONGEST), NUM_REQUESTS - len(EDGES))).astype(int)]
    kinds = _kinds(vocab_size)
    jobs = {}
    for i, length in enumerate(int(length) for length in lengths):
        prefix = prefixes[i % 7] if i % 7 < len(prefixes) else []
        prompt = (prefix + rng.integers(0, vocab_size, length).tolist())[: max(length, 1)]
        options = {"temperature": 0.0, "ignore_eos": True, "seed": i, **kinds[i % len(kinds)]}
        jobs[f"r{i}"] = (prompt, SamplingParams(max_tokens=8 + i * 7 % (MOST_OUTPUT - 7), **options))
    return jobs


def _kinds(vocab_size: int) -> list[dict]:
    """Parameters, eleven kinds: greedy and seeded, plain and through every stage of the sampler."""
    some = tuple(range(5, vocab_size, 3))[: 1 << 16]
    sampled = {"temperature": 0.9}
    stops = tuple(range(0, vocab_size, vocab_size // 90))
    return [
        {"logprobs": 3},
        {},
        {**sampled, "top_p": 0.95, "top_k": 50},
        {**sampled, "logprobs": 0},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.4, "logprobs": 5},
        {**sampled, "min_p": 0.02, "presence_penalty": 0.8},
        {**sampled, "n": 2, "logprobs": 1},
        {"allowed_token_ids": some, "logit_bias": {some[0]: 1.5, some[1]: -3.0}, "logprobs": 2},
        {"bad_words_token_ids": tuple((i, j) for i in range(40) for j in range(0, 40, 7)), "logprobs": 0},
        {**sampled, "temperature": 1.3, "ignore_eos": False, "stop_token_ids": stops},
        {"prompt_logprobs": 2, "logprobs": 1},
    ]  # fmt: skip


def run(engine: Engine, jobs: Mapping[str, Job]) -> Outcomes:
    """All jobs at once, to the end. Afterwards the engine must hold nothing."""
    outcomes = {(name, i): Outcome() for name, (_, params) in jobs.items() for i in range(params.n)}
    for name, (prompt, params) in jobs.items():
        engine.add(Request(name, prompt, params))
    while engine.has_work:
        for delta in engine.step():
            assert delta.error is None, delta.error
            outcome = outcomes[delta.request_id, delta.index]
            outcome.token_ids += delta.token_ids
            outcome.logprobs += delta.logprobs or []
            outcome.prompt_logprobs += delta.prompt_logprobs or []
            outcome.finish_reason = delta.finish_reason or outcome.finish_reason
    engine.scheduler.check_integrity()
    pool = engine.scheduler.blocks.pool
    assert pool.num_free == pool.num_blocks
    return outcomes


def alone_sample(jobs: Mapping[str, Job]) -> list[str]:
    """Names of the jobs that are also run by themselves: spread over all kinds and lengths."""
    names = list(jobs)
    return [names[i * 11 % len(names)] for i in range(NUM_ALONE)]


def different(actual: Outcomes, expected: Outcomes, names: Iterable[str] | None = None) -> list[str]:
    """A line for each sequence of ``names`` (None: of all) that is not the same to the bit, the first places named."""
    wanted = None if names is None else set(names)
    lines = []
    for key, truth in expected.items():
        if (wanted is None or key[0] in wanted) and actual[key] != truth:
            lines.append(f"{key}: {_first_difference(actual[key], truth)}")
    return lines


def _first_difference(actual: Outcome, truth: Outcome) -> str:
    for what in ("prompt_logprobs", "token_ids", "logprobs"):
        ours, theirs = getattr(actual, what), getattr(truth, what)
        if ours != theirs:
            place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), "length")
            shown = (ours[place], theirs[place]) if isinstance(place, int) else (len(ours), len(theirs))
            return f"{what} at {place}: {shown[0]}, expected {shown[1]}"
    return f"finish_reason {actual.finish_reason}, expected {truth.finish_reason}"


def close_calls(outcomes: Outcomes) -> tuple[int, int]:
    """Of the draws whose runner-up is known, how many had it within ``CLOSE`` nats of the likeliest."""
    gaps = [
        logprob.top_logprobs[0] - logprob.top_logprobs[1]
        for outcome in outcomes.values()
        for logprob in outcome.logprobs
        if len(logprob.top_logprobs) > 1
    ]
    return sum(gap < CLOSE for gap in gaps), len(gaps)
