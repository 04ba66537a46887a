"""Which sequences cannot get a token because of what their own request excludes."""

from __future__ import annotations

import pytest

from pyengine.protocol import Request
from pyengine.sampling_params import SamplingParams
from pyengine.sched.dead_end import is_dead_end
from pyengine.sched.sequence import Sequence


class Only:
    """A grammar that allows these tokens."""

    def __init__(self, *token_ids: int):
        self._token_ids = set(token_ids)

    def allowed_ids(self) -> set[int]:
        return self._token_ids


@pytest.mark.parametrize(
    ("output", "options", "grammar", "expected"),
    [
        ([], {}, None, False),
        ([], {"allowed_token_ids": (5,)}, None, False),
        ([], {"allowed_token_ids": (5,)}, Only(6), True),
        ([], {"allowed_token_ids": (5, 6)}, Only(6), False),
        ([], {"allowed_token_ids": (9,), "min_tokens": 1}, None, True),
        ([5], {"allowed_token_ids": (9,), "min_tokens": 1}, None, False),
        ([], {"bad_words_token_ids": ((5,),)}, None, False),
        ([], {"bad_words_token_ids": ((5,),)}, Only(5), True),
        ([], {"bad_words_token_ids": ((5,),)}, Only(5, 6), False),
        ([], {"bad_words_token_ids": ((1, 5),), "allowed_token_ids": (5,)}, None, False),  # 1 is in the prompt
        ([1], {"bad_words_token_ids": ((1, 5),), "allowed_token_ids": (5,)}, None, True),
        ([1, 2], {"bad_words_token_ids": ((1, 5),), "allowed_token_ids": (5,)}, None, False),
        ([3, 1], {"bad_words_token_ids": ((1, 5), (6,)), "allowed_token_ids": (5, 6)}, None, True),
        ([1], {"bad_words_token_ids": ((7, 1, 5),), "allowed_token_ids": (5,)}, None, False),
    ],
)
def test_it_is_one_when_everything_is_excluded(output, options, grammar, expected):
    request = Request("a", [0, 1], SamplingParams(max_tokens=8, **options), [9])
    seq = Sequence(request, 0, 0, 8)
    seq.token_ids += output
    seq.grammar = grammar
    assert is_dead_end(seq) is expected
