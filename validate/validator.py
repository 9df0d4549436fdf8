"""Runs every case on a session in lockstep with the reference, and judges."""

import math
import platform
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from nemo_trt import __version__
from nemo_trt.digest import quick_digest
from nemo_trt.engines.session import Session, SessionInfo
from nemo_trt.errors import MachineError, RequestError
from nemo_trt.export.checkpoints import Checkpoint
from nemo_trt.progress import Progress, Silent
from nemo_trt.tolerances import (
    Tolerance,
    case_failures,
    language_failures,
    perplexity_failures,
    tolerance_of,
)

from . import cases
from .cases import Observation
from .language import unjudged
from .metrics import Metrics, compare, likeliest, negative_log_likelihood
from .reference import Reference, compute_reference
from .report import CaseReport, Disagreement, Report, broken_case
from .scales import scale_failures
from .sequences import Sequences

_WORST, _BEFORE, _CHOICES = 5, 16, 4
"""Of each case: worst positions that are kept, tokens that are shown before one, its choices."""


def validate(
    session: Session,
    checkpoint: Checkpoint,
    sequences: Sequences,
    *,
    bundle_id: str,
    engine: SessionInfo,
    reference: Reference | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare a session with the reference in every case.

    Args:
        session: what is judged; its cache is overwritten.
        checkpoint: what the reference is computed from.
        sequences: of `make_sequences`.
        bundle_id: identity of what the session runs, for the report.
        engine: what it is, for the report.
        reference: computed before from the same checkpoint and sequences; by default it is now.

    Raises:
        RequestError: checkpoint and session are not of one shape.
    """
    progress = progress or Silent()
    if dict(checkpoint.config.tensors()) != dict(session.config.tensors()):
        raise RequestError(
            f"{checkpoint.path} must be the model that the bundle was made from, got one of "
            "another shape. Name it with --reference."
        )
    reference = reference or compute_reference(checkpoint, sequences.every, progress)
    limits = tolerance_of(session.compute_precision)
    progress.phase("engine: cases", cases.NUM_CASES)
    reports = []
    likelihoods: list[tuple[np.ndarray, np.ndarray]] = []
    for name, observations in cases.every_case(session, sequences, reference.context):
        try:
            seen = list(observations)
        except MachineError as error:  # an engine that breaks in a case has failed it
            reports.append(broken_case(name, str(error)))
        else:
            reports.append(_judge(name, seen, reference, limits))
            if not likelihoods:
                likelihoods = list(_likelihoods(seen, reference))
        progress.advance()
    perplexity = {
        who: float(np.exp(np.concatenate([pair[index] for pair in likelihoods]).mean()))
        if likelihoods
        else math.inf
        for index, who in enumerate(("engine", "reference"))
    }
    unjudged_language = unjudged(checkpoint, sequences)
    return Report(
        bundle_id=bundle_id,
        engine={**engine, "compute_precision": session.compute_precision},
        reference={
            "path": str(checkpoint.path.resolve()),
            "format": checkpoint.format,
            "dtype": reference.dtype,
            "noise": reference.noise,
            "reader": reference.reader,
            "independent_reader": reference.independent,
            "transformers": reference.transformers_version,
            "quick_digests": {p.name: quick_digest(p) for p in checkpoint.weight_files},
        },
        settings={
            "nemo-trt": __version__,
            "python": platform.python_version(),
            "perplexity_not_judged": unjudged_language,
            "sequences": [
                {"name": one.name, "tokens": len(one.tokens), "start": one.start}
                for one in sequences.every
            ],
        },
        limits=asdict(limits),
        perplexity=perplexity,
        cases=tuple(reports),
        failures=(
            *perplexity_failures(perplexity, asdict(limits)),
            *scale_failures(session.bundle, checkpoint),
            *(() if unjudged_language else language_failures(perplexity)),
        ),
    )


def _judge(
    name: str, seen: list[Observation], reference: Reference, limits: Tolerance
) -> CaseReport:
    parts: list[Metrics] = []
    positions: list[tuple[str, int]] = []
    for one in seen:
        count = len(one.logits)
        expected = reference.logits[one.sequence.name][one.sequence.rows(one.first, count)]
        parts.append(compare(one.logits, expected, noise=reference.noise))
        first = one.sequence.start + one.first
        positions += [(one.sequence.name, position) for position in range(first, first + count)]
    every = {
        metric: np.concatenate([getattr(part, metric) for part in parts])
        for metric in Metrics.__slots__
    }
    figures = {
        "max_relative_l2": float(every["relative_l2"].max()),
        "min_cosine": float(every["cosine"].min()),
        "max_kl": float(every["kl"].max()),
        "mean_kl": float(every["kl"].mean()),
        "top1": float(every["top1"].mean()),
        "top5": float(every["top5"].mean()),
    }
    return CaseReport(
        name=name,
        max_abs=float(every["max_abs"].max()),
        mean_abs=float(every["mean_abs"].mean()),
        **figures,
        failures=case_failures(figures, len(positions), asdict(limits)),
        positions=tuple(positions),
        worst=_worst(seen, reference, every["kl"]),
        per_position={metric: tuple(values.tolist()) for metric, values in every.items()},
    )


def _worst(
    seen: list[Observation], reference: Reference, kl: np.ndarray
) -> tuple[Disagreement, ...]:
    places = [(one, index) for one in seen for index in range(len(one.logits))]
    found = []
    for place in np.argsort(-kl, kind="stable")[:_WORST]:
        one, index = places[place]
        token = one.first + index
        (row,) = one.sequence.rows(token, 1)
        expected = reference.logits[one.sequence.name][row]
        found.append(
            Disagreement(
                sequence=one.sequence.name,
                position=one.sequence.start + token,
                kl=float(kl[place]),
                before=one.sequence.tokens[max(0, token + 1 - _BEFORE) : token + 1],
                engine=likeliest(one.logits[index], _CHOICES),
                reference=likeliest(expected, _CHOICES),
            )
        )
    return tuple(found)


def _likelihoods(
    seen: list[Observation], reference: Reference
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """-log p of every next token, by engine and by reference, of whole prefills."""
    for one in seen:
        targets = np.array(one.sequence.tokens[1:])
        expected = reference.logits[one.sequence.name]
        yield (
            np.nan_to_num(negative_log_likelihood(one.logits[:-1], targets), nan=np.inf),
            negative_log_likelihood(expected[:-1], targets),
        )
