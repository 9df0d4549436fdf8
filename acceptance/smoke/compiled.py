"""Probes of what TensorRT builds, which need no GPU where the toolchain needs none."""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nemo_trt.bundle import Bundle
from nemo_trt.engines.planner import FUSED_SCORES, FUSED_SMS
from nemo_trt.engines.trt.compile import Compiler
from nemo_trt.engines.trt.engine_record import EngineRecord, read_record
from nemo_trt.engines.trt.lowering import lower
from nemo_trt.engines.trt.probe import is_fused
from nemo_trt.engines.trt.profiles import decode_name
from nemo_trt.engines.trt.toolkit import Log, load_toolkit
from nemo_trt.manifest import GRAPH_FILE
from nemo_trt.progress import Silent

from .fact import Outcome, confirmed, refuted, undecided

_FASTER = 0.8  # of the time without timings
_ONCE = 1.5  # times the weights' bytes: kernels and tables of a small engine take part of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """An engine that was just built, and what builds more.

    Attributes:
        record: the engine's.
        head_dim: of the model.
        compile: builds its first plan again, with a file of timings or without; returns the digest.
        fuses: whether decode attention over so many tokens a row is fused.
        wall: seconds that passed.
    """

    record: EngineRecord
    head_dim: int
    compile: Callable[[Path | None], str]
    fuses: Callable[[int], bool]
    wall: Callable[[], float] = time.perf_counter


def compiled(bundle: Bundle, name: str) -> Compiled:
    """An engine of a bundle, and its toolkit."""
    record = read_record(bundle, name, verify=False)
    toolkit = load_toolkit(record.toolkit)  # type: ignore[arg-type]  # the builder wrote it

    def compiler(timings: Path | None) -> Compiler:
        return Compiler(
            options=record.options,
            toolkit=toolkit,
            graph=lower(bundle.path, GRAPH_FILE, record.options.max_seq_len),
            timing_cache=timings,
            progress=Silent(),
        )

    def compile_again(timings: Path | None) -> str:
        profiles = record.plans[0].profiles
        return compiler(timings).compile(Path(os.devnull), profiles, Log(toolkit))[1]

    return Compiled(
        record=record,
        head_dim=bundle.config.head_dim,
        compile=compile_again,
        fuses=lambda capacity: is_fused(bundle, compiler(None), capacity, decode_name(1)),
    )


def fused_attention_ends_where_it_does_elsewhere(subject: Compiled) -> Outcome:
    """Decode attention is fused up to 24,576 - head_dim tokens a row, and not past it."""
    longest = FUSED_SCORES - subject.head_dim
    sm = f"sm_{subject.record.options.sm}"
    if not subject.fuses(longest):
        return refuted(f"{sm}: not fused at {longest:,} tokens a row")
    if subject.fuses(longest + 1):
        return refuted(f"{sm}: fused at {longest:,} tokens a row, and at {longest + 1:,} too")
    words = f"{sm}: fused at {longest:,} tokens a row, not at {longest + 1:,}"
    if subject.record.options.sm in FUSED_SMS:
        return undecided(f"{words}, as it was known of {sm}")
    return confirmed(words)


def equal_inputs_may_give_other_plans(subject: Compiled) -> Outcome:
    """Building again may give other bytes. One pair that is equal shows nothing."""
    first, second = subject.record.plans[0].digest, subject.compile(None)
    words = f"two builds have the digests {first[:12]} and {second[:12]}"
    return confirmed(words) if first != second else undecided(words)


def a_plan_holds_the_weights_once(subject: Compiled) -> Outcome:
    """Prefill and decode in one plan share their weights."""
    plans, weights = sum(p.num_bytes for p in subject.record.plans), subject.record.weight_bytes
    profiles = sum(len(plan.profiles) for plan in subject.record.plans)
    words = (
        f"a plan of {profiles} profiles has {plans / 1e6:.1f} MB, its weights {weights / 1e6:.1f}"
    )
    return confirmed(words) if plans <= _ONCE * weights else refuted(words)


def timings_make_a_build_faster(subject: Compiled) -> Outcome:
    """A build that is given the timings of an earlier one is faster."""
    if subject.record.toolkit != "tensorrt":
        return undecided(f"{subject.record.toolkit} times no kernels")
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            start = subject.wall()
            subject.compile(Path(folder) / "timings")
            seconds.append(subject.wall() - start)
    words = f"builds took {seconds[0]:.1f} s and then {seconds[1]:.1f} s"
    return confirmed(words) if seconds[1] <= _FASTER * seconds[0] else refuted(words)
