"""Bad words: the last token of a sequence of tokens cannot be drawn right after the ones before it.

The newest output token is on the device before the host knows it, so the row keeps its last few there and each step
compares them with the words of all rows at once:

    recent [row]   ... 17 40 8        words  * 40 8 -> 61     matches: 61 is banned
                                             * * 17 -> 3      does not
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyengine import ops
from pyengine.sampling.stage import RowFlags, SamplingStep, Upload
from pyengine.sched.step import NewRow

ANY = -1  # in a word: whatever comes this far back
NOTHING = -2  # in a history: there is no token this far back; equal to no token of a word


class BadWords:
    """Words of the rows that have some, on the device as one table that is sent when such a row changes owner.

    History is int32 [max_num_seqs, width], as wide as the longest word so far needs. Only output tokens count.
    """

    def __init__(self, max_num_seqs: int, device: torch.device, upload: Upload):
        self._device = device
        self._upload = upload
        self._flags = RowFlags(max_num_seqs)
        self._words: dict[int, tuple[tuple[int, ...], ...]] = {}
        self._recent = torch.full((max_num_seqs, 0), NOTHING, dtype=torch.int32, device=device)
        self._table: _WordTable | None = None  # None: to be made from ``_words``

    def assign(self, new: NewRow) -> None:
        words = new.params.bad_words_token_ids
        self._flags.set(new.row, bool(words))
        if self._words.pop(new.row, None) is not None or words:
            self._table = None
        if not words:
            return
        self._words[new.row] = words
        self._widen(max(len(word) for word in words) - 1)
        recent = np.full(self._recent.shape[1], NOTHING, np.int32)
        output = new.token_ids[new.num_prompt_tokens :][-len(recent) :] if len(recent) else ()
        if output:
            recent[-len(output) :] = output
        self._recent[new.row].copy_(self._upload(recent))

    def uses(self, step: SamplingStep) -> bool:
        return self._flags.any(step)

    def apply(self, logits: Tensor, step: SamplingStep) -> None:
        if self._table is None:
            self._table = _WordTable(self._words, self._upload)
        batch_rows = np.full(len(self._recent), -1, np.int32)  # of each device row
        rows = self._flags.rows(step)
        (indices,) = np.nonzero(rows >= 0)
        batch_rows[rows[indices]] = indices
        self._table.ban(logits, self._recent, self._upload(batch_rows))

    def count(self, token_ids: Tensor, step: SamplingStep) -> None:
        """Remember what was drawn; ``token_ids`` int32 [num_seqs] on the device."""
        if not self._recent.shape[1]:
            return
        (indices,) = np.nonzero(self._flags.select(step))
        rows = self._upload(step.rows[indices].astype(np.int32)).long()
        drawn = token_ids[self._upload(indices.astype(np.int32)).long()]
        self._recent[rows] = torch.cat((self._recent[rows, 1:], drawn[:, None]), 1)

    def _widen(self, width: int) -> None:
        """Older rows lose nothing: none of their words looks so far back."""
        missing = width - self._recent.shape[1]
        if missing > 0:
            filler = torch.full((len(self._recent), missing), NOTHING, dtype=torch.int32, device=self._device)
            self._recent = torch.cat((filler, self._recent), 1)


class _WordTable:
    """All words of all rows.

    prefixes int32 [num_words, width] (right-aligned, ANY before a shorter one), owners int64 [num_words] device rows,
    pairs int64 [num_words] which ban a match means: several words may end in the same token of the same row.
    pair_owners int64, pair_tokens int32 [num_pairs].
    """

    def __init__(self, words: dict[int, tuple[tuple[int, ...], ...]], upload: Upload):
        flat = [(row, word) for row, of_row in words.items() for word in of_row]
        prefixes = np.full((len(flat), max(len(word) for _, word in flat) - 1), ANY, np.int32)
        for i, (_, word) in enumerate(flat):
            prefixes[i, prefixes.shape[1] - len(word) + 1 :] = word[:-1]
        ends = np.asarray([(row, word[-1]) for row, word in flat], np.int32)
        pairs, pair_of_word = np.unique(ends, axis=0, return_inverse=True)

        def keep(array: np.ndarray) -> Tensor:
            return upload(array.astype(np.int32)).clone()

        self._prefixes = keep(prefixes)
        self._owners = keep(ends[:, 0]).long()
        self._pairs = keep(pair_of_word.reshape(-1)).long()
        self._pair_owners = keep(pairs[:, 0]).long()
        self._pair_tokens = keep(pairs[:, 1])

    def ban(self, logits: Tensor, recent: Tensor, batch_rows: Tensor) -> None:
        """``batch_rows`` int32 [max_num_seqs]: where in the logits a device row is, -1: not in this step."""
        width = self._prefixes.shape[1]
        history = recent[self._owners, recent.shape[1] - width :]
        matches = ((history == self._prefixes) | (self._prefixes == ANY)).all(1)
        num_matches = torch.zeros(self._pair_tokens.shape, device=logits.device).index_add_(
            0, self._pairs, matches.float()
        )
        bans = torch.zeros_like(num_matches).masked_fill_(num_matches > 0, float("-inf"))
        entries = torch.stack((batch_rows[self._pair_owners], self._pair_tokens), 1)
        ops.apply_bias(logits, entries, bans)
