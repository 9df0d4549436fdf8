"""benchmarks/peers.py: what it says of another process' memory is that process' own."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "peers.py"
MB = 2**20


@pytest.fixture(scope="module")
def peers() -> Any:
    spec = importlib.util.spec_from_file_location("peers", PEERS)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_peak_of_a_process_does_not_count_who_started_it_or_what_ran_before(peers: Any) -> None:
    held = bytearray(300 * MB)
    held[::4096] = b"x" * len(held[::4096])
    large = [sys.executable, "-c", f"print(len(b'x' * {200 * MB}))"]
    output, seconds, peak = peers.measured(large)
    assert output.strip() == str(200 * MB) and seconds > 0
    assert 200 * MB < peak < 290 * MB
    _, _, after = peers.measured([sys.executable, "-c", "pass"])
    assert after < 100 * MB


def test_a_command_that_fails_ends_the_run_with_its_words(peers: Any) -> None:
    with pytest.raises(SystemExit, match="no such luck"):
        peers.measured([sys.executable, "-c", "raise ValueError('no such luck')"])
