"""Whether a sequence got no token because its own request leaves none: lists, grammar, bad words and min_tokens that
exclude each other. Looked at only when no token came, which otherwise means that the model failed.
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
    return left <= _ends_of_bad_words(seq)


def _ends_of_bad_words(seq: Sequence) -> set[int]:
    """The tokens that would complete a bad word here."""
    output = tuple(seq.token_ids[seq.num_prompt_tokens :])
    words = seq.request.params.bad_words_token_ids
    return {word[-1] for word in words if word[:-1] == output[len(output) + 1 - len(word) :]}
