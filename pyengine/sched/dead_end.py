"""Whether a sequence got no token because its own request leaves none: lists, grammar and min_tokens that exclude each
other. Looked at only when no token came, which otherwise means that the model failed.
"""

from __future__ import annotations

from pyengine.sched.sequence import Sequence


def is_dead_end(seq: Sequence) -> bool:
    """No token may follow what ``seq`` has so far."""
    params = seq.request.params
    left = None if params.allowed_token_ids is None else set(params.allowed_token_ids)
    if seq.grammar is not None:
        by_grammar = seq.grammar.allowed_ids()
        left = by_grammar if left is None else left & by_grammar
    if left is None:
        return False
    if seq.num_output_tokens < params.min_tokens:
        left = left - seq.stop_token_ids
    return not left
