"""Names of tensors as tools leave them: prefixes of wrappers, and a stored copy of a tied head."""

from nemo_trt.config import ModelConfig
from nemo_trt.errors import CheckpointError
from nemo_trt.tensors import LazyTensor, renamed, same_numbers

# torch.compile, DistributedDataParallel, PEFT, and the language model of a multimodal class.
_PREFIXES = ("_orig_mod.", "module.", "base_model.model.", "language_model.")
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def without_prefixes(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors under canonical names, where every name has the same prefix of a wrapper."""
    prefix = ""
    first = next(iter(tensors), "")
    while found := next((p for p in _PREFIXES if first.startswith(prefix + p)), None):
        prefix += found
    if not prefix or not all(name.startswith(prefix) for name in tensors):
        return tensors
    return {
        name.removeprefix(prefix): renamed(tensor, name.removeprefix(prefix))
        for name, tensor in tensors.items()
    }


def without_tied_head(
    tensors: dict[str, LazyTensor], config: ModelConfig, where: object
) -> dict[str, LazyTensor]:
    """The tensors without a head that is stored although it is the embedding.

    Raises:
        CheckpointError: the stored head is another one. (transformers would ignore it.)
    """
    head, embedding = tensors.get(_HEAD), tensors.get(_EMBEDDING)
    if not config.tied_head or head is None or embedding is None:
        return tensors
    if not same_numbers(head, embedding):
        raise CheckpointError(
            f"{_HEAD} in {where} must equal {_EMBEDDING}, since tie_word_embeddings is true, got "
            "other numbers. If the head is a layer of its own, set tie_word_embeddings to false; "
            "else remove it from the weights."
        )
    return {name: tensor for name, tensor in tensors.items() if name != _HEAD}
