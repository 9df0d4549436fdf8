"""docs/scale.md says what the planner computes."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.engines.planner import engine_budget
from nemo_trt.engines.targets import target_named
from nemo_trt.export.samples import SHAPES
from nemo_trt.manifest import WeightFile, read_manifest
from nemo_trt.precision import DType

pytestmark = pytest.mark.unit

DOC = Path(__file__).resolve().parents[3] / "docs" / "scale.md"
SLOTS = (1, 4, 8, 16, 32, 64)
NEMO_BYTES = {DType.FP8: 13_590_374_400, DType.BF16: 24_495_564_800}


@pytest.mark.parametrize("precision", list(NEMO_BYTES))
def test_the_tables_are_the_planners(tiny: Any, precision: DType) -> None:
    manifest = replace(
        read_manifest(tiny.bundle),
        config=SHAPES["nemo-12b"],
        precision=precision,
        weights=(WeightFile(file="x", num_bytes=NEMO_BYTES[precision], quick_digest=""),),
    )
    part = DOC.read_text(encoding="utf-8").split(f"\n{precision.value.upper()}:\n")[1]
    rows = re.findall(r"^\| ([a-z][\w-]+) \| (\d+) \| (.+) \| ([\d.]+) ms \|$", part, re.M)
    if precision is DType.FP8:
        rows = rows[: [row[0] for row in rows].index("b300") + 1]
    assert len(rows) >= 10
    for name, memory, contexts, floor in rows:
        budget = engine_budget(manifest, target_named(name))
        assert int(memory) == budget.target.memory_gb
        told = [int(one.replace(",", "")) for one in contexts.split(" | ")]
        assert told == [budget.fits[slots] for slots in SLOTS]
        assert floor == f"{budget.weights_ms:.1f}"
