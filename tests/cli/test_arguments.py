"""Every option of a command reaches what the command calls, and as what it was given.

The function behind a command is replaced by one that notes its arguments and ends the command.
"""

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from nemo_trt.acceptance import AcceptanceOptions
from nemo_trt.bundle import Bundle
from nemo_trt.cli.main import COMMANDS, cli, run
from nemo_trt.engines import measure as measuring
from nemo_trt.engines.runner import Runner
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.engines.targets import TARGETS
from nemo_trt.engines.trt import build as building
from nemo_trt.export import checkpoints, samples
from nemo_trt.precision import DType
from nemo_trt.serve import ServeOptions, cluster, http
from nemo_trt.serve.cluster import ClusterOptions
from nemo_trt.serve.hosts import allowed_hosts
from nemo_trt.stages import plan as planning
from nemo_trt.where import CPU, CUDA, Where

pytestmark = pytest.mark.unit

Patch = pytest.MonkeyPatch
SAMPLING = (
    *("--max-tokens", "7", "--temperature", "0.5", "--top-k", "3", "--top-p", "0.25"),
    *("--min-p", "0.125", "--repetition-penalty", "1.5", "--seed", "11", "--stop", "a"),
    *("--stop", "b"),
)
SAMPLED = SamplingParams(
    max_tokens=7,
    temperature=0.5,
    top_k=3,
    top_p=0.25,
    min_p=0.125,
    repetition_penalty=1.5,
    seed=11,
    stop=("a", "b"),
)


class Reached(Exception):
    """The function that a command calls was called."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__()
        named.pop("progress", None)
        self.arguments, self.named = arguments, named


def ends(*arguments: Any, **named: Any) -> Any:
    raise Reached(*arguments, **named)


def reached(command: str) -> Reached:
    with pytest.raises(Reached) as caught:
        run(command.split())
    return caught.value


def test_bench(monkeypatch: Patch) -> None:
    monkeypatch.setattr(measuring, "measure", ends)
    lengths = "--prefill 16 --prefill 32 --decode 48 --decode 96"
    found = reached(f"bench b {lengths} --steps 5 --max-batch 3 --threads 2 --backend cuda")
    assert found.arguments == (Path("b"), CUDA)
    assert found.named == {
        "prefill_lengths": (16, 32),
        "decode_lengths": (48, 96),
        "num_decode_steps": 5,
        "max_batch": 3,
        "threads": 2,
    }


@pytest.mark.parametrize(
    ("command", "asks"), [("run b hello", "generate"), ("chat b --message hi", "chat")]
)
def test_run_and_chat(command: str, asks: str, monkeypatch: Patch) -> None:
    opened: list[Reached] = []

    class Stub(SimpleNamespace):
        def __enter__(self) -> "Stub":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def open_(*arguments: Any, **named: Any) -> Stub:
        opened.append(Reached(*arguments, **named))
        return Stub(**{asks: ends})

    monkeypatch.setattr(Runner, "open", open_)
    said = "hello" if asks == "generate" else [{"role": "user", "content": "hi"}]
    words = " ".join((command, "--max-seq-len 64 --threads 2 --engine e", *SAMPLING))
    assert reached(words).arguments == (said, SAMPLED)
    assert opened[0].arguments == (Path("b"), Where("engine", "e"))
    assert opened[0].named == {"max_seq_len": 64, "threads": 2}


def test_a_conversation_has_its_system_prompt_and_every_turn(
    monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    from io import BytesIO, TextIOWrapper

    asked: list[list[str]] = []

    class Stub:
        def __enter__(self) -> "Stub":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def chat(self, messages: Any, _: object) -> list[SimpleNamespace]:
            asked.append([f"{one['role']}: {one['content']}" for one in messages])
            return [SimpleNamespace(text="yes"), SimpleNamespace(text="!")]

    monkeypatch.setattr(Runner, "open", lambda *_, **__: Stub())
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"one\ntwo\n\nthree\n")))
    assert run(["chat", "b", "--system", "short"]) == 0
    first = ["system: short", "user: one"]
    assert asked == [first, [*first, "assistant: yes!", "user: two"]]
    assert capsys.readouterr().out == "yes!\nyes!\n"


SERVED = (
    "serve b --model-name m --max-batch 3 --max-seq-len 512 --max-queue 5 --prefill-tokens 6 "
    "--request-timeout 7.5 --drain-timeout 8.5 --max-body-bytes 9 --cors-origin https://o.example "
    "--allowed-host h.example --allow-unvalidated --verify-key k.pem --log-text --port 1234 "
    "--host 127.0.0.2 --threads 2"
)
SERVER = ServeOptions(
    model_name="m",
    max_queue=5,
    prefill_tokens=6,
    request_timeout_s=7.5,
    max_body_bytes=9,
    cors_origins=("https://o.example",),
    allow_unvalidated=True,
    verify_key=Path("k.pem"),
    log_text=True,
    allowed_hosts=allowed_hosts("127.0.0.2", ("h.example",)),
)


def test_serve(monkeypatch: Patch) -> None:
    created: list[Reached] = []

    def create(*arguments: Any, **named: Any) -> str:
        created.append(Reached(*arguments, **named))
        return "the application"

    monkeypatch.setattr(http, "create_app", create)
    monkeypatch.setattr(http, "serve_forever", ends)
    monkeypatch.setattr("nemo_trt.serve.log.log_to_stderr", lambda: None)
    found = reached(SERVED)
    assert found.arguments == ("the application",)
    assert found.named.pop("on_ready") is not None
    assert found.named == {"host": "127.0.0.2", "port": 1234, "drain_timeout_s": 8.5}
    assert created[0].arguments == (Path("b"), CPU)
    assert created[0].named.pop("options") == SERVER
    assert created[0].named == {"max_batch": 3, "max_seq_len": 512, "threads": 2}


def test_serve_with_replicas(monkeypatch: Patch) -> None:
    monkeypatch.setattr(cluster, "serve_cluster_forever", ends, raising=False)
    found = reached(f"{SERVED} --ray --replicas 4 --autoscale 2:6")
    (options,) = found.arguments
    assert isinstance(options, ClusterOptions)
    assert (found.named["host"], found.named["port"]) == ("127.0.0.2", 1234)
    assert options.bundle == Path("b").resolve() and options.where == CPU
    assert (options.max_batch, options.max_seq_len, options.threads) == (3, 512, 2)
    assert (options.replicas, options.autoscale) == (4, (2, 6))
    assert options.drain_timeout_s == 8.5
    assert options.server == replace(SERVER, verify_key=SERVER.verify_key.resolve())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--replicas 2", "go with --ray"),
        ("--autoscale 1:2", "go with --ray"),
        ("--backend cuda --threads 2", "goes with --backend cpu"),
        ("--engine e --max-batch 2", "leave yours out"),
        ("--engine e --max-seq-len 64", "leave yours out"),
        ("--ray --autoscale 2", "two numbers"),
    ],
)
def test_serve_refuses_what_it_would_ignore(
    arguments: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "b", *arguments.split()]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_plan(monkeypatch: Patch) -> None:
    sources: list[Any] = []
    monkeypatch.setattr(planning, "planned", lambda *given: sources.append(given) or "the model")
    monkeypatch.setattr(planning, "plan_engine", ends)
    size = "--max-seq-len 64 --max-batch 3 --precision fp16 --attention paged --kv-cache fp8"
    for words, gpu in ((f"plan s --gpu l4 {size}", "l4"), (f"plan s {size}", next(iter(TARGETS)))):
        found = reached(words)
        assert found.arguments == ("the model", gpu)
        assert found.named == {"max_seq_len": 64, "max_batch": 3, "paged": True, "kv_cache": "fp8"}
    assert sources == [(Path("s"), "fp16")] * 2


def test_build(monkeypatch: Patch) -> None:
    monkeypatch.setattr(building, "build_engine", ends)
    found = reached(
        "build b --gpu l4 --max-seq-len 64 --max-batch 3 --prefill-chunk 5 --toolchain tensorrt "
        "--opt-level 2 --timing-cache t --separate-plans --allow-unfused --attention paged "
        "--page 32 --kv-cache fp8 --strip --log l"
    )
    assert found.arguments == (Path("b"),)
    assert found.named == {
        "gpu": "l4",
        "max_seq_len": 64,
        "max_batch": 3,
        "prefill_chunk": 5,
        "toolchain": "tensorrt",
        "opt_level": 2,
        "timing_cache": Path("t"),
        "single_plan": False,
        "allow_unfused": True,
        "attention": "paged",
        "page": 32,
        "kv_cache": "fp8",
        "strip": True,
        "log_file": Path("l"),
    }


def test_validate(monkeypatch: Patch, tmp_path: Path) -> None:
    """The module imports torch, which a unit test has not."""
    stub = SimpleNamespace(validate_bundle=ends)
    monkeypatch.setitem(sys.modules, "nemo_trt.validate.bundle_validation", stub)
    bundle = SimpleNamespace(precision="bf16")
    monkeypatch.setattr(Bundle, "open", lambda _: bundle)
    monkeypatch.setattr("nemo_trt.signature.read_key", lambda path: f"key of {path}")
    (tmp_path / "p").write_text("one\n\ntwo\n")
    common = f"validate b --reference r --prompts {tmp_path / 'p'} --max-batch 3 --max-seq-len 64"
    found = reached(f"{common} --random-weights --threads 2 --sign-key k --backend cuda")
    assert found.arguments == (bundle, Path("r"), ["one", "two"])
    expected = {
        "max_batch": 3,
        "max_seq_len": 64,
        "where": CUDA,
        "threads": 2,
        "random_weights": True,
        "private_key": "key of k",
        "rounding": None,
        "explained": False,
        "must_write": True,
    }
    assert found.named == expected
    found = reached(f"validate b --rounding bf16 --explain --json {tmp_path / 'j'}")
    named = dict.fromkeys(expected) | {"where": CPU, "random_weights": False}
    named |= {"rounding": DType.BF16, "explained": True, "must_write": False}
    assert found.named == named
    found = reached(f"validate b --rounding bf16 --kv-cache fp16 --explain --json {tmp_path / 'j'}")
    assert found.named == named | {"rounding": DType.FP16}


@pytest.mark.model
def test_export(monkeypatch: Patch, tmp_path: Path) -> None:
    from nemo_trt.stages import export as exporting

    monkeypatch.setattr(exporting, "export_checkpoint", ends)
    (tmp_path / "c").touch()
    found = reached(
        f"export c b --precision fp8 --weights in-place --format hf --dequantise --lora {tmp_path} "
        f"--lora {tmp_path}:0.5 --sha256 --force --calibration {tmp_path / 'c'} --samples 3 "
        "--clip mse --max-kl 0.5 --fp8-weights per-channel --merge-scales --fp8-lm-head "
        "--device cuda"
    )
    assert found.arguments == (Path("c"), Path("b"))
    adapters = [(one.path, one.weight) for one in found.named.pop("adapters")]
    assert adapters == [(tmp_path, 1.0), (tmp_path, 0.5)]
    assert found.named == {
        "precision": "fp8",
        "weights": "in-place",
        "format": "hf",
        "dequantise": True,
        "sha256": True,
        "force": True,
        "fp8": exporting.Fp8Options(
            calibration=tmp_path / "c",
            samples=3,
            clip="mse",
            max_kl=0.5,
            fp8_weights="per-channel",
            merge_scales=True,
            fp8_lm_head=True,
            device="cuda",
        ),
    }
    assert reached("export c b --precision bf16").named["fp8"] is None


def test_convert_and_inspect_open_a_checkpoint_as_they_are_told(monkeypatch: Patch) -> None:
    monkeypatch.setattr(checkpoints, "open_checkpoint", ends)
    found = reached("convert s d --to nemo --format gguf --dequantise")
    assert (found.arguments, found.named) == ((Path("s"), "gguf"), {"dequantise": True})
    for words, dequantise in (("", False), ("--dequantise", True)):
        found = reached(f"inspect {Path(__file__)} --format gguf {words}")
        assert found.arguments == (Path(__file__), "gguf")
        assert found.named == {"dequantise": dequantise, "keep_fp8": not dequantise}


@pytest.mark.parametrize("force", [True, False])
def test_convert_and_sample_replace_nothing_unless_they_are_told(
    force: bool, monkeypatch: Patch
) -> None:
    more = " --force" if force else ""
    monkeypatch.setattr(checkpoints, "open_checkpoint", lambda *_, **__: "the checkpoint")
    monkeypatch.setattr("nemo_trt.export.convert.convert", ends)
    found = reached(f"convert s d --to nemo{more}")
    assert found.arguments == ("the checkpoint", Path("d"), "nemo")
    assert found.named == {"force": force}
    monkeypatch.setattr(samples, "write_smollm2", ends)
    assert reached(f"sample d{more}").named == {"force": force}
    monkeypatch.setattr(samples, "write_seeded", ends)
    found = reached(f"sample d --shape nemo-tiny --layers 3 --seed 5{more}")
    assert found.arguments == (Path("d"), samples.SHAPES["nemo-tiny"])
    assert found.named == {"num_layers": 3, "seed": 5, "force": force}


def test_acceptance(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr("nemo_trt.acceptance.accept", ends)
    for name in ("c", "r", "t"):
        (tmp_path / name).touch()
    found = reached(
        f"acceptance {tmp_path / 'c'} {tmp_path / 'out'} --gpu l4 --precision fp8 --precision bf16 "
        f"--precision fp8 --max-seq-len 64 --max-batch 3 --reference {tmp_path / 'r'} "
        f"--calibration {tmp_path / 't'} --samples 4 --max-kl 0.5 --validate-seq-len 128 "
        "--prefill 16 --decode 48 --decode-steps 5 --threads 2 --again build --again bench"
    )
    options, _, again = found.arguments
    assert again == ("build", "bench")
    assert options == AcceptanceOptions(
        checkpoint=tmp_path / "c",
        folder=tmp_path / "out",
        gpu="l4",
        precisions=(DType.FP8, DType.BF16),
        max_seq_len=64,
        max_batch=3,
        reference=tmp_path / "r",
        calibration=tmp_path / "t",
        samples=4,
        max_kl=0.5,
        validate_seq_len=128,
        prefill=(16,),
        decode=(48,),
        decode_steps=5,
        threads=2,
    )


@pytest.mark.parametrize(
    ("words", "smoke"), [("", "first"), ("--smoke", "only"), ("--no-smoke", "none")]
)
def test_smoke_of_an_acceptance(words: str, smoke: str, monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr("nemo_trt.acceptance.accept", ends)
    (tmp_path / "c").touch()
    options, *_ = reached(
        f"acceptance {tmp_path / 'c'} {tmp_path / 'out'} --gpu l4 {words}"
    ).arguments
    assert options.smoke == smoke


def test_an_option_that_is_new_has_a_test_here() -> None:
    """Every option of every command, but for those that only say what is printed."""
    text = Path(__file__).read_text(encoding="utf-8")
    printing = {"--json", "--tensors", "--digest", "--debug", "--help", "--version"}
    elsewhere = {
        "demo": {"--question"},
        "run": {"--logprobs"},  # test_cli.py
        "serve": {"--api-key-file", "--front-ends"},  # test_keys.py, test_serve_front_ends.py
        "export": {"--scales"},  # test_engines.py
        "validate": {"--report", "--repro", "--verify-key"},  # tests/validate, test_verdict.py
    }
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        for option in (one for one in command.params if isinstance(one, click.Option)):
            known = {*option.opts, *option.secondary_opts}
            if not known & (printing | elsewhere.get(name, set())):
                assert any(re.search(rf"{one}\b(?!-)", text) for one in known), (name, known)
