"""NeMo's formats, written by PyTorch's own writers, against the Hugging Face format."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from nemo_trt.digest import weights_digest
from nemo_trt.export.checkpoints import open_checkpoint

from . import megatron
from .conftest import FORMS

pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]


def require_same(path: Path, tiny_checkpoint: Path) -> None:
    ours, theirs = open_checkpoint(path), open_checkpoint(tiny_checkpoint)
    assert ours.format == "nemo"
    assert dict(ours.config.tensors()) == dict(theirs.config.tensors())
    for name in ("rope_theta", "rms_norm_eps", "max_position_embeddings", "num_kv_heads"):
        assert getattr(ours.config, name) == getattr(theirs.config, name)
    for name, tensor in theirs.tensors.items():
        found = ours.tensors[name]
        np.testing.assert_array_equal(found.read(), tensor.read(), name)
        middle = tensor.shape[0] // 3
        np.testing.assert_array_equal(
            found.rows(middle, middle + 3), tensor.rows(middle, middle + 3)
        )
    assert weights_digest(ours.ordered_tensors) == weights_digest(theirs.ordered_tensors)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_model(
    form: str, written: dict[str, Path], tiny_checkpoint: Path
) -> None:
    require_same(written[form], tiny_checkpoint)


@pytest.mark.parametrize("form", ["torch_dist", "zarr", "TP 2, PP 2", "one file"])
@pytest.mark.parametrize("mode", ["w:", "w:gz"])
def test_archives_are_read_in_place(
    form: str, mode: str, written: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = megatron.pack(written[form], tmp_path / "model.nemo", mode)
    require_same(path, tiny_checkpoint)
    assert list(tmp_path.iterdir()) == [path]


def test_many_chunks_of_a_stack(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As Megatron writes them, a chunk a layer, by PyTorch's ShardedTensor."""
    import torch.distributed as dist_lib
    import torch.distributed.checkpoint as dcp
    from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
    from torch.distributed._shard.sharded_tensor.metadata import (
        ShardedTensorMetadata,
        TensorProperties,
    )

    dist_lib.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        state = {}
        for key, tensor in megatron.stacked(megatron.packed(tiny_checkpoint)).items():
            shards = [
                Shard.from_tensor_and_offsets(
                    tensor[n : n + 1].clone(), [n, *[0] * (tensor.dim() - 1)], 0
                )
                for n in range(tensor.shape[0])
            ]
            if not key.startswith(megatron.LAYER):
                shards = [Shard.from_tensor_and_offsets(tensor, [0] * tensor.dim(), 0)]
            metadata = ShardedTensorMetadata(
                shards_metadata=[shard.metadata for shard in shards],
                size=tensor.size(),
                tensor_properties=TensorProperties(dtype=tensor.dtype),
            )
            state[f"model.{key}"] = ShardedTensor._init_from_local_shards_and_global_metadata(
                shards, metadata
            )
        folder = tmp_path / "model"
        megatron.write_config(folder, megatron.settings(tiny_checkpoint))
        dcp.save(state, storage_writer=dcp.FileSystemWriter(folder / "model_weights"))
    finally:
        dist_lib.destroy_process_group()
    require_same(folder, tiny_checkpoint)


def test_a_bundle_from_an_archive_computes_the_same_logits(
    archive: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from nemo_trt.engines.ort_session import OrtSession
    from nemo_trt.export.bundle import export_bundle

    ids = np.random.default_rng(0).integers(0, 512, (1, 20))
    logits = []
    for number, source in enumerate((archive, tiny_checkpoint)):
        bundle = tmp_path / f"bundle{number}"
        export_bundle(source, bundle)
        with OrtSession.open(bundle, max_batch=1, max_seq_len=64, threads=1) as session:
            logits.append(session.step(ids, np.zeros(1, int), np.arange(20)[None]).copy())
    np.testing.assert_array_equal(logits[0], logits[1])
    assert np.abs(logits[0]).max() > 0


def test_padded_vocabularies_are_cut(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = {**megatron.settings(tiny_checkpoint), "vocab_size": 512}
    megatron.write_config(tmp_path / "x", config)
    state = megatron.prefixed(megatron.packed(tiny_checkpoint), "model.")
    for name in ("model.embedding.word_embeddings.weight", "model.output_layer.weight"):
        state[name] = torch.cat([state[name], torch.full((128, state[name].shape[1]), 9.0)]).to(
            torch.bfloat16
        )
    torch.save(state, tmp_path / "x" / "model_weights.ckpt")
    require_same(tmp_path / "x", tiny_checkpoint)


def test_the_vocabulary_of_an_archive_becomes_tekken(
    written: dict[str, Path], tmp_path: Path
) -> None:
    """NeMo keeps the list of tokens alone; with it, ids are those of the whole tekken.json."""
    import mistral_common
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    from nemo_trt.engines.tokenizers import open_tokenizer
    from nemo_trt.export.checkpoints import unpacked

    original = Path(mistral_common.__file__).parent / "data" / "tekken_240718.json"
    folder = tmp_path / "model"
    shutil.copytree(written["torch_dist"], folder)
    name = "0123456789abcdef0123456789abcdef_tekken.json"
    vocabulary = json.loads(original.read_text())["vocab"]
    (folder / name).write_text(json.dumps(vocabulary))
    config = yaml.safe_load((folder / "model_config.yaml").read_text())
    config["tokenizer"]["vocab_file"] = f"nemo:{name}"
    megatron.write_config(folder, config)
    opened = open_checkpoint(megatron.pack(folder, tmp_path / "x.nemo"))
    assert (opened.config.bos_token_id, opened.config.eos_token_ids) == (1, (2,))
    with unpacked(opened.tokenizer_files) as found:
        assert found is not None
        text = "Übung 123 [INST] 日本"
        expected = Tekkenizer.from_file(original).encode(text, bos=True, eos=False)
        assert open_tokenizer(found).encode(text, bos=True) == expected
