"""Prompt-lookup drafts: what followed when the last tokens stood in the request before.

Saxena 2023, "Prompt Lookup Decoding". A draft is verified by the model, so it can cost time but
never change an answer.
"""

from collections.abc import Callable, Sequence

_NGRAM = 3
_LONGEST = 16
_MEMORY = 8
"""Predictions over which the share of right ones is averaged."""


class DraftSource:
    """Tokens to draft from, with what follows each three of them. Several answers may share one."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens
        self.follows: dict[tuple[int, ...], int] = {}
        for end, ngram in enumerate(zip(tokens, tokens[1:], tokens[2:-1], strict=False), _NGRAM):
            self.follows[ngram] = end


class PromptLookup:
    """Predicts one request's next tokens, and knows how often it was right.

    Every token that comes is held against the one that was predicted for it, whether a draft was
    run or not; so trust is lost and won again without a draft that costs something.

    Attributes:
        rate: share of predictions that were right, lately; one half before there are any.
    """

    def __init__(self, source: DraftSource) -> None:
        self.rate = 0.5
        self._source = source
        self._size = len(source.tokens)
        self._tail = list(source.tokens[-_NGRAM:])
        self._own: list[int] = []  # tokens behind the source's
        self._follows: dict[tuple[int, ...], int] = {}

    def push(self, token: int) -> None:
        """The request has one token more."""
        predicted = self.draft(1)
        if predicted:
            self.rate += ((predicted[0] == token) - self.rate) / _MEMORY
        if len(self._tail) == _NGRAM:
            self._follows[tuple(self._tail)] = self._size + len(self._own)
        self._own.append(token)
        self._tail = [*self._tail, token][-_NGRAM:]

    def draft(self, limit: int) -> list[int]:
        """At most `limit` tokens that may come next; none where nothing matches."""
        key = tuple(self._tail)
        start = self._follows.get(key, self._source.follows.get(key))
        if start is None:
            return []
        found: list[int] = []
        end = self._size + len(self._own)
        for at in range(start, start + min(limit, _LONGEST)):
            if at < self._size:
                found.append(self._source.tokens[at])
            else:
                found.append(self._own[at - self._size] if at < end else found[at - end])
        return found


def draft_length(rates: Sequence[float], cost: Callable[[int], float]) -> int:
    """Tokens to draft in each row so that a second of stepping yields the most; often none.

    A row whose predictions are right with probability p gains 1 + p + ... + p^n tokens from n
    drafted ones (Leviathan et al. 2023, section 3.1).

    Args:
        rates: p of each decoding row; 0 where there is no prediction.
        cost: time of the step by its tokens a row, in any unit.
    """

    likely, count = [rate for rate in rates if rate], len(rates)
    best, most, gained, powers = 0, count / cost(1), 0.0, [1.0] * len(likely)
    for length in range(1, _LONGEST + 1) if likely else ():
        powers = [power * rate for power, rate in zip(powers, likely, strict=True)]
        gained += sum(powers)
        speed = (count + gained) / cost(length + 1)
        if speed > most:
            best, most = length, speed
    return best
