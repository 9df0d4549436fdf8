"""nemo-trt, transformers and onnxruntime-genai side by side on the sample model, in alternation.

    python benchmarks/peers.py [--checkpoint DIR] [--rounds 3] [--json FILE]

Needs the extras demo, validate, cpu, and `pip install onnxruntime-genai`. Every figure is taken in
a process of its own, the three peers in turn, round after round, so that a machine whose speed
drifts does not favour one. What is compared: medians over the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PEERS = ("nemo-trt", "transformers", "onnxruntime-genai")
PREFILLS = (128, 1024)
CAPACITIES = (2048, 8192)
DECODE_AT, DECODE_STEPS = 64, 40


def tokens(count: int, vocab_size: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, vocab_size, count)


def median_rate(times: list[float]) -> float:
    return 1 / statistics.median(times[2:])


def run_nemo_trt(folder: Path) -> dict[str, float]:
    from nemo_trt.engines.runner import Runner

    start = time.perf_counter()
    runner = Runner.open(folder / "bundle")
    figures = {"load s": time.perf_counter() - start}
    vocab = runner.config.vocab_size
    for length in PREFILLS:
        ids = tokens(length, vocab).tolist()
        times = []
        for _ in range(3):
            runner.rewind(0)
            start = time.perf_counter()
            runner.prefill({0: ids})
            times.append(time.perf_counter() - start)
        figures[f"prefill {length} tokens/s"] = length / min(times)
    runner.close()
    for capacity in CAPACITIES:
        with Runner.open(folder / "bundle", max_seq_len=capacity) as runner:
            logits = runner.prefill({0: tokens(DECODE_AT, vocab).tolist()})
            times = []
            for _ in range(DECODE_STEPS):
                start = time.perf_counter()
                logits = runner.decode({0: int(logits[0].argmax())})
                times.append(time.perf_counter() - start)
            figures[f"decode at capacity {capacity} tokens/s"] = median_rate(times)
    return figures


def run_transformers(folder: Path) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM, StaticCache

    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder / "checkpoint", dtype=torch.float32)
    model.eval()
    figures = {"load s": time.perf_counter() - start}
    vocab = model.config.vocab_size
    with torch.no_grad():
        for length in PREFILLS:
            ids = torch.from_numpy(tokens(length, vocab))[None]
            times = []
            for _ in range(3):
                start = time.perf_counter()
                model(ids, logits_to_keep=1)
                times.append(time.perf_counter() - start)
            figures[f"prefill {length} tokens/s"] = length / min(times)
        for capacity in CAPACITIES:
            rates = []
            # Both of its caches; the faster one counts. A dynamic cache has no capacity.
            for cache in (None, StaticCache(config=model.config, max_cache_len=capacity)):
                ids = torch.from_numpy(tokens(DECODE_AT, vocab))[None]
                output = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                times = []
                for _ in range(DECODE_STEPS):
                    start = time.perf_counter()
                    token = output.logits[:, -1:].argmax(-1)
                    output = model(token, past_key_values=output.past_key_values, use_cache=True)
                    times.append(time.perf_counter() - start)
                rates.append(median_rate(times))
            figures[f"decode at capacity {capacity} tokens/s"] = max(rates)
    return figures


def run_genai(folder: Path) -> dict[str, float]:
    import onnxruntime_genai as genai

    start = time.perf_counter()
    model = genai.Model(str(folder / "genai"))
    figures = {"load s": time.perf_counter() - start}
    config = json.loads((folder / "checkpoint" / "config.json").read_text(encoding="utf-8"))
    vocab = config["vocab_size"]

    def generator(capacity: int) -> Any:
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=capacity, do_sample=False)
        return genai.Generator(model, params)

    for length in PREFILLS:
        ids = tokens(length, vocab).astype("int32")
        times = []
        for _ in range(3):
            one = generator(2048)
            start = time.perf_counter()
            one.append_tokens(ids)
            times.append(time.perf_counter() - start)
        figures[f"prefill {length} tokens/s"] = length / min(times)
    for capacity in CAPACITIES:
        one = generator(capacity)
        one.append_tokens(tokens(DECODE_AT, vocab).astype("int32"))
        times = []
        for _ in range(DECODE_STEPS):
            if one.is_done():
                break
            start = time.perf_counter()
            one.generate_next_token()
            times.append(time.perf_counter() - start)
        figures[f"decode at capacity {capacity} tokens/s"] = median_rate(times)
    return figures


RUN = {"nemo-trt": run_nemo_trt, "transformers": run_transformers, "onnxruntime-genai": run_genai}


WATCH = """
import resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.call(sys.argv[2:])
elapsed = time.perf_counter() - start
with open(sys.argv[1], "w") as file:
    print(elapsed, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=file)
sys.exit(code)
"""
"""Runs a command from a small process. Linux counts what a process held when it forked as the peak
of what it forked, so a large one cannot measure a small one."""


def measured(command: list[str]) -> tuple[str, float, int]:
    """Run a command: its standard output, seconds, and peak RSS of its process in bytes."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures"
        watched = [sys.executable, "-S", "-c", WATCH, str(figures), *command]
        done = subprocess.run(watched, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        elapsed, peak_kb = figures.read_text(encoding="utf-8").split()
        return done.stdout, float(elapsed), int(peak_kb) * 1024


def export_commands(folder: Path) -> dict[str, list[str]]:
    """Each peer's own command line; transformers runs the checkpoint as it is."""
    python, checkpoint = [sys.executable, "-m"], str(folder / "checkpoint")
    ours = [*python, "nemo_trt.cli.main", "export", checkpoint, str(folder / "bundle"), "--force"]
    theirs = [*python, "onnxruntime_genai.models.builder", "-m", checkpoint]
    theirs += ["-o", str(folder / "genai"), "-p", "fp32", "-e", "cpu"]
    theirs += ["-c", str(folder / "cache")]
    return {"nemo-trt": ours, "onnxruntime-genai": theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="by default the sample model is written")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        print(json.dumps(RUN[arguments.peer](arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.checkpoint:
            (folder / "checkpoint").symlink_to(arguments.checkpoint.resolve())
        else:
            from nemo_trt.export.samples import write_smollm2

            write_smollm2(folder / "checkpoint")
        rounds: dict[str, list[dict[str, float]]] = {peer: [] for peer in PEERS}
        for number in range(arguments.rounds):
            exported = {}
            for peer, command in export_commands(folder).items():
                _, seconds, peak = measured(command)
                exported[peer] = {"export s": seconds, "export peak GB": peak / 1e9}
            for peer in PEERS:
                print(f"round {number + 1} of {arguments.rounds}: {peer}", file=sys.stderr)
                command = [sys.executable, __file__, "--peer", peer, "--folder", str(folder)]
                output, _, _ = measured(command)
                figures = json.loads(output.splitlines()[-1])
                rounds[peer].append({**exported.get(peer, {}), **figures})
    medians = {
        peer: {key: statistics.median(one[key] for one in every) for key in every[0]}
        for peer, every in rounds.items()
    }
    show(medians)
    if arguments.json:
        arguments.json.write_text(json.dumps({"medians": medians, "rounds": rounds}, indent=2))


def show(medians: dict[str, dict[str, float]]) -> None:
    """The table, in Markdown; a ratio above 1 means that nemo-trt is better."""
    ours = medians["nemo-trt"]
    print("| figure | nemo-trt | transformers | onnxruntime-genai | vs transformers | vs genai |")
    print("|---|---:|---:|---:|---:|---:|")
    for key, value in ours.items():
        cells, ratios = [f"{value:.2f}"], []
        for peer in PEERS[1:]:
            theirs = medians[peer].get(key)
            cells.append("–" if theirs is None else f"{theirs:.2f}")
            if theirs is None:
                ratios.append("–")
            else:
                better = value / theirs if key.endswith("tokens/s") else theirs / value
                ratios.append(f"{better:.2f}x")
        print(f"| {key} | {' | '.join(cells)} | {' | '.join(ratios)} |")


if __name__ == "__main__":
    main()
