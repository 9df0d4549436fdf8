"""Formats that we write: read by PyTorch, transformers and ourselves, equal bit for bit."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nemo_trt.digest import weights_digest
from nemo_trt.errors import CheckpointError, ExportError
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.export.convert import FORMATS, convert
from nemo_trt.export.convert import huggingface as hf_writer

from . import megatron
from .test_mistral import interleaved

pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]
NAMES = {"hf": "hf", "mistral": "mistral", "nemo": "x.nemo"}


@pytest.fixture(scope="module")
def made(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("formats")
    for kind, name in NAMES.items():
        convert(open_checkpoint(tiny_checkpoint), root / name, kind)
    return {kind: root / name for kind, name in NAMES.items()}


@pytest.mark.parametrize("there", FORMATS)
@pytest.mark.parametrize("back", FORMATS)
def test_there_and_back_is_the_same_model(
    there: str, back: str, made: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    first = open_checkpoint(tiny_checkpoint)
    second = open_checkpoint(made[there])
    convert(second, tmp_path / NAMES[back], back)
    third = open_checkpoint(tmp_path / NAMES[back])
    assert (second.format, third.format) == (there, back)
    expected = weights_digest(first.ordered_tensors)
    assert weights_digest(second.ordered_tensors) == expected
    assert weights_digest(third.ordered_tensors) == expected
    for name in ("rope_theta", "rms_norm_eps", "max_position_embeddings", "tied_head"):
        assert getattr(third.config, name) == getattr(first.config, name)


def test_pytorch_reads_our_archive(
    made: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """By its own distributed reader, against tensors that are packed without our code."""
    import torch.distributed.checkpoint as dcp

    with tarfile.open(made["nemo"]) as tar:
        tar.extractall(tmp_path, filter="data")
    expected = megatron.prefixed(megatron.stacked(megatron.packed(tiny_checkpoint)), "model.")
    state = {name: torch.empty_like(tensor) for name, tensor in expected.items()}
    reader = dcp.FileSystemReader(tmp_path / "model_weights")
    assert set(reader.read_metadata().state_dict_metadata) == set(expected)
    dcp.load(state, storage_reader=reader, no_dist=True)
    for name, tensor in expected.items():
        assert torch.equal(state[name].view(torch.int16), tensor.view(torch.int16)), name


def test_transformers_reads_our_folder(
    made: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(hf_writer, "SHARD_BYTES", 100_000)
    convert(open_checkpoint(made["mistral"]), tmp_path / "sharded", "hf")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    ids = torch.arange(3, 40)[None]
    logits = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits
        for path in (tmp_path / "sharded", made["hf"], tiny_checkpoint)
    ]
    assert torch.equal(logits[0], logits[2]) and torch.equal(logits[1], logits[2])


def test_rows_of_q_are_mistrals(made: dict[str, Path], tiny_checkpoint: Path) -> None:
    config = open_checkpoint(tiny_checkpoint).config
    theirs = load_file(tiny_checkpoint / "model.safetensors")
    ours = load_file(made["mistral"] / "consolidated.safetensors")
    for mine, name, heads in (("wq", "q", config.num_heads), ("wk", "k", config.num_kv_heads)):
        expected = interleaved(theirs[f"model.layers.1.self_attn.{name}_proj.weight"], heads)
        assert torch.equal(ours[f"layers.1.attention.{mine}.weight"], expected)


def test_three_formats_give_the_same_logits(made: dict[str, Path], tmp_path: Path) -> None:
    from nemo_trt.engines.ort_session import OrtSession
    from nemo_trt.export.bundle import export_bundle

    ids = np.random.default_rng(0).integers(0, 512, (1, 20))
    logits = []
    for kind, source in made.items():
        export_bundle(source, tmp_path / kind)
        with OrtSession.open(tmp_path / kind, max_batch=1, max_seq_len=64, threads=1) as session:
            logits.append(session.step(ids, np.zeros(1, int), np.arange(20)[None]).copy())
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(logits[0], logits[2])
    assert np.abs(logits[0]).max() > 0


def test_the_real_tokenizer_goes_with_it(sample_checkpoint: Path, tmp_path: Path) -> None:
    """SmolLM2: a tied head and a tokenizer.json, through all three formats."""
    source = open_checkpoint(sample_checkpoint)
    convert(source, tmp_path / "a.nemo", "nemo")
    convert(open_checkpoint(tmp_path / "a.nemo"), tmp_path / "b", "mistral")
    found = open_checkpoint(tmp_path / "b")
    assert found.config.tied_head
    assert weights_digest(found.ordered_tensors) == weights_digest(source.ordered_tensors)
    files = {file.name: file.contents() for file in found.tokenizer_files}
    for file in source.tokenizer_files:
        assert files[file.name] == file.contents()


@pytest.mark.parametrize("kind", FORMATS)
def test_an_existing_target_stays_unless_forced(
    kind: str, made: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    target = tmp_path / NAMES[kind]
    convert(checkpoint, target, kind)
    with pytest.raises(ExportError, match="must not exist yet"):
        convert(checkpoint, target, kind)
    convert(checkpoint, target, kind, force=True)
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ExportError, match="got something else"):
        convert(checkpoint, tmp_path / "notes", kind, force=True)
    assert (tmp_path / "notes").read_text() == "mine"


def test_force_replaces_no_archive_of_someone_elses(
    made: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    target = tmp_path / NAMES["nemo"]
    config = b"# Written by NeMo\nnum_layers: 2\n"
    with tarfile.open(target, "w") as archive:
        member = tarfile.TarInfo("model_config.yaml")
        member.size = len(config)
        archive.addfile(member, io.BytesIO(config))
    before = target.read_bytes()
    with pytest.raises(ExportError, match="must be an archive that nemo-trt wrote"):
        convert(open_checkpoint(tiny_checkpoint), target, "nemo", force=True)
    assert target.read_bytes() == before


@pytest.mark.parametrize("kind", FORMATS)
def test_a_failure_leaves_nothing(kind: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in tiny_checkpoint.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    checkpoint = open_checkpoint(source)
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10000])
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        convert(checkpoint, tmp_path / NAMES[kind], kind)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_params_are_those_of_the_model(made: dict[str, Path], tiny_checkpoint: Path) -> None:
    params = json.loads((made["mistral"] / "params.json").read_text())
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    assert params["dim"] == config["hidden_size"] and params["head_dim"] == config["head_dim"]
    assert params["hidden_dim"] == config["intermediate_size"]
    assert params["rope_theta"] == config["rope_theta"]
