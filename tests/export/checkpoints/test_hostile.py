"""Hostile files: a sentence each, in bounded time and memory.

One child process reads them all under limits of the kernel: 1 GB of memory beyond what it starts
with, and processor time that is generous for a busy machine.
"""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
CHILD = """
import contextlib, io, json, resource, sys, time, traceback
import numpy, yaml, indexed_gzip
from nemo_trt.cli.main import run
from nemo_trt.export.checkpoints import gguf, huggingface, mistral, nemo, zarr
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 10**9, used + 10**9))
for path in sys.argv[1:]:
    said, start = io.StringIO(), time.process_time()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = run(["inspect", path])
    except BaseException as error:
        code, said = -1, io.StringIO(repr(error) + traceback.format_exc()[-1500:])
    print(json.dumps([code, said.getvalue(), time.process_time() - start]), flush=True)
"""
CPU_LIMIT_S = 20  # 5 s on a machine of its own
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 1,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "max_position_embeddings": 64,
}
YAML = b"num_layers: 1\nnum_attention_heads: 2\n"


def sparse(path: Path, start: bytes, size: int) -> None:
    path.write_bytes(start)
    os.truncate(path, size)


def safetensors(path: Path, header: bytes) -> None:
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def entry(shape: str, dtype: str = '"F32"') -> bytes:
    return f'{{"x": {{"dtype": {dtype}, "shape": {shape}, "data_offsets": [0, 4]}}}}'.encode()


def tar(path: Path, members: dict[str, bytes], mode: str = "w:") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def ckpt(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in files.items():
            archive.writestr(f"x/{name}", content)
    return data.getvalue()


def order_of_3_gb() -> bytes:
    """A file of torch.save whose byte order is a few MB that inflate to 3 GB of zeros."""
    packer = zlib.compressobj(1, wbits=-15)
    block = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}))
        archive.writestr("x/byteorder", block * 190)
        order = archive.getinfo("x/byteorder")
        order.compress_type, order.file_size = zipfile.ZIP_DEFLATED, 190 * 2**24
    return data.getvalue()


def nemo(path: Path, weights: bytes) -> None:
    tar(path / "x.nemo", {"model_config.yaml": YAML, "model_weights.ckpt": weights})


def yaml(path: Path, config: bytes) -> None:
    tar(path / "x.nemo", {"model_config.yaml": config, "model_weights.ckpt": b""})


def long_name(path: Path, kind: bytes, size: int) -> None:
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = kind, size
    sparse(path / "x.nemo", member.tobuf(tarfile.GNU_FORMAT), 512 + size + 1024)


def chained_names(path: Path) -> None:
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1
    block = member.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")
    (path / "x.nemo").write_bytes(block * 5000)


def gzip_bomb(path: Path) -> None:
    tar(path / "x.nemo", {"big": bytes(300 * 2**20), "model_config.yaml": YAML}, "w:gz")


def gguf(path: Path, body: bytes, size: int = 2**29, tensors: int = 0, fields: int = 1) -> None:
    sparse(path / "x.gguf", b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + body, size)


def arrays(path: Path) -> None:
    """A hundred arrays, each as long as all may be together."""
    with (path / "x.gguf").open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 100))
        for number in range(100):
            file.write(struct.pack("<Q2sIIQ", 2, b"%02d" % number, 9, 0, 2**21))
            file.truncate(file.seek(2**21, os.SEEK_CUR))


def field(kind: int, body: bytes) -> bytes:
    return struct.pack("<Q", 1) + b"k" + struct.pack("<I", kind) + body


def deep_tuples() -> bytes:
    """A tuple of itself, sixty levels deep, as a key: hashing it takes 2^60 steps."""
    steps = b"".join(b"\x94h" + bytes([n]) + b"\x86" for n in range(60))
    return b"\x80\x04}()" + steps + b"\x94K\x01s."


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "safetensors: header of 99 MB": (
        lambda p: safetensors(p, b'{"a": "' + b"x" * 99_000_000 + b'"}'),
        "states a header of 99000009 bytes",
    ),
    "safetensors: header that ends after the file": (
        lambda p: safetensors(p, b"{}" + b" " * 2**16) or os.truncate(p / "model.safetensors", 99),
        "more than the file holds",
    ),
    "safetensors: many tiny tensors": (
        lambda p: safetensors(
            p,
            b'{"z":1' + b"".join(b',"%x":{}' % n for n in range(700_000)) + b"}",
        ),
        "must state dtype|more than the file holds",
    ),
    "safetensors: huge integers": (
        lambda p: safetensors(p, entry("[" + ",".join(["9" * 4000] * 8) + "]")),
        "must have a shape of counts",
    ),
    "safetensors: many axes": (
        lambda p: safetensors(p, entry("[" + ",".join(["9" * 18] * 1500) + "]")),
        "must have a shape of counts",
    ),
    "safetensors: product of a huge number of digits": (
        lambda p: safetensors(p, entry("[" + ",".join(["9" * 18] * 8) + "]")),
        "bytes by its shape",
    ),
    "safetensors: deep nesting": (lambda p: safetensors(p, b"[" * 8_000_000), "unreadable"),
    "safetensors: a dtype that is a list": (
        lambda p: safetensors(p, entry("[1]", "[" + "1," * 10**6 + "1]")),
        "must be one of BF16",
    ),
    "safetensors: no UTF-8": (lambda p: safetensors(p, b'{"\xff": 1}'), "unreadable"),
    "config.json of 8 GB": (
        lambda p: sparse(p / "config.json", b"{", 8 * 2**30),
        "must be at most .* bytes long",
    ),
    "config.json of deep nesting": (
        lambda p: (p / "config.json").write_bytes(b'{"a":' * 10**6),
        "must be JSON in UTF-8",
    ),
    "config.json of a huge integer": (
        lambda p: (p / "config.json").write_text('{"a": ' + "9" * 10**6 + "}"),
        "must be JSON in UTF-8",
    ),
    "config.json of a large list for a number": (
        lambda p: (p / "config.json").write_text(
            json.dumps({**CONFIG, "num_attention_heads": [0] * 10**6})
        ),
        "num_attention_heads in .* must be a positive integer",
    ),
    "config.json that is no UTF-8": (
        lambda p: (p / "config.json").write_bytes(b'{"a": "\xff"}'),
        "must be JSON in UTF-8",
    ),
    "params.json of 8 GB": (
        lambda p: (
            sparse(p / "params.json", b"{", 8 * 2**30),
            (p / "consolidated.safetensors").touch(),
        ),
        "must be at most .* bytes long",
    ),
    "index of 8 GB": (
        lambda p: (
            (p / "config.json").write_text(json.dumps(CONFIG)),
            sparse(p / "model.safetensors.index.json", b"{", 8 * 2**30),
        ),
        "must be at most .* bytes long",
    ),
    "YAML of 3 MB": (lambda p: yaml(p, b"a: [" + b"1," * 1_500_000 + b"1]"), "more than 262144"),
    "YAML of deep nesting": (lambda p: yaml(p, b"a: " + b"[" * 200_000), "more than 50 levels"),
    "YAML of deep blocks": (lambda p: yaml(p, b"- " * 100_000), "more than 50 levels"),
    "YAML of aliases": (
        lambda p: yaml(
            p,
            b"a0: &a0 [1]\n"
            + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 60)),
        ),
        "must hold its weights|no intact|must be",
    ),
    "YAML of a sexagesimal": (
        lambda p: yaml(p, b"a: 1" + b":59" * 80_000),
        "must be YAML|must hold its weights|must be a zip",
    ),
    "YAML that is no UTF-8": (lambda p: yaml(p, b"a: \xff"), "must be YAML in UTF-8"),
    "tar: a long name of 2 GB": (
        lambda p: long_name(p, tarfile.GNUTYPE_LONGNAME, 2 * 2**30),
        "headers of at most",
    ),
    "tar: attributes of 2 GB": (
        lambda p: long_name(p, tarfile.XHDTYPE, 2 * 2**30),
        "headers of at most",
    ),
    "tar: long names in a chain": (chained_names, "must be an intact tar archive"),
    "tar: gzip that unpacks without end": (gzip_bomb, "must not unpack to more than 32 times"),
    "pickle: a memo index of 3e8": (
        lambda p: nemo(
            p, ckpt({"data.pkl": b"\x80\x02}r" + struct.pack("<I", 300_000_000) + b"."})
        ),
        "lacks",
    ),
    "pickle: tuples of themselves": (
        lambda p: nemo(p, ckpt({"data.pkl": deep_tuples()})),
        "too deep or too many",
    ),
    "pickle: bytes of a huge stated length": (
        lambda p: nemo(p, ckpt({"data.pkl": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"."})),
        "no intact pickle: EOFError",
    ),
    "pickle: a bytearray of a huge stated length": (
        lambda p: nemo(p, ckpt({"data.pkl": b"\x80\x05\x96" + struct.pack("<Q", 2**29) + b"."})),
        "no intact pickle: KeyError",
    ),
    "pickle: an integer of a huge stated length": (
        lambda p: nemo(p, ckpt({"data.pkl": b"\x80\x04\x8b" + struct.pack("<i", 2**30) + b"."})),
        "no intact pickle: KeyError",
    ),
    "pickle: deep nesting": (
        lambda p: nemo(p, ckpt({"data.pkl": b"\x80\x02" + b"(" * 10**6 + b"l" * 10**6 + b"."})),
        "no intact pickle|must hold a state_dict",
    ),
    "zip: a deflated pickle of 300 MB": (
        lambda p: nemo(p, ckpt({"data.pkl": bytes(300 * 2**20)})),
        "must have a pickle of at most",
    ),
    "zip: a deflated byte order of 3 GB": (
        lambda p: nemo(p, order_of_3_gb()),
        "must be little-endian",
    ),
    "GGUF: an array of a huge stated length": (
        lambda p: gguf(p, field(9, struct.pack("<IQ", 0, 400_000_000))),
        "a count of 400000000",
    ),
    "GGUF: many arrays": (arrays, "a count of 2097152 in a file of .* where 0 are the most"),
    "GGUF: arrays of empty texts": (
        lambda p: gguf(p, field(9, struct.pack("<IQ", 8, 60_000_000))),
        "a count of 60000000",
    ),
    "GGUF: a text of a huge stated length": (
        lambda p: gguf(p, field(8, struct.pack("<Q", 500_000_000))),
        "a count of 500000000",
    ),
    "GGUF: many fields": (lambda p: gguf(p, b"", fields=2**28), "a count of 268435456"),
    "GGUF: many tensors": (lambda p: gguf(p, b"", fields=0, tensors=2**28), "a count of"),
    "GGUF: no UTF-8": (
        lambda p: gguf(p, field(8, struct.pack("<Q", 1) + b"\xff"), 4096),
        "must be an intact GGUF file",
    ),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, float]]:
    root = tmp_path_factory.mktemp("hostile")
    paths = []
    for number, (make, _) in enumerate(HOSTILE.values()):
        folder = root / str(number)
        folder.mkdir()
        make(folder)
        single = [folder / name for name in ("x.nemo", "x.gguf") if (folder / name).exists()]
        paths.append(str(single[0] if single else folder))
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *paths],
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    lines = [tuple(json.loads(line)) for line in child.stdout.splitlines()]
    assert len(lines) == len(paths), (list(HOSTILE)[len(lines)], child.returncode, child.stderr)
    return dict(zip(HOSTILE, lines, strict=True))


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_costs_little_and_gets_a_sentence(
    kind: str, answers: dict[str, tuple[int, str, float]]
) -> None:
    import re

    code, said, seconds = answers[kind]
    assert code == 2, said
    assert said.startswith("nemo-trt: ") and said.count("\n") == 1 and len(said) < 1000
    assert re.search(HOSTILE[kind][1], said), said
    assert seconds < CPU_LIMIT_S
