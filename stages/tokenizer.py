"""Opens the tokenizer that a bundle is to carry, before the work of writing one."""

from pathlib import Path

from nemo_trt.bundle import Bundle
from nemo_trt.engines.tokenizers import Tokenizer, open_tokenizer
from nemo_trt.errors import BundleError, CheckpointError, RequestError
from nemo_trt.export.checkpoints import Checkpoint, unpacked

# Tokenizers that are not read: SentencePiece's, GPT-2's two files, tiktoken's.
_OTHER_FORMS = ("*.model", "tokenizer.model*", "vocab.json", "*.tiktoken")
_CONVERT = (
    'python -c "from transformers import AutoTokenizer as T; '
    "T.from_pretrained('{folder}').save_pretrained('{folder}')\""
)


def require_tokenizer(checkpoint: Checkpoint) -> None:
    """Check that the checkpoint's tokenizer can be used with its model; none is fine.

    A chat template that cannot be compiled stops chats alone, and is no reason to refuse.

    Raises:
        CheckpointError: the tokenizer is of a form that is not read, is damaged, or has ids that
            the model does not have.
    """
    _require_known_form(checkpoint)
    with unpacked(checkpoint.tokenizer_files) as folder:
        if folder is None:
            return
        try:
            tokenizer = open_tokenizer(folder)
            _require_usable(tokenizer)
        except BundleError as error:
            where = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
            words = str(error).replace(str(folder), str(where))
            raise CheckpointError(f"The tokenizer cannot be used: {words}") from error
    if tokenizer.vocab_size > checkpoint.config.vocab_size:
        raise CheckpointError(
            f"Ids of the tokenizer must be below {checkpoint.config.vocab_size}, the vocab_size of "
            f"{checkpoint.path}, got up to {tokenizer.vocab_size - 1}. Remove the tokens that were "
            "added to the tokenizer, or resize the model's embedding."
        )


def tokenizer_note(bundle: Bundle) -> str | None:
    """What a user should know about a bundle's tokenizer before using it; None when all is well."""
    folder = bundle.tokenizer_folder
    if folder is None:
        return (
            "The bundle has no tokenizer: the checkpoint has neither tokenizer.json nor "
            "tekken.json. Prompts must be token ids."
        )
    try:
        open_tokenizer(folder).require_usable()
    except RequestError as error:
        return f"Chats will not work. {error}"
    return None


def _require_usable(tokenizer: Tokenizer) -> None:
    try:
        tokenizer.require_usable()
    except RequestError:
        return  # of the chat template: see `tokenizer_note`


def _require_known_form(checkpoint: Checkpoint) -> None:
    names = {file.name for file in checkpoint.tokenizer_files}
    if not checkpoint.path.is_dir() or names & {"tokenizer.json", "tekken.json"}:
        return
    folder = checkpoint.path
    other = next((path for form in _OTHER_FORMS for path in sorted(folder.glob(form))), None)
    if other is not None:
        raise CheckpointError(
            f"A tokenizer must be a tokenizer.json or a tekken.json, got {other}, which is not "
            f"read. Convert it: {_CONVERT.format(folder=_quotable(folder))}. Or move it away, to "
            "export without a tokenizer."
        )


def _quotable(folder: Path) -> str:
    return str(folder).replace("'", "\\'")
