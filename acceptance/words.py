"""How the report writes numbers, bytes and tables."""

from collections.abc import Sequence


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """A Markdown table; `align` has "l" or "r" for each column."""
    marks = ["---:" if letter == "r" else "---" for letter in align]
    lines = [headings, marks, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def one_line(text: str) -> str:
    """A text whose line ends are spaces."""
    return " ".join(text.split())


def small(value: float | str) -> str:
    """An error; what JSON cannot hold is text already."""
    return value if isinstance(value, str) else f"{value:.1e}"


def share(value: float | str) -> str:
    """A share as per cent."""
    return value if isinstance(value, str) else f"{value:.1%}"


def number(value: float | str) -> str:
    """A number of about one to a thousand."""
    return value if isinstance(value, str) else f"{value:.4f}"


def num_bytes(count: int | None) -> str:
    """Bytes in decimal units; "" for none."""
    if not count:
        return ""
    value, units = float(count), ["B", "kB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return (
        f"{value:.0f} {units[0]}" if value >= 100 or units[0] == "B" else f"{value:.3g} {units[0]}"
    )
