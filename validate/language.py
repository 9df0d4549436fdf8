"""An absolute check: a language model predicts the built-in texts, whoever read its weights.

A fault in reading that engine and reference share cancels out of every comparison. A coarse one,
such as layers in another order, does not cancel out here. SmolLM2-135M, the weakest model in use
here, has a perplexity of 20. With q and k rows left interleaved it stays below the limit: such a
fault is seen only where another package reads the format.
"""

from collections.abc import Mapping

from nemo_trt.export.checkpoints import Checkpoint

from .sequences import Sequences

MAX_PERPLEXITY = 100.0
"""Five times that of the weakest sound model."""


def unjudged(checkpoint: Checkpoint, sequences: Sequences) -> str | None:
    """Why the perplexity says nothing, in words; None where it is judged."""
    if checkpoint.random_weights:
        return "the checkpoint says that its weights are random"
    return {
        "built-in": None,
        "given": "the texts are not the built-in ones",
        "random": "there is no tokenizer, so the tokens are random",
    }[sequences.origin]


def language_failures(perplexity: Mapping[str, float]) -> tuple[str, ...]:
    """What the perplexities of "engine" and "reference" on the built-in texts fail, in words."""
    return tuple(
        f"perplexity of the {who} must be at most {MAX_PERPLEXITY:g} on the built-in texts, got "
        f"{value:.6g}: this is no language model. Its weights were read or stored wrongly"
        for who, value in perplexity.items()
        if not value <= MAX_PERPLEXITY
    )
