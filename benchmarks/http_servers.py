"""HTTP servers for Python under the attacks that a connection can carry, and what a token costs.

python benchmarks/http_servers.py [--seconds S]

The same small application behind this project's server (uvicorn's h11 protocol, guarded), plain
uvicorn with either parser, hypercorn and granian, those that are installed, each with a limit of
256 open files. Figures are CPU time of the server; docs/dependencies.md draws the conclusion.
"""

import argparse
import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Awaitable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attack_list import _connected, _endless_header, _silent, get

FILES, STREAMS, TOKENS = 256, 8, 1000
CHUNK = b'data: {"choices":[{"index":0,"text":" a","finish_reason":null}]}\n\n'
SERVERS = {
    "ours": "uvicorn",
    "uvicorn, h11": "uvicorn",
    "uvicorn, httptools": "httptools",
    "hypercorn": "hypercorn",
    "granian": "granian",
}


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Health, and a stream of tokens."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/stream":
        for _ in range(TOKENS):
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
            await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def serve(name: str, port: int) -> None:
    """Become a server."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    if name == "granian":
        from granian import Granian
        from granian.constants import Interfaces

        Granian("http_servers:app", port=port, interface=Interfaces.ASGI, log_enabled=False).serve()
    elif name == "hypercorn":
        from hypercorn.asyncio import serve as serve_hypercorn
        from hypercorn.config import Config

        config = Config()
        config.bind, config.errorlog = [f"127.0.0.1:{port}"], None
        asyncio.run(serve_hypercorn(app, config))  # type: ignore[arg-type]
    else:
        import uvicorn

        http: Any = name.partition(", ")[2] or None
        if http is None:
            from nemo_trt.serve.http.connections import GuardedProtocol, affordable_connections

            http = GuardedProtocol.limited_to(affordable_connections())
        uvicorn.run(app, port=port, http=http, log_level="critical", loop="asyncio")


async def measure(name: str, port: int, seconds: float) -> list[str]:
    """One row: health beside silent connections, an endless header, memory, CPU of a token."""
    command = [sys.executable, __file__, "--serve", name, "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        while await _within(get(url, "/health"), 1) != "200":
            await asyncio.sleep(0.05)
        before = _cpu_s(process.pid)
        await asyncio.gather(*(_stream(url) for _ in range(STREAMS)))
        token_us = (_cpu_s(process.pid) - before) / (STREAMS * TOKENS) * 1e6
        before_bytes = _rss(process.pid)
        header = await _within(_endless_header(url, 2**26), seconds * 4)
        grown = (_rss(process.pid) - before_bytes) / 2**20
        silent = await _within(_silent(url, 300, seconds), seconds * 4)
        return [name, f"{token_us:.0f}", _words(header), f"{grown:.0f}", _words(silent)]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _words(found: Any) -> str:
    return ", ".join(f"{n} x {what}" for what, n in found.items()) if found else "nobody served"


async def _within(work: Awaitable[Any], seconds: float) -> Any:
    try:
        return await asyncio.wait_for(work, seconds)
    except (OSError, TimeoutError, IndexError):
        return None


async def _stream(url: str) -> None:
    reader, writer = await _connected(url)
    writer.write(b"GET /stream HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    while await reader.read(65536):
        pass
    writer.close()


def _processes(pid: int) -> list[int]:
    """A server and its workers."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _processes(int(child)))]


def _cpu_s(pid: int) -> float:
    ticks = 0
    for one in _processes(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _rss(pid: int) -> int:
    pages = (int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in _processes(pid))
    return sum(pages) * resource.getpagesize()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="that connections stay silent")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=8790, help="the first of five")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.port)
        return
    print("|server|CPU of a token, us|endless header|memory, MB|300 silent connections|")
    for at, (name, package) in enumerate(SERVERS.items()):
        if find_spec(package):
            row = asyncio.run(measure(name, arguments.port + at, arguments.seconds))
            print("|".join(["", *row, ""]), flush=True)


if __name__ == "__main__":
    main()
