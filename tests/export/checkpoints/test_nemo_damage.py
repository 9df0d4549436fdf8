"""Damaged and hostile NeMo checkpoints: refused in a sentence, and nothing of them is run."""

import contextlib
import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_trt.errors import CheckpointError
from nemo_trt.export.checkpoints import open_checkpoint

from . import megatron

pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("where", [".metadata", "ckpt"])
def test_a_hostile_pickle_runs_nothing(
    where: str, written: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    shutil.copytree(written["torch_dist" if where == ".metadata" else "one file"], folder)
    if where == ".metadata":
        (folder / "model_weights" / ".metadata").write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"model.x": Bomb()}, folder / "model_weights.ckpt")
    with pytest.raises(CheckpointError, match=r"asks for posix\.system, .*nothing of it was run"):
        open_checkpoint(folder)
    assert not (tmp_path / "exploded").exists()


def test_a_bomb_among_the_extra_state_is_never_read(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.distributed.checkpoint as dcp

    monkeypatch.chdir(tmp_path)
    megatron.write_config(tmp_path / "x", megatron.settings(tiny_checkpoint))
    state: dict[str, Any] = megatron.prefixed(
        megatron.stacked(megatron.packed(tiny_checkpoint)), "model."
    )
    buffer = io.BytesIO()
    torch.save(Bomb(), buffer)
    state["model.decoder.layers.mlp.linear_fc1._extra_state/shard_0_2"] = buffer
    dcp.save(
        state, storage_writer=dcp.FileSystemWriter(tmp_path / "x" / "model_weights"), no_dist=True
    )
    opened = open_checkpoint(tmp_path / "x")
    for tensor in opened.ordered_tensors:
        tensor.rows(0, 1)
    assert not (tmp_path / "exploded").exists()


def member(name: str, **fields: Any) -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        for key, value in fields.items():
            setattr(info, key, value)
        tar.addfile(info)

    return add


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (member("../outside"), "would leave the archive"),
        (member("/etc/passwd"), "would leave the archive"),
        (member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "no regular file"),
        (member("hard", type=tarfile.LNKTYPE, linkname="x"), "no regular file"),
        (member("device", type=tarfile.CHRTYPE), "no regular file"),
        (member("./model_config.yaml"), "holds model_config.yaml twice"),
    ],
)
def test_hostile_members_are_refused(
    add: Callable[[tarfile.TarFile], None], message: str, archive: Path, tmp_path: Path
) -> None:
    path = shutil.copy(archive, tmp_path / "x.nemo")
    with tarfile.open(path, "a:") as tar:
        add(tar)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(Path(path))


def test_a_member_larger_than_the_archive_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("model_config.yaml")
    info.size = 10**9
    (tmp_path / "x.nemo").write_bytes(info.tobuf() + bytes(1024))
    with pytest.raises(CheckpointError, match=r"intact tar archive|must lie within"):
        open_checkpoint(tmp_path / "x.nemo")


def edit(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        config = yaml.safe_load((folder / "model_config.yaml").read_text())
        config.update(changes)
        kept = {key: value for key, value in config.items() if value != "absent"}
        megatron.write_config(folder, kept)

    return apply


def cut(name: str, keep: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = next(folder.rglob(name))
        path.write_bytes(path.read_bytes()[:keep])

    return apply


def config_bytes(data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "model_config.yaml").write_bytes(data) and None


def state(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        found = torch.load(folder / "model_weights.ckpt", weights_only=False)
        change(found)
        torch.save(found, folder / "model_weights.ckpt")

    return apply


QKV = "model.decoder.layers.0.self_attention.linear_qkv.weight"
PROJ = "model.decoder.layers.1.self_attention.linear_proj.weight"
DAMAGES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "truncated data": ("torch_dist", cut("*.distcp", 3000), "must lie within the 3000 bytes"),
    "truncated metadata": ("torch_dist", cut(".metadata", 900), "is no intact pickle"),
    "empty metadata": ("torch_dist", cut(".metadata", 0), "is no intact pickle"),
    "missing data": (
        "torch_dist",
        lambda folder: next(folder.rglob("*.distcp")).unlink(),
        "which is missing. Fetch that file",
    ),
    "truncated ckpt": ("one file", cut("*.ckpt", 5000), "must be a zip of torch.save"),
    "empty ckpt": ("one file", cut("*.ckpt", 0), "must be a zip of torch.save"),
    "missing tensor": ("one file", state(lambda s: s.pop(PROJ)), "lacks tensors: .*1.self_attn.o"),
    "extra tensor": (
        "one file",
        state(lambda s: s.update({"model.vision.weight": torch.ones(2)})),
        "holds vision.weight, which a model of this family does not have",
    ),
    "shape": (
        "one file",
        state(lambda s: s.update({PROJ: s[PROJ][:-1].clone()})),
        "wrong shape: model.layers.1.self_attn.o_proj",
    ),
    "rows of qkv": (
        "one file",
        state(lambda s: s.update({QKV: s[QKV][:-1].clone()})),
        "must have a multiple of",
    ),
    "dtype": (
        "one file",
        state(lambda s: s.update({PROJ: s[PROJ].to(torch.int32)})),
        "asks for torch.IntStorage|lacks tensors",
    ),
    "transposed": (
        "one file",
        state(lambda s: s.update({PROJ: s[PROJ].t().contiguous().t()})),
        "its numbers must lie together",
    ),
    "legacy": (
        "one file",
        state(lambda s: s.update({"model.language_model.x": torch.ones(2)})),
        "before Megatron-core",
    ),
    "missing rank": (
        "TP 2",
        lambda folder: shutil.rmtree(folder / "mp_rank_00"),
        "lacks the weights of tensor rank 0",
    ),
    "fewer ranks": (
        "TP 2",
        lambda folder: shutil.rmtree(folder / "mp_rank_01"),
        "tensor_model_parallel_size .* must be 1",
    ),
    "missing chunk": (
        "zarr",
        lambda folder: next(folder.rglob("*linear_qkv.weight/1.0.0")).unlink(),
        "needs its chunk .*linear_qkv.weight/1.0.0, which is missing",
    ),
    "short chunk": ("zarr", cut("0.0.0", 10), "must be .* bytes long by .zarray, got 10"),
    "packed chunks": (
        "zarr",
        lambda folder: [
            path.write_text(path.read_text().replace('"compressor": null', '"compressor": {}'))
            for path in folder.rglob(".zarray")
        ],
        "compressor in .* must be None",
    ),
    "no weights": (
        "one file",
        lambda folder: (folder / "model_weights.ckpt").unlink(),
        "must hold its weights as",
    ),
    "layers": ("torch_dist", edit(num_layers=1), "unexpected tensors: model.layers.1"),
    "head_dim": ("torch_dist", edit(kv_channels=160), "kv_channels in .* by the rows"),
    "no theta": ("torch_dist", edit(rotary_base="absent"), "rotary_base in .* must be stated"),
    "gamma - 1": ("torch_dist", edit(normalization="layernorm1p"), "normalization in .* must be"),
    "biases": ("torch_dist", edit(bias=True), "bias in .* must be None or False"),
    "window": ("torch_dist", edit(window_size=[4096, 0]), "window_size in .* must be None"),
    "tied": (
        "torch_dist",
        edit(share_embeddings_and_output_weights=True),
        "must be false by the tensors",
    ),
    "no UTF-8": ("torch_dist", config_bytes(b"a: \xff"), "must be YAML in UTF-8"),
    "tag": ("torch_dist", config_bytes(b"a: !x 1"), "must be YAML in UTF-8: could not determine"),
    "key twice": ("torch_dist", config_bytes(b"a: 1\na: 2"), "key 'a' stands twice"),
    "circle": ("torch_dist", config_bytes(b"a: &a [*a]"), "must be YAML|must be a positive"),
    "list": ("torch_dist", config_bytes(b"[1]"), "must hold a mapping, got list"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_in_a_sentence(
    damage: str, written: dict[str, Path], tmp_path: Path
) -> None:
    form, change, message = DAMAGES[damage]
    folder = tmp_path / "model"
    shutil.copytree(written[form], folder)
    change(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_fuzzed_files_raise_nothing_else(data: st.DataObject, written: dict[str, Path]) -> None:
    form, name = data.draw(
        st.sampled_from(
            [
                ("torch_dist", ".metadata"),
                ("torch_dist", "*.distcp"),
                ("one file", "*.ckpt"),
                ("one file", "model_config.yaml"),
                ("zarr", ".zarray"),
            ]
        )
    )
    path = sorted(written[form].rglob(name))[0]
    whole = path.read_bytes()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        near_end = data.draw(st.booleans())
        at = data.draw(st.integers(0, min(len(damaged), 4000) - 1))
        damaged[-1 - at if near_end else at] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        open_checkpoint(written[form])
    except CheckpointError:
        pass
    finally:
        path.write_bytes(whole)


@settings(max_examples=40)
@given(data=st.data())
def test_fuzzed_archives_raise_nothing_else(data: st.DataObject, archive: Path) -> None:
    whole = archive.read_bytes()
    damaged = bytearray(whole)
    header = data.draw(st.sampled_from(range(0, 3072, 512)))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[header + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
    target = archive.with_name("fuzzed.nemo")
    target.write_bytes(damaged)
    with contextlib.suppress(CheckpointError):
        open_checkpoint(target)
