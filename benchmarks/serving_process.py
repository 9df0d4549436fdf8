"""`nemo-trt serve` as a process of its own, for the benchmarks: started, watched, stopped."""

import asyncio
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

_READY = re.compile(r"Ready after ([0-9.]+) s")


@dataclass(frozen=True, kw_only=True)
class ServerProcess:
    """A server that is ready.

    Attributes:
        ready_s: from the start of the process until /health/ready said 200.
        own_ready_s: what the server says of it, which does not know of the interpreter's start.
    """

    url: str
    pid: int
    ready_s: float
    own_ready_s: float
    max_seq_len: int
    prefill_tokens: int

    def rss_bytes(self) -> int:
        """Memory that the process holds now."""
        return self._status_bytes("VmRSS")

    def peak_bytes(self) -> int:
        """The most memory that it has held, since `forget_peak` if that was called."""
        return self._status_bytes("VmHWM")

    def forget_peak(self) -> None:
        """Let `peak_bytes` begin again."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def cpu_s(self) -> float:
        """Processor time that it has used."""
        return sum(run for run, _ in self.threads().values())

    def threads(self) -> dict[int, tuple[float, float]]:
        """Thread -> seconds that it ran, and seconds that it waited for a processor."""
        found = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(OSError):  # it has ended
                run, waited, _ = (task / "schedstat").read_text().split()
                found[int(task.name)] = int(run) / 1e9, int(waited) / 1e9
        return found

    def _status_bytes(self, name: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"no {name}")

    async def metrics(self) -> dict[str, float]:
        """Prometheus's samples by name and labels."""
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"{self.url}/metrics", timeout=60)).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}


@asynccontextmanager
async def launch(
    bundle: Path,
    *,
    max_batch: int = 8,
    max_seq_len: int = 2048,
    max_queue: int = 64,
    max_files: int | None = None,
    options: Sequence[str] = (),
) -> AsyncIterator[ServerProcess]:
    """Start a server and yield it when it is ready; stop it in the end.

    Args:
        max_files: the process's limit of open files.
        options: more of `nemo-trt serve`.

    Raises:
        SystemExit: it ended before it was ready.
    """
    prefill_tokens = 512
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "nemo_trt.cli.main", "serve", str(bundle)]
    command += ["--port", str(port), "--max-batch", str(max_batch), "--max-queue", str(max_queue)]
    command += ["--max-seq-len", str(max_seq_len), "--prefill-tokens", str(prefill_tokens)]
    command += ["--allow-unvalidated", "--model-name", "bench", "--drain-timeout", "0"]
    command += options
    if max_files is not None:
        command = ["sh", "-c", f'ulimit -n {max_files}; exec "$@"', "sh", *command]
    with tempfile.TemporaryFile("a+") as log:
        start = time.perf_counter()
        process = await asyncio.create_subprocess_exec(*command, stderr=log)
        try:
            async with httpx.AsyncClient() as client:
                while not await _is_ready(client, url):
                    if process.returncode is not None:
                        log.seek(0)
                        raise SystemExit(f"the server ended: {log.read()[-2000:]}")
                    await asyncio.sleep(0.02)
            ready_s = time.perf_counter() - start
            while not (said := _READY.search(_read(log))):
                await asyncio.sleep(0.02)
            yield ServerProcess(
                url=url,
                pid=process.pid,
                ready_s=ready_s,
                own_ready_s=float(said.group(1)),
                max_seq_len=max_seq_len,
                prefill_tokens=prefill_tokens,
            )
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
                await process.wait()


async def _is_ready(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(f"{url}/health/ready")).status_code == 200
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _read(log: "tempfile._TemporaryFileWrapper[str]") -> str:
    log.seek(0)
    return log.read()
