"""Writes the table of docs/tensorrt.md from acceptance/smoke/facts.py: `python tools/facts.py`."""

from pathlib import Path

from nemo_trt.acceptance.smoke.facts import FACTS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tensorrt.md"
BEGIN = "<!-- from acceptance/smoke/facts.py, by make docs -->\n"
END = "<!-- end -->\n"


def table() -> str:
    """The facts as Markdown."""
    lines = [
        "| | the fact | what rests on it | if refuted | fails the smoke if |",
        "|---|---|---|---|---|",
    ]
    for one in FACTS:
        cells = (one.name, one.says, one.matters, one.refuted, one.fails or "never")
        lines += [f"| {' | '.join(cells)} |"]
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """docs/tensorrt.md with its table written anew."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
