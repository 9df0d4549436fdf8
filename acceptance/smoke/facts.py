"""Every inferred fact and its probe: `make docs` writes the table of docs/tensorrt.md from here."""

from .answers import (
    a_decode_step_keeps_the_cache,
    a_graph_equals_a_plain_run,
    a_step_repeats_itself,
    candidates_are_the_largest,
    rows_do_not_see_each_other,
    what_lies_behind_a_row_is_not_read,
)
from .compiled import (
    Compiled,
    a_plan_holds_the_weights_once,
    equal_inputs_may_give_other_plans,
    fused_attention_ends_where_it_does_elsewhere,
    timings_make_a_build_faster,
)
from .fact import Fact
from .opened import Opened
from .openings import (
    a_second_opening_compiles_nothing,
    decode_is_captured,
    memory_is_summed_beforehand,
    mistakes_are_refused,
    steps_take_no_memory,
)
from .pace import (
    a_step_costs_the_capacity,
    shared_keys_come_from_the_l2_cache,
    waiting_computes_nothing,
)
from .stripped import a_stripped_engine_does_the_same

_OTHER_LOGITS = "logits differ by more than validation allows"

OF_BUILDS: tuple[Fact[Compiled], ...] = (
    Fact(
        name="F1",
        says="Fused decode attention takes 24,576 - head_dim tokens a row on sm_90 and 100, too.",
        matters="`nemo-trt plan` and `build` could refuse longer caches before compiling.",
        probe=fused_attention_ends_where_it_does_elsewhere,
        refuted="State the limit that was found in trap 9 and in `FUSED_SMS`, engines/planner.py.",
        section="Traps",
    ),
    Fact(
        name="F2",
        says="A plan with all profiles holds the weights once.",
        matters="One plan is the default; otherwise it needs twice the memory.",
        probe=a_plan_holds_the_weights_once,
        refuted="Build with `--separate-plans` with that toolchain, and say so.",
        section="One plan, several profiles",
    ),
    Fact(
        name="F3",
        says="Builds of equal inputs may differ in bytes.",
        matters="An engine is kept while its inputs are; a plan of other bytes loses its verdict.",
        probe=equal_inputs_may_give_other_plans,
        refuted="It cannot be: builds that are equal may be so by chance.",
        section="When an engine is rebuilt",
    ),
    Fact(
        name="F4",
        says="The enterprise library builds faster with the timings of an earlier build.",
        matters="`--timing-cache` is worth its file.",
        probe=timings_make_a_build_faster,
        refuted="Refuse `--timing-cache` for that toolchain, too.",
        section="Two toolchains, one code path",
    ),
)
"""Those that a compiler shows."""

OF_ENGINES: tuple[Fact[Opened], ...] = (
    Fact(
        name="F5",
        says="A step with the same inputs gives the same logits each time.",
        matters="Version 11.2 and later may pick FP8 kernels that are unstable.",
        probe=a_step_repeats_itself,
        refuted="Build with another `--opt-level`.",
        fails=_OTHER_LOGITS,
        section="Traps",
    ),
    Fact(
        name="F6",
        says="With past and present at one address a decode step writes its own token's keys and "
        "values, and no others.",
        matters="The cache is bound in place; a copy would not fit.",
        probe=a_decode_step_keeps_the_cache,
        refuted="Do not serve this engine.",
        fails="a number of the cache changed, or logits differ from those of one pass",
        section="Traps",
    ),
    Fact(
        name="F7",
        says="A decode step can be captured as a CUDA graph.",
        matters="Without one, each of some 400 kernels is launched from the host.",
        probe=decode_is_captured,
        refuted="Report the reason: steps run without graphs, slower.",
        section="A session",
    ),
    Fact(
        name="F8",
        says="A replayed graph gives the logits of a plain run.",
        matters="All decoding is replayed.",
        probe=a_graph_equals_a_plain_run,
        refuted="Do not serve this engine.",
        fails=_OTHER_LOGITS,
        section="A session",
    ),
    Fact(
        name="F9",
        says="A row's logits do not depend on what the rows beside it hold.",
        matters="A decode window may contain rows that belong to other requests, or to none.",
        probe=rows_do_not_see_each_other,
        refuted="Do not serve this engine with several rows.",
        fails=_OTHER_LOGITS,
        section="One plan, several profiles",
    ),
    Fact(
        name="F10",
        says="A row's logits do not depend on finite numbers behind its length.",
        matters="A row is rewound by its length alone, and idle rows write behind theirs.",
        probe=what_lies_behind_a_row_is_not_read,
        refuted="Do not serve this engine.",
        fails=_OTHER_LOGITS,
        section="One plan, several profiles",
    ),
    Fact(
        name="F11",
        says="TopK on the device finds the largest logits, and the sums are over all of them.",
        matters="Tokens are drawn from these candidates.",
        probe=candidates_are_the_largest,
        refuted="Do not serve this engine.",
        fails="a candidate is not among the largest, or a sum is off by more than 1e-3",
        section="A session",
    ),
    Fact(
        name="F12",
        says="`collect` waits without using the processor.",
        matters="Scheduling and HTTP run meanwhile.",
        probe=waiting_computes_nothing,
        refuted="Report it with the driver's version.",
        section="A session",
    ),
    Fact(
        name="F13",
        says="An open engine takes at most the memory that was summed, of it 16 MiB for each "
        "decode context and its graph.",
        matters="An engine that does not fit is refused before it is loaded.",
        probe=memory_is_summed_beforehand,
        refuted="Put the number that was measured into `GRAPH_BYTES`, engines/trt/memory.py.",
        section="A session",
    ),
    Fact(
        name="F14",
        says="Steps of an open engine take no device memory.",
        matters="A server does not run out of memory while it serves.",
        probe=steps_take_no_memory,
        refuted="Report it, with the toolchain's version.",
        section="A session",
    ),
    Fact(
        name="F15",
        says="The runtime cache of the first opening is accepted at the second, which compiles "
        "nothing.",
        matters="A server is ready sooner.",
        probe=a_second_opening_compiles_nothing,
        refuted="Report both times.",
        section="A session",
    ),
    Fact(
        name="F16",
        says="A decode step takes as long with short rows as with full ones.",
        matters="`nemo-trt plan` states the time of a full cache.",
        probe=a_step_costs_the_capacity,
        refuted="Good news: correct the section, and `floor_ms` in engines/planner.py.",
        section="Memory",
    ),
    Fact(
        name="F17",
        says="Query heads that share keys and values read them from the L2 cache.",
        matters="The lower bound of a step counts each of them once.",
        probe=shared_keys_come_from_the_l2_cache,
        refuted="Correct the section: a long cache costs more than the lower bound says.",
        section="Memory",
    ),
    Fact(
        name="F18",
        says="TensorRT refuses a shape outside the profile, a run without memory, and too little "
        "scratch memory.",
        matters="The tests' stand-in refuses them, so a session that erred would fail its tests.",
        probe=mistakes_are_refused,
        refuted="Nothing for users: the session makes none of these mistakes.",
        section="What is tested without a GPU, and what is not",
    ),
    Fact(
        name="F19",
        says="An engine that takes its weights from the bundle gives the logits of one whose plan "
        "holds them, in steps that take as long.",
        matters="`build --strip` needs neither the plan's disk space nor its time.",
        probe=a_stripped_engine_does_the_same,
        refuted="Do not serve a stripped engine with other logits; of a slower one, report both "
        "times.",
        fails=_OTHER_LOGITS,
        section="Plans without weights",
    ),
)
"""Those that an engine on its GPU shows, in the order in which they are probed."""

FACTS: tuple[Fact[Compiled] | Fact[Opened], ...] = (*OF_BUILDS, *OF_ENGINES)
