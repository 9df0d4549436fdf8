"""Smoke: a small engine is made, run and judged in minutes, before hours go into the real one."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from nemo_trt.acceptance.smoke.model import (
    CHUNK,
    MAX_BATCH,
    MAX_SEQ_LEN,
    write_model,
    write_samples,
)
from nemo_trt.acceptance.smoke.probing import probe_all, wrong
from nemo_trt.bundle import Bundle
from nemo_trt.engines.session import Session
from nemo_trt.engines.targets import target_named
from nemo_trt.precision import DType
from nemo_trt.progress import Progress

from . import export, validate
from .build import require_toolkit
from .done import CannotHere, Done
from .here import require_engine_gpu

Result = TypeVar("Result")
_CPU_SEQ_LEN, _DECODE_STEPS = 256, 16


def run(
    *,
    part: Literal["bundle", "engine", "session"],
    folder: str,
    precision: str,
    gpu: str,
    copy: str,
    progress: Progress,
) -> Done:
    """Do one part for a precision.

    Args:
        part: "bundle" writes and exports the small model, and judges the bundle on the CPU;
            "engine" compiles it, and probes what builds show; "session" opens it on its GPU,
            measures, probes and judges it.
        folder: everything but the validation's `copy` is written there.
        gpu: name of the target.
    """
    smoke = _Smoke(Path(folder), precision, gpu, Path(copy), progress)
    return {"bundle": smoke.bundle, "engine": smoke.engine, "session": smoke.session}[part]()


class _Smoke:
    """The parts, and what ran in this one."""

    def __init__(
        self, folder: Path, precision: str, gpu: str, copy: Path, progress: Progress
    ) -> None:
        self._precision, self._gpu, self._copy, self._progress = precision, gpu, copy, progress
        self._checkpoint, self._samples = folder / "checkpoint", folder / "samples.jsonl"
        self._bundle = folder / f"bundle-{precision}"
        self._engine = f"{target_named(gpu).name}-{precision}"
        self._ran: list[dict[str, Any]] = []

    def bundle(self) -> Done:
        """Write the model, export it, and judge the bundle where ONNX Runtime is."""
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        self._timed("write the model", lambda: write_model(self._checkpoint))
        write_samples(self._samples)
        made = self._timed(
            "export",
            lambda: export.run(
                checkpoint=str(self._checkpoint),
                bundle=str(self._bundle),
                precision=self._precision,
                calibration=str(self._samples),
                samples=None,
                max_kl=float("inf"),
                progress=self._progress,
            ),
            lambda done: "{num_layers} layers, {num_parameters:,} parameters".format(**done.facts),
        )
        try:
            judged = self._judged(None)
        except CannotHere as error:
            self._ran.append({"what": "validate", "seconds": None, "measured": str(error)})
            return Done(product=made.product, facts={"ran": self._ran})
        return Done(
            verdict=judged.verdict,
            reason=judged.reason,
            product=made.product,
            facts={"ran": self._ran, "validation": judged.facts},
        )

    def engine(self) -> Done:
        """Compile it, and probe what builds show."""
        from nemo_trt.acceptance.smoke.compiled import compiled
        from nemo_trt.acceptance.smoke.facts import OF_BUILDS
        from nemo_trt.engines.trt.build import build_engine

        require_toolkit(self._gpu)
        build = partial(
            build_engine,
            self._bundle,
            gpu=self._gpu,
            max_seq_len=MAX_SEQ_LEN,
            max_batch=MAX_BATCH,
            prefill_chunk=CHUNK,
            progress=self._progress,
        )
        record, _ = self._timed(
            "build",
            build,
            lambda built: (
                f"{built[0].toolkit} {built[0].toolkit_version}, {MAX_BATCH} rows of "
                f"{MAX_SEQ_LEN:,} tokens, {sum(p.num_bytes for p in built[0].plans) / 1e6:.0f} MB"
            ),
        )
        if self._precision != DType.FP16:  # whose weights are converted
            self._timed("build --strip", partial(build, strip=True))
        builds = compiled(Bundle.open(self._bundle), self._engine)
        outcomes = self._timed(
            f"probes of {len(OF_BUILDS)} facts about builds",
            lambda: probe_all(OF_BUILDS, builds, self._progress),
        )
        return self._probed(outcomes, {}, {"engine_id": record.engine_id})

    def session(self) -> Done:
        """Open it, measure, probe and judge it."""
        bundle = Bundle.open(self._bundle)
        gpu = require_engine_gpu(bundle, self._engine)
        from nemo_trt.acceptance.smoke.facts import OF_ENGINES
        from nemo_trt.acceptance.smoke.opened import opened
        from nemo_trt.engines.measure import gpu_here

        here = gpu_here()
        subject = opened(bundle, self._engine, here.bandwidth_gb_s * 1e9 if here else None)
        session = self._timed("open", lambda: subject.open(True))
        with session:
            self._measured(session)
        outcomes = self._timed(
            f"probes of {len(OF_ENGINES)} facts about engines",
            lambda: probe_all(OF_ENGINES, subject, self._progress),
        )
        judged = self._judged(self._engine)
        facts = {"gpu": gpu, "validation": judged.facts}
        return self._probed(outcomes, facts, {}, judged.reason)

    def _measured(self, session: Session) -> None:
        from nemo_trt.engines.rates import batches_up_to, decode_rates, prefill_rates

        (prefill,) = prefill_rates(session, [session.capacity // 8], self._progress)
        self._said("prefill", f"{prefill.tokens} tokens in {prefill.step_s * 1e3:.2f} ms")
        rows = batches_up_to(session.max_batch)
        rates = decode_rates(session, rows, [session.capacity // 2], _DECODE_STEPS, self._progress)
        words = ", ".join(f"{one.rows} rows {one.step_s * 1e6:.0f} us" for one in rates)
        self._said("decode", f"a step of {words}")

    def _judged(self, engine: str | None) -> Done:
        """What `validate` says; raises `CannotHere` where it cannot."""
        return self._timed(
            "validate",
            lambda: validate.run(
                bundle=str(self._bundle),
                reference=str(self._checkpoint),
                engine=engine,
                cuda_gpu=None,
                max_seq_len=None if engine else _CPU_SEQ_LEN,
                threads=None,
                copy=str(self._copy),
                progress=self._progress,
            ),
            lambda done: f"{done.verdict}, {len(done.facts['cases'])} cases",
        )

    def _probed(
        self,
        outcomes: list[dict[str, Any]],
        facts: dict[str, Any],
        product: dict[str, str],
        failure: str = "",
    ) -> Done:
        failures = [*wrong(outcomes), *([failure] if failure else [])]
        return Done(
            verdict="fail" if failures else "pass",
            reason="; ".join(failures),
            product=product,
            facts={"ran": self._ran, "outcomes": outcomes, "engine": self._engine, **facts},
        )

    def _timed(
        self, what: str, work: Callable[[], Result], words: Callable[[Result], str] = lambda _: ""
    ) -> Result:
        start = time.perf_counter()
        result = work()
        seconds = round(time.perf_counter() - start, 2)
        self._ran.append({"what": what, "seconds": seconds, "measured": words(result)})
        return result

    def _said(self, what: str, measured: str) -> None:
        self._ran.append({"what": what, "seconds": None, "measured": measured})
