"""Writes the table of docs/hardware.md from docs/evidence.toml: `python tools/evidence.py`."""

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLE, PAGE = ROOT / "docs" / "evidence.toml", ROOT / "docs" / "hardware.md"
BEGIN = "<!-- from evidence.toml, by make docs -->\n"
END = "<!-- end -->\n"


def claims() -> list[dict[str, Any]]:
    """The entries of docs/evidence.toml, in order."""
    with TABLE.open("rb") as file:
        return list(tomllib.load(file)["claim"])


def table(entries: list[dict[str, Any]]) -> str:
    """The claims as Markdown."""
    lines = ["| claim | level | evidence |", "|---|---:|---|"]
    for one in entries:
        tests = ", ".join(f"`{name}`" for name in one.get("tests", ()))
        parts = [one.get("ran"), one.get("notes"), f"tests: {tests}" if tests else None]
        evidence = "; ".join(part for part in parts if part)
        lines.append(f"| {one['claim']} | {one['level'] or '–'} | {evidence} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """docs/hardware.md with its table written anew."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{table(claims())}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
