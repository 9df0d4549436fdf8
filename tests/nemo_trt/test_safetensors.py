"""The safetensors layout: agreement with the library, and no damage but in words."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_trt.errors import CheckpointError
from nemo_trt.precision import DType
from nemo_trt.safetensors import read_layout, write_stream

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    from safetensors.numpy import save_file

    path = tmp_path_factory.mktemp("good") / "good.safetensors"
    save_file(
        {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}, path
    )
    return path.read_bytes()


def test_what_the_library_wrote_is_read(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(good)
    refs = read_layout(path)
    np.testing.assert_array_equal(refs["a"].read(), np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(refs["b"].read(), np.ones(4))


def test_what_we_write_the_library_reads(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    path = tmp_path / "x.safetensors"
    values = np.arange(10, dtype=np.float32)
    layout = [("one", DType.FP32, (2, 3)), ("two", DType.FP32, (4,))]
    write_stream(path, layout, iter([values[:5].tobytes(), values[5:].tobytes()]))
    found = load_file(path)
    np.testing.assert_array_equal(found["one"], values[:6].reshape(2, 3))
    np.testing.assert_array_equal(found["two"], values[6:])


def test_a_stream_of_the_wrong_length_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs 24 bytes"):
        write_stream(tmp_path / "x", [("one", DType.FP32, (2, 3))], iter([b"1234"]))


def with_header(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


DAMAGED = {
    "an empty file": (b"", "truncated"),
    "half a length": (b"\x01\x02", "truncated"),
    "a huge header": (struct.pack("<Q", 2**62), "header"),
    "a header past the end": (struct.pack("<Q", 100) + b"{}", "header"),
    "no JSON": (struct.pack("<Q", 2) + b"xx", "header"),
    "no UTF-8": (struct.pack("<Q", 2) + b"\xff\xfe", "header"),
    "a list": (with_header([]), "object"),
    "an unknown dtype": (with_header({"x": entry("F8_E5M2")}, b"12345678"), "F8_E5M2"),
    "a negative size": (with_header({"x": entry(shape=(-2,))}, b"12345678"), "shape"),
    "a wrong size": (with_header({"x": entry(shape=(3,))}, b"12345678"), "12 bytes"),
    "one offset": (with_header({"x": entry(offsets=(0,))}, b"12345678"), "data_offsets"),
    "missing fields": (with_header({"x": {}}), "x in"),
    "a gap": (with_header({"x": entry(offsets=(4, 12))}, b"1" * 12), "gaps"),
    "an overlap": (with_header({"x": entry(), "y": entry(offsets=(4, 12))}, b"1" * 12), "overlap"),
    "a truncated body": (with_header({"x": entry()}, b"1234"), "truncated"),
    "a longer body": (with_header({"x": entry()}, b"1" * 12), "corrupt"),
    "a name twice": (
        struct.pack("<Q", 22) + b'{"x": null, "x": null}',
        "twice",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_refused_in_words_that_name_the_file(name: str, tmp_path: Path) -> None:
    data, words = DAMAGED[name]
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=words) as error:
        read_layout(path)
    assert "damaged.safetensors" in str(error.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_raises_nothing_else(
    data: st.DataObject, good: bytes, tmp_path: Path
) -> None:
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    try:
        refs = read_layout(path)
    except CheckpointError:
        return
    for ref in refs.values():
        assert ref.read().shape == ref.shape
