"""Our session at full depth against transformers on the same GPU, in fp32 and in BF16.

Prefill, decode through the cache, a ragged batch, and positions at the end of the context behind a
synthetic cache. transformers in BF16 against itself in fp32 stands beside it: no BF16 engine can
be asked to be nearer.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import torch

from nemo_trt.engines.session import Session
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.tolerances import tolerance_of
from nemo_trt.validate.cases import Observation, long_position
from nemo_trt.validate.metrics import compare
from nemo_trt.validate.reference import Reference, compute_reference
from nemo_trt.validate.sequences import TokenSequence
from on_gpu.scale import Work
from on_gpu.session import opened

_LONG_TOKENS = 8
_KEPT = 33  # positions of a long prefill that are compared: each costs a row of logits


def run_near(work: Work) -> dict[str, Any]:
    """Prefill, decode and a ragged batch."""
    sequences = make_sequences(work)[:-1]
    references = references_of(work, sequences)
    results: dict[str, list[Observation]] = {}
    longest = max(len(one.tokens) for one in sequences)
    session = opened(work, max_batch=len(work.scale.ragged), max_seq_len=longest)
    with closing(session):
        results["prefill"] = list(prefill(session, work, sequences[0]))
        results["decode"] = list(decode(session, work, sequences[0]))
        results["ragged batch"] = list(ragged(session, work, sequences[1:]))
        return verdict_of(session, results, references)


def run_far(work: Work) -> dict[str, Any]:
    """The last positions of the context, behind a synthetic cache of all before."""
    *near, far = make_sequences(work)
    short = near[1]  # the cache is made of its keys and values
    references = references_of(work, [short, far])
    session = opened(work, max_batch=1, max_seq_len=far.start + len(far.tokens))
    with closing(session):
        seen = list(long_position(session, (far,), references["fp32"].context))
        return verdict_of(session, {"long position": seen}, references)


def references_of(work: Work, sequences: list[TokenSequence]) -> dict[str, Reference]:
    """transformers in fp32 and in BF16, layer by layer on the device."""
    checkpoint = open_checkpoint(work.checkpoint)
    found = {
        name: compute_reference(checkpoint, sequences, device=work.scale.device, dtype=dtype)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    if work.scale.device == "cuda":
        torch.cuda.empty_cache()
    return found


def verdict_of(
    session: Session, results: dict[str, list[Observation]], references: dict[str, Reference]
) -> dict[str, Any]:
    """Every case's rows, and which of ours are beyond the tolerances."""
    limit = tolerance_of(session.compute_precision)
    rows = [row for case, seen in results.items() for row in judged(case, seen, references)]
    failed = [
        row["case"]
        for row in rows
        if row["who"] == "ours"
        and not (row["max_relative_l2"] <= limit.max_relative_l2 and row["max_kl"] <= limit.max_kl)
    ]
    return {
        "engine": session.describe(),
        "precision": session.compute_precision,
        "failed": failed,
        "cases": rows,
    }


def make_sequences(work: Work) -> list[TokenSequence]:
    """A long one, the ragged rows, and one at the end of the context."""
    scale = work.scale
    rng = np.random.default_rng(0)

    def drawn(length: int) -> tuple[int, ...]:
        return tuple(rng.integers(3, scale.config.vocab_size, length).tolist())

    first = TokenSequence(name="long", tokens=drawn(scale.prefill + scale.decode_steps))
    rows = [
        TokenSequence(name=f"row {index}", tokens=drawn(length + 8))
        for index, length in enumerate(scale.ragged)
    ]
    end = scale.config.max_position_embeddings
    far = TokenSequence(name="far", tokens=first.tokens[:_LONG_TOKENS], start=end - _LONG_TOKENS)
    return [first, *rows, far]


def prefill(session: Session, work: Work, sequence: TokenSequence) -> Iterator[Observation]:
    """One step over all; logits of some positions."""
    length = work.scale.prefill
    kept = np.unique(np.linspace(0, length - 1, min(_KEPT, length)).astype(np.int64))
    tokens = np.array([sequence.tokens[:length]])
    session.bind(length)
    logits = session.step(tokens, np.zeros(1, np.int64), kept[None])[0]
    for index, position in enumerate(kept):
        yield Observation(sequence, int(position), logits[index : index + 1].copy())


def decode(session: Session, work: Work, sequence: TokenSequence) -> Iterator[Observation]:
    """The tokens after the prefill, one a step."""
    for index in range(work.scale.prefill, len(sequence.tokens)):
        session.bind(index + 1)
        token = np.array([[sequence.tokens[index]]])
        logits = session.step(token, np.array([index]), np.zeros((1, 1), np.int64))
        yield Observation(sequence, index, logits[0].copy())


def ragged(session: Session, work: Work, sequences: list[TokenSequence]) -> Iterator[Observation]:
    """One padded prefill of rows of different lengths, then steps at different positions."""
    lengths = np.array(work.scale.ragged)
    padded = np.zeros((len(sequences), lengths.max()), np.int64)
    for row, sequence in enumerate(sequences):
        padded[row, : lengths[row]] = sequence.tokens[: lengths[row]]
    session.bind(int(lengths.max()) + 8)
    zeros = np.zeros((len(sequences), 1), np.int64)
    logits = session.step(padded, zeros[:, 0], lengths[:, None] - 1).copy()
    for row, sequence in enumerate(sequences):
        yield Observation(sequence, int(lengths[row]) - 1, logits[row])
    for step in range(8):
        where = lengths + step
        tokens = np.array([[s.tokens[w]] for s, w in zip(sequences, where, strict=True)])
        logits = session.step(tokens, where, zeros).copy()
        for row, sequence in enumerate(sequences):
            yield Observation(sequence, int(where[row]), logits[row])


def judged(
    case: str, seen: list[Observation], references: dict[str, Reference]
) -> Iterator[dict[str, Any]]:
    """Ours, and transformers in BF16, each against transformers in fp32."""
    exact = references["fp32"]

    def rows_of(reference: Reference) -> np.ndarray:
        return np.concatenate(
            [
                reference.logits[one.sequence.name][one.first : one.first + len(one.logits)]
                for one in seen
            ]
        )

    ours = np.concatenate([one.logits for one in seen])
    for who, logits in (("ours", ours), ("transformers bf16", rows_of(references["bf16"]))):
        metrics = compare(logits, rows_of(exact), noise=exact.noise)
        yield {
            "case": case,
            "who": who,
            "positions": len(logits),
            "max_relative_l2": float(metrics.relative_l2.max()),
            "mean_relative_l2": float(metrics.relative_l2.mean()),
            "max_kl": float(metrics.kl.max()),
            "top1": float(metrics.top1.mean()),
            "top5": float(metrics.top5.mean()),
        }


def table(found: dict[str, Any]) -> str:
    """A row a case and contender."""
    lines = [
        "| case | positions | who | rel L2 max | mean | KL max | top-1 | top-5 |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['case']} | {row['positions']} | {row['who']} | {row['max_relative_l2']:.2e} "
        f"| {row['mean_relative_l2']:.2e} | {row['max_kl']:.1e} | {row['top1']:.1%} "
        f"| {row['top5']:.1%} |"
        for row in found["cases"]
    ]
    failed = ", ".join(found["failed"]) or "none"
    lines.append(f"\nBeyond the tolerances of {found['precision']}: {failed}.")
    return "\n".join(lines)
