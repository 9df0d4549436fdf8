"""Runs every case on a session in lockstep with the reference, and judges."""

import math
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain

import numpy as np

from nemo_trt import __version__
from nemo_trt.digest import quick_digest
from nemo_trt.engines.session import Session
from nemo_trt.engines.tokenizers import Tokenizer
from nemo_trt.errors import MachineError, RequestError
from nemo_trt.export.checkpoints import Checkpoint
from nemo_trt.progress import Progress, Silent

from . import cases
from .cases import Observation, TokenSequence
from .metrics import Metrics, compare, negative_log_likelihood
from .reference import Reference, compute_reference
from .report import CaseReport, Report, broken_case
from .texts import HELD_OUT
from .tolerances import Tolerance, tolerance_of

MAX_PROMPT_TOKENS = 64
MIN_PROMPT_TOKENS = 4
LONG_TOKENS = 8
_NUM_RANDOM = 6


def make_sequences(
    session: Session, tokenizer: Tokenizer | None, prompts: Sequence[str] | None = None
) -> list[TokenSequence]:
    """The sequences of a run; the last one stands near the context limit.

    Without a tokenizer the tokens are seeded random numbers.

    Raises:
        RequestError: a prompt is too short to say anything, or no prompt was given.
    """
    vocab_size = session.config.vocab_size
    if tokenizer is None:
        rng = np.random.default_rng(0)
        lengths = range(20, 20 + 9 * _NUM_RANDOM, 9)
        every = [rng.integers(0, vocab_size, length).tolist() for length in lengths]
    else:
        every = [tokenizer.encode(prompt, bos=True) for prompt in prompts or HELD_OUT]
    for index, tokens in enumerate(every):
        if len(tokens) < MIN_PROMPT_TOKENS:
            raise RequestError(
                f"Prompt {index + 1} must have at least {MIN_PROMPT_TOKENS} tokens, "
                f"got {len(tokens)}."
            )
    limit = min(MAX_PROMPT_TOKENS, session.max_seq_len - cases.DECODE_STEPS)
    sequences = [
        TokenSequence(name=f"text {index + 1}", tokens=tuple(tokens[:limit]))
        for index, tokens in enumerate(every)
    ]
    far = sequences[0].tokens[:LONG_TOKENS]
    end = min(session.max_seq_len, session.config.max_position_embeddings)
    sequences.append(TokenSequence(name="far", tokens=far, start=end - len(far)))
    return sequences


def validate(
    session: Session,
    checkpoint: Checkpoint,
    sequences: Sequence[TokenSequence],
    *,
    bundle_id: str,
    engine: dict[str, str],
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
    reference = reference or compute_reference(checkpoint, sequences, progress)
    limits = tolerance_of(session.compute_precision)
    near, far = list(sequences[:-1]), sequences[-1]
    progress.phase("engine: cases", len(cases.CASES) + 1)
    reports = []
    likelihoods: list[tuple[np.ndarray, np.ndarray]] = []
    for name, observations in chain(
        ((name, case(session, near)) for name, case in cases.CASES.items()),
        ((cases.LONG_POSITION, cases.long_position(session, far, reference.context)),),
    ):
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
    return Report(
        bundle_id=bundle_id,
        engine={**engine, "compute_precision": session.compute_precision},
        reference={
            "path": str(checkpoint.path.resolve()),
            "format": checkpoint.format,
            "dtype": reference.dtype,
            "noise": reference.noise,
            "transformers": reference.transformers_version,
            "quick_digests": {p.name: quick_digest(p) for p in checkpoint.weight_files},
        },
        settings={
            "nemo-trt": __version__,
            "python": platform.python_version(),
            "sequences": [
                {"name": one.name, "tokens": len(one.tokens), "start": one.start}
                for one in sequences
            ],
        },
        limits=asdict(limits),
        perplexity=perplexity,
        cases=tuple(reports),
        failures=_judge_perplexity(perplexity, limits),
    )


def _judge(
    name: str, seen: list[Observation], reference: Reference, limits: Tolerance
) -> CaseReport:
    parts: list[Metrics] = []
    positions: list[tuple[str, int]] = []
    for one in seen:
        count = len(one.logits)
        expected = reference.logits[one.sequence.name][one.first : one.first + count]
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
    failures = []
    for figure, value in figures.items():
        limit_name = f"min_{figure}" if figure in ("top1", "top5") else figure
        limit = getattr(limits, limit_name)
        if figure in ("top1", "top5"):  # of few positions a share of one is allowed to miss
            limit = math.floor(limit * len(positions)) / len(positions)
        if not (value >= limit if limit_name.startswith("min") else value <= limit):
            words = "at least" if limit_name.startswith("min") else "at most"
            failures.append(f"{figure} must be {words} {limit:g}, got {value:.6g}")
    return CaseReport(
        name=name,
        max_abs=float(every["max_abs"].max()),
        mean_abs=float(every["mean_abs"].mean()),
        **figures,
        failures=tuple(failures),
        positions=tuple(positions),
        per_position={metric: tuple(values.tolist()) for metric, values in every.items()},
    )


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


def _judge_perplexity(perplexity: dict[str, float], limits: Tolerance) -> tuple[str, ...]:
    ratio = perplexity["engine"] / perplexity["reference"]  # NaN where no case gave logits
    limit = limits.max_perplexity_ratio
    if 1 / limit <= ratio <= limit:
        return ()
    return (f"perplexity ratio must be 1 within a factor {limit:g}, got {ratio:.6g}",)
