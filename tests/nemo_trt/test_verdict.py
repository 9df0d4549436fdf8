"""A verdict counts for what it was given of, and for nothing that was altered, added or forged."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from nemo_trt.bundle import Bundle
from nemo_trt.cli.main import run
from nemo_trt.digest import SAMPLE_BYTES, file_digest, sha256_file
from nemo_trt.engines.trt.engine_record import BuildOptions, EngineRecord, PlanFile
from nemo_trt.errors import BundleError, RequestError
from nemo_trt.manifest import CUDA_VALIDATION_FILE, GRAPH_FILE, MANIFEST_FILE, VALIDATION_FILE
from nemo_trt.safetensors import read_layout
from nemo_trt.serve.approval import require_verdict
from nemo_trt.serve.options import ServeOptions
from nemo_trt.verdict import altered_weights, read_verdict
from nemo_trt.where import CPU, CUDA

Vouch = Callable[..., Path]
Change = Callable[[Any], Any]


pytestmark = pytest.mark.model


@pytest.fixture
def bundle(tiny: Any, sample_tokenizer: Path, vouch: Vouch, tmp_path: Path) -> Path:
    """The tiny bundle with the sample's tokenizer and a passing verdict; all files its own."""
    target = tmp_path / "bundle"
    shutil.copytree(tiny.bundle, target)
    names = ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"]
    (target / "tokenizer").mkdir()
    for name in names:
        shutil.copyfile(sample_tokenizer / Path(name).name, target / name)
    edit(target / MANIFEST_FILE, lambda data: data.update(tokenizer_files=names))
    vouch(target)
    return target


def words(bundle: Path) -> str:
    """What a server is told of a bundle, all weights read; what has not passed, it refuses."""
    opened = Bundle.open(bundle)
    verdict = read_verdict(opened)
    if not verdict.passed:
        with pytest.raises(BundleError, match="must have passed validation"):
            require_verdict(opened, CPU, ServeOptions())
    return (altered_weights(opened, verdict) if verdict.passed else None) or verdict.words


def edit(file: Path, change: Change) -> None:
    """Change a JSON file."""
    data = json.loads(file.read_text(encoding="utf-8"))
    change(data)
    file.write_text(json.dumps(data), encoding="utf-8")


def test_what_was_judged_passes(bundle: Path) -> None:
    assert words(bundle) == "pass"


def alter_one_bit(bundle: Path) -> str:
    """Behind the samples of the quick digest, which sees nothing; the verdict of it, in words."""
    (file,) = (bundle / "weights").iterdir()
    largest = max(read_layout(file).values(), key=lambda ref: ref.num_bytes)
    assert largest.num_bytes > 6 * SAMPLE_BYTES
    data = np.memmap(file, np.uint8, "r+", largest.offset, (largest.num_bytes,))
    data[2 * SAMPLE_BYTES] ^= 1
    Bundle.open(bundle)
    return f"stale: weights/{file.name} was altered after it was judged"


def test_one_bit_behind_the_quick_digests_samples_is_seen(bundle: Path) -> None:
    altered = alter_one_bit(bundle)
    assert words(bundle) == altered


def test_weights_zeroed_behind_the_quick_digests_samples_are_seen(
    sample_bundle: Any, vouch: Vouch, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(sample_bundle.bundle, bundle)
    vouch(bundle)
    (file,) = (bundle / "weights").iterdir()
    zeroed = 0
    for ref in read_layout(file).values():
        data = np.memmap(file, np.uint8, "r+", ref.offset, (ref.num_bytes,))
        middle = (ref.num_bytes - SAMPLE_BYTES) // 2
        for start, stop in (
            (SAMPLE_BYTES, middle),
            (middle + SAMPLE_BYTES, ref.num_bytes - SAMPLE_BYTES),
        ):
            if stop > start:
                data[start:stop] = 0
                zeroed += stop - start
    assert zeroed > 0.97 * file.stat().st_size
    Bundle.open(bundle)  # the quick digest sees nothing
    assert words(bundle) == f"stale: weights/{file.name} was altered after it was judged"


def exchange(data: Any) -> None:
    """Two cities swap their tokens."""
    vocab = data["model"]["vocab"]
    one, other = "\u0120Paris", "\u0120London"
    vocab[one], vocab[other] = vocab[other], vocab[one]


def set_config(**values: Any) -> Change:
    return lambda data: data["config"].update(values)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer/tokenizer.json", exchange),
        ("tokenizer/tokenizer_config.json", lambda data: data.update(bos_token="<|im_end|>")),
        (MANIFEST_FILE, set_config(eos_token_ids=[5])),
        (MANIFEST_FILE, set_config(num_heads=2)),
        (MANIFEST_FILE, set_config(max_position_embeddings=4096)),
    ],
    ids=["tokens", "bos", "eos ids", "head count", "context"],
)
def test_an_altered_file_is_named(bundle: Path, file: str, change: Change) -> None:
    edit(bundle / file, change)
    assert words(bundle) == f"stale: {file} was altered after it was judged"


def test_more_rows_or_tokens_than_were_judged_are_refused(bundle: Path, vouch: Vouch) -> None:
    vouch(bundle, max_seq_len=300, max_batch=3)
    opened = Bundle.open(bundle)
    assert require_verdict(opened, CPU, ServeOptions(), max_batch=3, max_seq_len=300).passed
    for more in ({"max_batch": 4}, {"max_seq_len": 301}):
        with pytest.raises(BundleError, match="beyond what was judged"):
            require_verdict(opened, CPU, ServeOptions(), **more)


def test_another_backend_than_was_judged_is_refused(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    with pytest.raises(BundleError, match=r"none yet.*--backend cuda"):
        require_verdict(opened, CUDA, ServeOptions())
    shutil.copyfile(bundle / VALIDATION_FILE, bundle / CUDA_VALIDATION_FILE)
    with pytest.raises(BundleError, match="stale: it is of cpu, not of cuda"):
        require_verdict(opened, CUDA, ServeOptions())


def test_a_tokenizer_that_the_manifest_no_longer_names_is_missed(bundle: Path) -> None:
    edit(bundle / MANIFEST_FILE, lambda data: data.update(tokenizer_files=[]))
    assert words(bundle) == "stale: tokenizer/tokenizer.json was judged and is not there"


def test_a_file_that_came_later_is_named(bundle: Path) -> None:
    template = bundle / "tokenizer" / "tekken.json"  # would be read in place of tokenizer.json
    template.write_text("{}")
    assert words(bundle) == "stale: tokenizer/tekken.json was not there when it was judged"


def test_a_file_that_went_is_named(bundle: Path) -> None:
    (bundle / "tokenizer" / "tokenizer_config.json").unlink()
    assert words(bundle) == "stale: tokenizer/tokenizer_config.json was judged and is not there"


def test_a_graph_that_its_manifest_vouches_for_is_still_another(bundle: Path) -> None:
    import onnx

    model = onnx.load(bundle / GRAPH_FILE, load_external_data=False)
    model.doc_string = "altered"
    onnx.save(model, bundle / GRAPH_FILE)
    digest = sha256_file(bundle / GRAPH_FILE)
    edit(bundle / MANIFEST_FILE, lambda data: data["graph"].update(sha256=digest))
    assert words(bundle).startswith("stale: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "damaged"),
        ("[]", "stale: validation.json is not of this version"),
        ('{"verdict": "pass", "bundle_id": "x", "engine": {}}', "stale: validation.json is not"),
        ('{"schema_version": 2, "verdict": "pass", "bundle_id": "x"}', "damaged"),
        ("[" * 10**6, "damaged"),
    ],
    ids=["no JSON", "a list", "three fields", "a version too", "deep"],
)
def test_a_verdict_written_by_hand_is_none(bundle: Path, text: str, said: str) -> None:
    (bundle / VALIDATION_FILE).write_text(text)
    assert words(bundle).startswith(said)


CONTRADICTIONS: dict[str, Change] = {
    "looser limits": lambda data: data["limits"].update(max_kl=9.0),
    "no limits": lambda data: data.update(limits={}),
    "a figure beyond its limit": lambda data: data["cases"][0].update(max_relative_l2=0.5),
    "a figure that is no number": lambda data: data["cases"][0].update(max_kl="nan"),
    "a position beyond": lambda data: data["cases"][0]["per_position"].update(relative_l2=[0.5]),
    "no position": lambda data: data["cases"][0].update(positions=[], per_position={}),
    "a case that failed": lambda data: data["cases"][0].update(failures=["max_kl is 3"]),
    "no case": lambda data: data.update(cases=[]),
    "a case removed": lambda data: data["cases"].pop(),
    "a case twice in another's place": lambda data: data["cases"][3].update(name="runner"),
    "perplexity": lambda data: data["perplexity"].update(engine=2.0),
    "no language model": lambda data: data.update(perplexity={"engine": 1e4, "reference": 1e4}),
    "another word": lambda data: data.update(verdict="fine"),
    "an infinite length": lambda data: data["coverage"].update(max_seq_len=float("inf")),
    "an infinite figure": lambda data: data["cases"][0].update(mean_kl=float("inf")),
    "no length": lambda data: data["coverage"].update(max_seq_len=0),
    "a precision without limits": lambda data: data["coverage"].update(compute_precision="int4"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_verdict_that_contradicts_itself_is_damaged(bundle: Path, name: str) -> None:
    edit(bundle / VALIDATION_FILE, CONTRADICTIONS[name])
    assert words(bundle).startswith("damaged: ")


def test_a_failed_verdict_stays_failed(bundle: Path, vouch: Vouch) -> None:
    vouch(bundle, failures=("perplexity ratio must be 1 within a factor 1.0001, got 3",))
    assert words(bundle) == "fail"


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """PEM files of a new private key and its public one."""
    key = ed25519.Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


def test_a_signature_tells_a_forged_verdict(bundle: Path, vouch: Vouch, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path, "ci")
    _, foreign = key_pair(tmp_path, "other")

    def signed(key: Path) -> str:
        return read_verdict(Bundle.open(bundle), public_key=key.read_bytes()).words

    assert signed(public) == "unsigned: it bears no Ed25519 signature"
    vouch(bundle, private_key=private.read_bytes())
    assert words(bundle) == "pass" and signed(public) == "pass"
    assert signed(foreign) == "unsigned: its signature is not of this key and text"
    edit(bundle / VALIDATION_FILE, lambda data: data["coverage"].update(max_seq_len=9000))
    assert words(bundle) == "pass"  # consistent: without a key its owner may write what he likes
    assert signed(public) == "unsigned: its signature is not of this key and text"
    edit(bundle / VALIDATION_FILE, lambda data: data["signature"].update(value="zz"))
    assert signed(public) == "unsigned: its signature is damaged"
    for wrong in (private, bundle / MANIFEST_FILE):
        with pytest.raises(RequestError, match="verifying key must be"):
            signed(wrong)


def test_verify_key_checks_without_judging(
    bundle: Path, vouch: Vouch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = key_pair(tmp_path, "ci")
    asked = ["validate", str(bundle), "--verify-key", str(public)]
    assert run(asked) == 1
    assert "unsigned" in capsys.readouterr().out
    vouch(bundle, private_key=private.read_bytes())
    assert run(asked) == 0
    assert "pass" in capsys.readouterr().out
    for other in (["--threads", "2"], ["--random-weights"]):
        assert run([*asked, *other]) == 2
        assert f"leave {other[0]} out" in capsys.readouterr().err
    altered = alter_one_bit(bundle)
    assert run(asked) == 1
    assert altered in capsys.readouterr().out


def test_verify_key_reads_an_engines_plans_too(
    bundle: Path, vouch: Vouch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = key_pair(tmp_path, "ci")
    engine = bundle / "engines" / "l4-bf16"
    engine.mkdir(parents=True)
    plan = engine / "engine.plan"
    plan.write_bytes(bytes(100))
    size = {"max_seq_len": 64, "max_batch": 1, "prefill_chunk": 8, "max_logits": 8}
    record = EngineRecord(
        name="l4-bf16",
        build_id="",
        bundle_id=Bundle.open(bundle).bundle_id,
        precision="bf16",
        options=BuildOptions(target="l4", sm=89, **size),
        toolkit="tensorrt-rtx",
        toolkit_version="0",
        driver=None,
        weight_bytes=0,
        plans=(
            PlanFile(
                file=plan.name,
                num_bytes=100,
                digest=file_digest(plan),
                profiles=("prefill", "decode"),
                kernels={},
                launches_per_layer={},
                scratch_bytes={},
            ),
        ),
        build_s=0,
        peak_host_bytes=0,
        nemo_trt="0",
    )
    (engine / "engine.json").write_text(record.to_json())
    vouch(bundle, private_key=private.read_bytes())
    vouch(bundle, "l4-bf16", compute_precision="bf16", private_key=private.read_bytes())
    asked = ["validate", str(bundle), "--engine", "l4-bf16", "--verify-key", str(public)]
    assert run(asked) == 0
    assert capsys.readouterr().out.endswith("on l4-bf16: pass\n")
    plan.write_bytes(bytes(99) + b"x")
    assert run(asked) == 1
    assert "engine.plan was altered after it was built" in capsys.readouterr().out


def test_the_digest_is_that_of_every_byte(tmp_path: Path) -> None:
    import blake3

    file = tmp_path / "file"
    for content in (b"", b"x", os.urandom(3 * 2**20 + 7)):
        file.write_bytes(content)
        assert file_digest(file) == blake3.blake3(content).hexdigest()
