"""Probes of builds, on builds that a test makes up; one is compiled in `test_smoke.py`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_trt.acceptance.smoke import compiled
from nemo_trt.acceptance.smoke.compiled import Compiled
from nemo_trt.engines.trt.engine_record import BuildOptions, EngineRecord, PlanFile

pytestmark = pytest.mark.unit

PLAN = PlanFile(
    file="engine.plan", num_bytes=41 * 10**6, digest="aa" * 32, profiles=("prefill", "decode-1"),
    kernels={}, launches_per_layer={}, scratch_bytes={},
)  # fmt: skip
RECORD = EngineRecord(
    name="h100-bf16", build_id="", bundle_id="", precision="bf16",
    options=BuildOptions(
        target="h100", sm=90, max_seq_len=64, max_batch=1, prefill_chunk=8, max_logits=4
    ),
    toolkit="tensorrt", toolkit_version="11.4", driver="580", weight_bytes=40 * 10**6,
    plans=(PLAN,), build_s=1, peak_host_bytes=0, nemo_trt="0",
)  # fmt: skip


def subject(
    longest: int = 24_448,
    digest: str = PLAN.digest,
    seconds: tuple[float, ...] = (),
    record: EngineRecord = RECORD,
) -> Compiled:
    """Builds that fuse up to `longest` tokens, give a digest, and take `seconds`."""
    now, left, given = [0.0], list(seconds), list[Path]()

    def compile_again(timings: Path | None) -> str:
        if timings:
            given.append(timings)
            assert len(set(given)) == 1, "the second build has the first one's file"
            now[0] += left.pop(0)
        return digest

    return Compiled(
        record=record,
        head_dim=128,
        compile=compile_again,
        fuses=lambda tokens: tokens <= longest,
        wall=lambda: now[0],
    )


@pytest.mark.parametrize(
    ("probe", "builds", "found", "words"),
    [
        (compiled.fused_attention_ends_where_it_does_elsewhere, subject(), "confirmed",
         "sm_90: fused at 24,448 tokens a row, not at 24,449"),
        (compiled.fused_attention_ends_where_it_does_elsewhere, subject(longest=24_447), "refuted",
         "sm_90: not fused at 24,448 tokens a row"),
        (compiled.fused_attention_ends_where_it_does_elsewhere, subject(longest=60_000), "refuted",
         "sm_90: fused at 24,448 tokens a row, and at 24,449 too"),
        (compiled.fused_attention_ends_where_it_does_elsewhere,
         subject(record=replace(RECORD, options=replace(RECORD.options, sm=89))), "undecided",
         "not at 24,449, as it was known of sm_89"),
        (compiled.equal_inputs_may_give_other_plans, subject(), "undecided", "two builds have"),
        (compiled.equal_inputs_may_give_other_plans, subject(digest="bb"), "confirmed",
         "aaaa and bb"),
        (compiled.a_plan_holds_the_weights_once, subject(), "confirmed",
         "a plan of 2 profiles has 41.0 MB, its weights 40.0"),
        (compiled.a_plan_holds_the_weights_once,
         subject(record=replace(RECORD, plans=(replace(PLAN, num_bytes=82 * 10**6),))), "refuted",
         "has 82.0 MB"),
        (compiled.timings_make_a_build_faster, subject(seconds=(9, 3)), "confirmed",
         "builds took 9.0 s and then 3.0 s"),
        (compiled.timings_make_a_build_faster, subject(seconds=(9, 9)), "refuted",
         "and then 9.0 s"),
        (compiled.timings_make_a_build_faster,
         subject(record=replace(RECORD, toolkit="tensorrt-rtx")), "undecided", "times no kernels"),
    ],
)  # fmt: skip
def test_what_a_build_shows(
    probe: Callable[[Compiled], compiled.Outcome], builds: Compiled, found: str, words: str
) -> None:
    outcome = probe(builds)
    assert outcome.found == found and words in outcome.measured and not outcome.wrong
