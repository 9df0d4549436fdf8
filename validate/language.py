"""Whether the perplexity of a validation says anything of the model.

A fault in reading that engine and reference share cancels out of every comparison. A coarse one,
such as layers in another order, does not cancel out of the perplexity on the built-in texts
(`nemo_trt.tolerances.language_failures`). With q and k rows left interleaved SmolLM2-135M stays
below its limit: such a fault is seen only where another package reads the format.
"""

from nemo_trt.export.checkpoints import Checkpoint

from .sequences import Sequences


def unjudged(checkpoint: Checkpoint, sequences: Sequences) -> str | None:
    """Why the perplexity says nothing, in words; None where it is judged."""
    if checkpoint.random_weights:
        return "the checkpoint says that its weights are random"
    return {
        "built-in": None,
        "given": "the texts are not the built-in ones",
        "random": "there is no tokenizer, so the tokens are random",
    }[sequences.origin]
