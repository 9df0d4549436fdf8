"""What each step is given, and which options make which of them run again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.acceptance import AcceptanceOptions
from nemo_trt.acceptance.identity import _SAMPLE_BYTES, _WHOLE_BYTES, checkpoint_digest
from nemo_trt.acceptance.steps import Step, steps_of
from nemo_trt.precision import DType

pytestmark = pytest.mark.unit

CPU, CUDA, ENGINE = "onnxruntime", "cuda", "engine"


@pytest.fixture
def options(tmp_path: Path) -> AcceptanceOptions:
    for name in ("checkpoint", "reference", "texts"):
        (tmp_path / name).write_text(name)
    return AcceptanceOptions(
        checkpoint=tmp_path / "checkpoint",
        folder=tmp_path / "out",
        gpu="l4",
        precisions=(DType.BF16, DType.FP8),
    )


def by_name(options: AcceptanceOptions) -> dict[str, Step]:
    return {step.name: step for step in steps_of(options)}


def named(*stages: str, precision: str = "bf16 fp8") -> set[str]:
    return {stage.format(one) for stage in stages for one in precision.split()}


VALIDATE = tuple(f"validate-{{}}-{one}" for one in (CPU, CUDA, ENGINE))
BENCH = tuple(f"bench-{{}}-{one}" for one in (CPU, CUDA, ENGINE))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"gpu": "l40s"}, named("smoke-{}-engine", "plan-{}", "build-{}", VALIDATE[1], BENCH[1])),
        ({"max_seq_len": 64}, named("plan-{}", "build-{}")),
        ({"max_batch": 3}, named("plan-{}", "build-{}")),
        ({"reference": "reference"}, named(*VALIDATE)),
        ({"checkpoint": "reference"}, named("plan-{}", "export-{}", *VALIDATE)),
        ({"calibration": "texts"}, {"export-fp8"}),
        ({"samples": 4}, {"export-fp8"}),
        ({"max_kl": 0.5}, {"export-fp8"}),
        ({"validate_seq_len": 128}, named(*VALIDATE[:2])),
        ({"prefill": (16,)}, named(*BENCH)),
        ({"decode": (16, 48)}, named(*BENCH)),
        ({"decode_steps": 5}, named(*BENCH)),
        ({"threads": 2}, named(VALIDATE[0], BENCH[0])),
    ],
)
def test_an_option_repeats_the_steps_that_depend_on_it(
    changed: dict[str, Any], expected: set[str], options: AcceptanceOptions
) -> None:
    """By themselves: what was made anew repeats others, too."""
    for name in {"reference", "checkpoint", "calibration"} & changed.keys():
        changed = {name: options.folder.parent / changed[name]}
    before, after = by_name(options), by_name(replace(options, **changed))
    assert {name for name, step in after.items() if step.inputs != before[name].inputs} == expected


def test_a_step_is_given_what_was_asked_for(options: AcceptanceOptions) -> None:
    root = options.folder.parent
    asked = replace(
        options,
        max_seq_len=64,
        max_batch=3,
        reference=root / "reference",
        calibration=root / "texts",
        samples=4,
        max_kl=0.5,
        validate_seq_len=128,
        prefill=(16,),
        decode=(48,),
        decode_steps=5,
        threads=2,
    )
    steps = by_name(asked)
    bundle = str(root / "out" / "bundle-fp8")
    checkpoint, shape = str(root / "checkpoint"), {"gpu": "l4", "max_seq_len": 64, "max_batch": 3}
    plan = {"checkpoint": checkpoint, "precision": "fp8", **shape}
    assert steps["plan-fp8"].arguments == plan
    fp8 = {"calibration": str(root / "texts"), "samples": 4, "max_kl": 0.5}
    export = {"checkpoint": checkpoint, "bundle": bundle, "precision": "fp8"}
    assert steps["export-fp8"].arguments == {**export, **fp8}
    plain = steps["export-bf16"].arguments
    assert (plain["calibration"], plain["samples"]) == (None, None)
    assert steps["build-fp8"].arguments == {"bundle": bundle, **shape}
    for backend, engine, gpu, seq_len, threads in (
        (CPU, None, None, 128, 2),
        (CUDA, None, "l4", 128, None),
        (ENGINE, "l4-fp8", None, None, None),
    ):
        runs = {"bundle": bundle, "engine": engine, "cuda_gpu": gpu, "threads": threads}
        name = f"validate-fp8-{backend}"
        assert steps[name].arguments == {
            **runs,
            "reference": str(root / "reference"),
            "max_seq_len": seq_len,
            "copy": str(root / "out" / "report" / "validation" / f"{name}.json"),
        }
        measured = {"prefill": (16,), "decode": (48,), "decode_steps": 5}
        assert steps[f"bench-fp8-{backend}"].arguments == {**runs, **measured}
        made_by = "build-fp8" if engine else "export-fp8"
        assert steps[name].needs == (made_by,)
        assert steps[f"bench-fp8-{backend}"].needs == (made_by, name)
    optional = {name for name, step in steps.items() if not step.essential}
    assert optional == {"plots", *named(VALIDATE[1], BENCH[1])}


def test_of_a_large_file_both_ends_and_the_middle_are_digested(tmp_path: Path) -> None:
    file, size = tmp_path / "model.gguf", _WHOLE_BYTES + 2 * _SAMPLE_BYTES
    seen = set()
    for place in (None, 0, size // 2, size - 1, _SAMPLE_BYTES - 1, size - _SAMPLE_BYTES):
        with file.open("wb") as opened:
            opened.truncate(size)
            if place is not None:
                opened.seek(place)
                opened.write(b"x")
        seen.add(checkpoint_digest(file))
    assert len(seen) == 6
