"""What validation.json says of a bundle or an engine, if it is of that very one."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from nemo_trt import signature
from nemo_trt.bundle import Bundle
from nemo_trt.digest import file_digest
from nemo_trt.errors import DAMAGED_JSON, RequestError
from nemo_trt.manifest import CUDA_VALIDATION_FILE, VALIDATION_FILE
from nemo_trt.tolerances import (
    CASE_FIGURES,
    CASES,
    case_failures,
    language_failures,
    perplexity_failures,
    tolerance_of,
)
from nemo_trt.utf8 import json_text
from nemo_trt.where import CPU, Where

from .coverage import Coverage, judged_files

SCHEMA_VERSION: Final = 2
"""Counts changes of the file and of what it takes to pass: a verdict of another number is stale."""
PASS: Final = "pass"
FAIL: Final = "fail"
_MAX_BYTES = 2**28


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the validator said, and of what.

    Attributes:
        words: "pass", "fail", or why there is none: "none yet: ...", "stale: ...", "damaged: ...",
            "unsigned: ...".
        coverage: what was judged; None where the words are neither "pass" nor "fail".
        remedy: the command that makes a verdict that counts.
    """

    words: str
    coverage: Coverage | None = None
    remedy: str

    @property
    def passed(self) -> bool:
        """Whether what is there now was judged, and passed."""
        return self.words == PASS

    def within(self, max_batch: int | None, max_seq_len: int | None) -> Self:
        """This verdict for so many rows of so many tokens: of more than were judged it says
        nothing."""
        if self.coverage is None or not self.passed:
            return self
        beyond = [
            (f"{wanted} {words}, judged were {judged}", f" {option} {wanted}")
            for words, option, wanted, judged in (
                ("rows", "--max-batch", max_batch, self.coverage.max_batch),
                ("tokens a row", "--max-seq-len", max_seq_len, self.coverage.max_seq_len),
            )
            if wanted is not None and wanted > judged
        ]
        if not beyond:
            return self
        return replace(
            self,
            words="beyond what was judged: " + "; ".join(words for words, _ in beyond),
            remedy=self.remedy + "".join(options for _, options in beyond),
        )


def verdict_path(bundle: Bundle, where: Where) -> Path:
    """The file of a verdict: in an engine's folder, or of the bundle's own in the bundle."""
    if where.kind == "engine":
        return bundle.engine_folder(where.engine) / VALIDATION_FILE
    return bundle.path / (CUDA_VALIDATION_FILE if where.kind == "cuda" else VALIDATION_FILE)


def read_verdict(bundle: Bundle, where: Where = CPU, *, public_key: bytes | None = None) -> Verdict:
    """Read a verdict, and compare all that it covers but the weights with what is there now.

    An engine, or CUDA, which compute with less than fp32, needs the bundle's own verdict on the CPU
    beside its own: their limits alone do not see every fault. See `altered_weights` for the rest.

    Args:
        where: what runs the bundle.
        public_key: PEM of the Ed25519 key whose signature the verdict must bear.

    Raises:
        BuildError: the engine has no plain name.
        MachineError: a signature is asked for and `cryptography` is not installed.
        RequestError: the key is no Ed25519 key.
    """
    verdict = _read(bundle, where, public_key)
    if not verdict.passed or where.kind == "cpu" or verdict.coverage is None:
        return verdict
    if verdict.coverage.compute_precision == "fp32":
        return verdict
    own = _read(bundle, CPU, public_key)
    if own.passed and own.coverage is not None:
        shared = own.coverage.digests.keys() & verdict.coverage.digests.keys()
        if all(own.coverage.digests[name] == verdict.coverage.digests[name] for name in shared):
            return verdict
        words = "stale: the bundle and what runs it were judged with different files"
        return Verdict(words=words, remedy=verdict.remedy)
    words = f"incomplete: {where} passed, but its bundle's own verdict on the CPU is {own.words!r}"
    return Verdict(words=words, remedy=own.remedy)


def altered_weights(bundle: Bundle, verdict: Verdict) -> str | None:
    """Digest every byte of the weight files; what differs from what was judged, in words.

    An engine's plans hold its weights: their digests stand in engine.json, which `read_verdict`
    compares, and the session compares the plans with it while it loads them.
    """
    coverage = verdict.coverage
    if coverage is None or coverage.where.kind == "engine":
        return None
    for name in (weight.file for weight in bundle.manifest.weights):
        try:
            digest = file_digest(bundle.path / name)
        except OSError as error:
            return f"stale: {name} cannot be read: {error}"
        if coverage.digests.get(name) != digest:
            return f"stale: {name} was altered after it was judged"
    return None


def signed_text(data: dict[str, Any], private_key: bytes | None = None) -> str:
    """The text of validation.json."""
    if private_key is not None:
        data = {**data, signature.FIELD: signature.sign(data, private_key)}
    return json_text(data, allow_nan=False)


def _read(bundle: Bundle, where: Where, public_key: bytes | None) -> Verdict:
    file = verdict_path(bundle, where)
    remedy = f"nemo-trt validate {bundle}{where.option}"

    def refused(words: str) -> Verdict:
        return Verdict(words=words, remedy=remedy)

    try:
        if file.stat().st_size > _MAX_BYTES:
            return refused(f"damaged: {file.name} is larger than {_MAX_BYTES} bytes")
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return refused(f"none yet: run {remedy}")
    except (OSError, *DAMAGED_JSON) as error:
        return refused(f"damaged: {file.name} cannot be read: {error}")
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
        return refused(f"stale: {file.name} is not of this version of nemo-trt")
    try:
        coverage = Coverage.from_dict(data["coverage"])
        inconsistent = _inconsistent(data)
        words, bundle_id = data["verdict"], data["bundle_id"]
    except (*DAMAGED_JSON, RequestError) as error:
        return refused(f"damaged: {file.name} lacks what a verdict holds: {error!r}")
    if inconsistent:
        return refused(f"damaged: {inconsistent}")
    if public_key is not None and (unsigned := signature.problem(data, public_key)):
        return refused(f"unsigned: {unsigned}")
    if bundle_id != bundle.bundle_id:
        return refused("stale: it is of another bundle")
    if coverage.where != where:
        return refused(f"stale: it is of {coverage.where}, not of {where}")
    if altered := _altered(bundle, coverage):
        return refused(f"stale: {altered}")
    return Verdict(words=words, coverage=coverage, remedy=remedy)


def _altered(bundle: Bundle, coverage: Coverage) -> str | None:
    """What of the small files differs from what was judged."""
    weights = {weight.file for weight in bundle.manifest.weights}
    files = judged_files(bundle, coverage.where)
    if missing := sorted((coverage.digests.keys() | weights) - files.keys()):
        return f"{missing[0]} was judged and is not there"
    if unknown := sorted(files.keys() - coverage.digests.keys()):
        return f"{unknown[0]} was not there when it was judged"
    for name in sorted(files.keys() - weights):
        try:
            if file_digest(files[name]) != coverage.digests[name]:
                return f"{name} was altered after it was judged"
        except OSError as error:
            return f"{name} cannot be read: {error}"
    return None


def _inconsistent(data: Mapping[str, Any]) -> str | None:
    """What of a verdict contradicts itself: figures, limits, failures and verdict."""
    precision = data["coverage"]["compute_precision"]
    limits = data["limits"]
    if limits != asdict(tolerance_of(precision)):
        return f"its limits are not those of {precision}"
    failed = list(data["failures"])
    perplexity = _numbers(data["perplexity"])
    wrong = perplexity_failures(perplexity, limits)
    if data["settings"]["perplexity_not_judged"] is None:
        wrong += language_failures(perplexity)
    if not failed and wrong:
        return wrong[0]
    cases = data["cases"]
    if missing := set(CASES) - {case["name"] for case in cases}:
        return f"it lacks the case {min(missing)!r}"
    for case in cases:
        figures = _numbers({name: case[name] for name in CASE_FIGURES})
        count = len(case["positions"])
        wrong = case_failures(figures, count, limits) if count else ("no position was compared",)
        if not case["failures"] and (wrong or _others(case, figures)):
            return f"case {case['name']!r}: {(wrong or _others(case, figures))[0]}"
        failed += case["failures"]
    said = FAIL if failed else PASS
    if data["verdict"] != said:
        return f"its cases say {said!r}, its verdict {data['verdict']!r}"
    return None


def _others(case: Mapping[str, Any], figures: Mapping[str, float]) -> tuple[str, ...]:
    """Figures of a case that are not those of its positions."""
    values = {
        name: [float(value) for value in case["per_position"][name]]
        for name in ("relative_l2", "cosine", "kl", "top1", "top5")
    }
    if any(len(one) != len(case["positions"]) for one in values.values()):
        return ("its positions and their figures differ in number",)
    count = len(case["positions"])
    found = {
        "max_relative_l2": max(values["relative_l2"]),
        "min_cosine": min(values["cosine"]),
        "max_kl": max(values["kl"]),
        "mean_kl": sum(values["kl"]) / count,
        "top1": sum(values["top1"]) / count,
        "top5": sum(values["top5"]) / count,
    }
    return tuple(
        f"{name} is {figures[name]:g} and its positions say {value:g}"
        for name, value in found.items()
        if abs(value - figures[name]) > 1e-4 * max(abs(value), abs(figures[name])) + 1e-12
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Figures as numbers; what JSON lacks stands as text ("inf", "nan")."""
    return {name: float(value) for name, value in values.items()}
