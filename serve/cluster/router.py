"""Ray's request router: a request goes to the replica that most likely holds its prefix."""

import asyncio
import math
from collections.abc import Sequence

from ray.exceptions import RayError
from ray.serve.request_router import (
    PendingRequest,
    ReplicaID,
    ReplicaResult,
    RequestRouter,
    RunningReplica,
)

from .call import Call
from .prefixes import HELD_BLOCKS, Beginnings

_PROBE_S = 0.5


class PrefixRouter(RequestRouter):  # type: ignore[misc]
    """One in each ingress. Ray asks it for an order of replicas and takes the first with room.

    Ray's own prefix router needs its `llm` extra, and asks an actor, while the event loop waits.
    """

    def initialize_state(self, slack: float = 1.0, capacity: int = HELD_BLOCKS) -> None:
        """Take what stands in `request_router_kwargs`; see `Beginnings`."""
        self._slack = slack
        self._beginnings: Beginnings[ReplicaID] = Beginnings(capacity)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The replicas, best first, each a rank of its own."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # when all of them are full
        loads = await asyncio.gather(*map(self._load, candidate_replicas))
        by_id = {replica.replica_id: replica for replica in candidate_replicas}
        ranked = self._beginnings.rank(
            dict(zip(by_id, loads, strict=True)), _keys(pending_request), self._slack
        )
        return [[by_id[replica]] for replica in ranked]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult
    ) -> None:
        """A replica has taken a request."""
        self._beginnings.remember(replica_id, _keys(pending_request))

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """There are other replicas now."""
        super().update_replicas(replicas)
        self._beginnings.keep_only(set(self.curr_replicas))

    async def _load(self, replica: RunningReplica) -> float:
        """Requests that a replica has; the count that Ray keeps goes stale after some seconds."""
        known = self.replica_queue_len_cache.get(replica.replica_id)
        if known is None:
            try:
                known = await asyncio.wait_for(replica.get_queue_len(deadline_s=_PROBE_S), _PROBE_S)
            except (RayError, TimeoutError):
                return math.inf
            self.on_new_queue_len_info(replica.replica_id, known)
        return float(known)


def _keys(pending: PendingRequest | None) -> Sequence[int]:
    call = pending.args[0] if pending and pending.args else None
    return call.keys if isinstance(call, Call) else ()
