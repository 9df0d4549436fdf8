"""Whether a bundle may be served: its verdict, and its weights while they load."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from nemo_trt.bundle import Bundle
from nemo_trt.engines.runner import Runner
from nemo_trt.errors import BundleError
from nemo_trt.signature import read_key
from nemo_trt.verdict import Verdict, altered_weights, read_verdict
from nemo_trt.where import Where

from .options import ServeOptions


def require_verdict(
    bundle: Bundle,
    where: Where,
    options: ServeOptions,
    *,
    max_batch: int | None = None,
    max_seq_len: int | None = None,
) -> Verdict:
    """What the validator said of a bundle where it runs.

    Args:
        max_batch, max_seq_len: what is asked for; None takes what was judged at the most.

    Raises:
        BundleError: it did not say "pass", or not of so many rows and tokens, and must have.
        BuildError: the engine has no plain name.
        MachineError, RequestError: see `read_verdict`.
    """
    public_key = read_key(options.verify_key) if options.verify_key else None
    verdict = read_verdict(bundle, where, public_key=public_key).within(max_batch, max_seq_len)
    _require(bundle, verdict, options)
    return verdict


def open_judged(
    bundle: Bundle, verdict: Verdict, options: ServeOptions, opener: Callable[[], Runner]
) -> tuple[Runner, Verdict]:
    """Open a Runner, and meanwhile digest every byte of the weights that were judged.

    Returns:
        The Runner, and the verdict: another one where the weights were altered.

    Raises:
        BundleError: the weights were altered and must not have been.
    """
    if not verdict.passed:
        return opener(), verdict
    with ThreadPoolExecutor(1, thread_name_prefix="nemo-trt digest") as pool:
        altered = pool.submit(altered_weights, bundle, verdict)
        runner = opener()
        try:
            if words := altered.result():
                verdict = replace(verdict, words=words)
                _require(bundle, verdict, options)
        except BaseException:
            runner.close()
            raise
    return runner, verdict


def _require(bundle: Bundle, verdict: Verdict, options: ServeOptions) -> None:
    if not verdict.passed and not options.allow_unvalidated:
        raise BundleError(
            f"{bundle} must have passed validation, got {verdict.words!r}. Run {verdict.remedy}, "
            "or serve it all the same with --allow-unvalidated."
        )
