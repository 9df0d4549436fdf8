"""What prompts begin with, and which replica has seen such a beginning."""

import json
import random
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Generic, TypeVar

BLOCK_CHARS = 128
"""Characters a block: about the 32 tokens below which a row's beginning is not copied."""
_MOST_BLOCKS = 8192
HELD_BLOCKS = 32768
"""Blocks that are remembered of a replica: 4 Mi characters, about a million tokens, which is what
the cache of the largest GPU holds."""

Replica = TypeVar("Replica")
Keys = Sequence[int]


def prefix_keys(body: bytes) -> tuple[int, ...]:
    """A key for each beginning of a request's prompt that is whole blocks long, shortest first.

    Two prompts that begin alike have their first keys in common. Keys mean something within one
    process alone: Python salts its hashes. A body that is not understood has none.
    """
    text = _prompt(body)
    keys, key = [], 0
    for end in range(BLOCK_CHARS, min(len(text), _MOST_BLOCKS * BLOCK_CHARS) + 1, BLOCK_CHARS):
        key = hash((key, text[end - BLOCK_CHARS : end]))
        keys.append(key)
    return tuple(keys)


class Beginnings(Generic[Replica]):
    """What each replica was sent last, up to about what its cache can hold.

    Args:
        capacity: keys of a replica; those that were used longest ago are forgotten first.
    """

    def __init__(self, capacity: int = HELD_BLOCKS) -> None:
        self._capacity = capacity
        self._held: dict[Replica, OrderedDict[int, None]] = {}

    def remember(self, replica: Replica, keys: Keys) -> None:
        """A prompt has gone to a replica."""
        held = self._held.setdefault(replica, OrderedDict())
        for key in reversed(keys):  # so that ends are forgotten before what they build on
            held[key] = None
            held.move_to_end(key)
        while len(held) > self._capacity:
            held.popitem(last=False)

    def keep_only(self, replicas: Collection[Replica]) -> None:
        """Forget the replicas that are gone."""
        self._held = {one: held for one, held in self._held.items() if one in replicas}

    def rank(self, loads: Mapping[Replica, float], keys: Keys, slack: float) -> list[Replica]:
        """Replicas, the best one for a prompt first.

        That is the one that holds most of its beginning, among those that have fewer than `slack`
        requests more than the one that has fewest: with `slack` the number of slots, a request
        does not wait for the sake of its prefix while another replica is idle. What nobody holds
        goes where the load is least, then to who holds least.
        """
        near = min(loads.values(), default=0.0) + slack

        def merit(replica: Replica) -> tuple[float, float, int]:
            shared = self._shared(replica, keys) if loads[replica] < near else 0
            return -shared, loads[replica], len(self._held.get(replica, ()))

        return sorted(random.sample(list(loads), len(loads)), key=merit)

    def _shared(self, replica: Replica, keys: Keys) -> int:
        held = self._held.get(replica)
        if not held:
            return 0
        return next((at for at, key in enumerate(keys) if key not in held), len(keys))


def _prompt(body: bytes) -> str:
    """Text that begins alike where prompts do."""
    try:
        fields: Any = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(fields, dict):
        return ""
    found = fields.get("messages") or fields.get("prompt") or fields.get("input")
    if isinstance(found, list) and found and isinstance(found[0], str | list):
        found = found[0]  # of several prompts, the first
    before = fields.get("instructions") or fields.get("system")  # of other APIs than chat
    begin = before if isinstance(before, str) else json.dumps(before) if before else ""
    if isinstance(found, str):
        return begin + found
    return begin + json.dumps(found, ensure_ascii=False) if isinstance(found, list) else begin
