"""Probes of what opening an engine takes, keeps and refuses."""

from collections.abc import Callable
from contextlib import closing

import numpy as np

from nemo_trt import contract
from nemo_trt.engines.trt.memory import GRAPH_BYTES
from nemo_trt.engines.trt.profiles import buckets
from nemo_trt.engines.trt.runtime import Context
from nemo_trt.errors import MachineError

from .fact import Outcome, confirmed, refuted, undecided
from .opened import Opened, decode, free_bytes, prefill, tokens

_STEPS = 8
_FASTER = 0.8  # of the first opening's time
_MIB = 2**20


def decode_is_captured(subject: Opened) -> Outcome:
    """Decode steps of every number of rows become CUDA graphs."""
    with subject.open(True) as session:
        rows = ", ".join(map(str, buckets(session.max_batch)))
        if why := session.describe().get("without_graph"):
            return refuted(f"of steps of {rows} rows, without a graph: {why}")
    return confirmed(f"steps of {rows} rows were captured")


def memory_is_summed_beforehand(subject: Opened) -> Outcome:
    """An open engine takes no more memory than was summed before it was opened."""
    if subject.record.options.attention == "paged":
        return undecided("an engine with pages takes what is left")
    before = free_bytes(subject)
    with subject.open(True) as session:
        used = before - free_bytes(subject)
        memory, contexts = session.memory, session.memory.graphs // GRAPH_BYTES
    each = (used - (memory.total - memory.graphs)) / max(contexts, 1) / _MIB
    words = (
        f"{used / _MIB:.1f} MiB are taken, {memory.total / _MIB:.1f} were summed; each of "
        f"{contexts} contexts and graphs takes {each:.1f} MiB, {GRAPH_BYTES // _MIB} were assumed"
    )
    return confirmed(words) if used <= memory.total else refuted(words)


def steps_take_no_memory(subject: Opened) -> Outcome:
    """Once an engine is open, steps take no device memory."""
    with subject.open(True) as session:
        before = free_bytes(subject)
        ids = tokens(session, session.max_batch, _STEPS)
        for row in range(session.max_batch):
            prefill(session, ids[row], row)
        for step in range(_STEPS):
            decode(session, ids[:, step], np.full(len(ids), _STEPS + step))
        taken = before - free_bytes(subject)
    words = f"{taken / _MIB:.1f} MiB were taken by {len(ids)} prefills and {_STEPS} decode steps"
    return refuted(words) if taken > 0 else confirmed(words)


def a_second_opening_compiles_nothing(subject: Opened) -> Outcome:
    """What the first opening compiled is kept, accepted, and makes the second faster."""
    if subject.record.toolkit == "tensorrt":
        return undecided("tensorrt compiles when it builds, not when it opens")
    for file in subject.folder.glob("*.runtime-cache"):
        file.unlink()
    seconds, content = [], []
    for _ in range(2):
        start = subject.wall()
        subject.open(True).close()
        seconds.append(subject.wall() - start)
        content.append([file.read_bytes() for file in subject.folder.glob("*.runtime-cache")])
    times = f"openings took {seconds[0]:.2f} s and then {seconds[1]:.2f} s"
    if not content[0]:
        return refuted(f"the first opening kept nothing; {times}")
    words = f"{sum(map(len, content[0]))} bytes were kept; {times}"
    if content[0] != content[1]:
        return refuted(f"{words}; the second wrote others")
    return confirmed(words) if seconds[1] <= _FASTER * seconds[0] else refuted(words)


def mistakes_are_refused(subject: Opened) -> Outcome:
    """TensorRT says no to a shape outside the profile, missing memory, and too little scratch."""
    accepted = []
    with closing(subject.device()) as device, closing(subject.plan()) as plan:
        size = max(plan.scratch_bytes, 1)
        scratch = device.allocate(size)
        made: list[Context] = []

        def context(num_bytes: int) -> Context:
            made.append(plan.context(0, device.stream, scratch, num_bytes))
            return made[-1]

        try:
            if plan.scratch_bytes and _accepts(lambda: context(plan.scratch_bytes - 1)):
                accepted.append("scratch memory that is a byte too small")
            sound = context(size)
            long = (1, subject.record.options.prefill_chunk + 1)
            if _accepts(lambda: sound.set_shape(contract.INPUT_IDS, long)):
                accepted.append(f"a shape of {long} outside the profile")
            if _accepts(lambda: sound.enqueue(device.stream)):
                accepted.append("a run whose inputs have neither shape nor memory")
        finally:
            for one in made:
                one.close()
            device.free(scratch)
    if accepted:
        return refuted(f"accepted: {'; '.join(accepted)}")
    return confirmed("a shape outside the profile, missing memory and too little scratch")


def _accepts(mistake: Callable[[], object]) -> bool:
    try:
        mistake()
    except MachineError:
        return False
    return True
