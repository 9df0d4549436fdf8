"""Prompt-lookup drafts: what followed when the last tokens stood in the request before.

Saxena 2023, "Prompt Lookup Decoding". A draft is verified by the model, so it can cost time but
never change an answer.
"""

_NGRAM = 3
_FIRST = 4
_LONGEST = 16
_LONGEST_REST = 64


class PromptLookup:
    """Proposes tokens for one request, and learns from how many were accepted.

    A draft that was accepted whole is followed by one twice as long, up to 16 tokens; any other by
    one just longer than what was accepted. After a draft of which nothing was accepted none is made
    for a while, twice as long each time it happens in a row.
    """

    def __init__(self, tokens: list[int]) -> None:
        self._tokens: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}
        self._length = _FIRST
        self._rest = self._next_rest = 0
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """The request has one token more."""
        if len(self._tokens) >= _NGRAM:
            self._follows[tuple(self._tokens[-_NGRAM:])] = len(self._tokens)
        self._tokens.append(token)

    def draft(self, limit: int) -> list[int]:
        """At most `limit` tokens that may come next; none where nothing matches."""
        if self._rest:
            self._rest -= 1
            return []
        start = self._follows.get(tuple(self._tokens[-_NGRAM:]))
        if start is None:
            return []
        found: list[int] = []
        end = len(self._tokens)
        for at in range(start, start + min(limit, self._length)):
            found.append(self._tokens[at] if at < end else found[at - end])
        return found

    def judged(self, drafted: int, accepted: int) -> None:
        """Of the last draft's tokens so many were what the model chose."""
        if accepted == drafted:
            self._length = min(2 * self._length, _LONGEST)
        else:
            self._length = accepted + 1
        if accepted == 0:
            self._rest = self._next_rest
            self._next_rest = min(2 * self._next_rest + 2, _LONGEST_REST)
            return
        self._next_rest = 0
