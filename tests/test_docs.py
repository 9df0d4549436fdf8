"""Links of the pages outside the documentation site, which its own strict build does not see."""

import re
from pathlib import Path

import pytest

import nemo_trt

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.unit
LINK = re.compile(r"""(?:\]\(|src="|srcset=")([^)"#]+)""")


def dead_links(page: Path) -> list[str]:
    """Relative links of a Markdown page that lead nowhere."""
    links = LINK.findall(page.read_text(encoding="utf-8"))
    return [link for link in links if "://" not in link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert dead_links(page) == []


def test_every_file_of_a_room_has_its_line_in_the_architecture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = ("nemo_trt", "passes", "export", "engines", "serve", "validate", "stages", "acceptance")
    for room in rooms:  # of `cli` it says: one file a command
        start = page.index(f"| **`{room}/`**")
        table = page[start : page.index("| **`", start + 1)]
        for path in [*(ROOT / room).glob("*.py"), *(ROOT / room).glob("*/__init__.py")]:
            name = f"{path.parent.name}/" if path.parent.name != room else path.name
            assert f"`{name}`" in table or path.name == "__init__.py" == name, f"{room}/{name}"


def test_every_public_name_is_in_the_reference_under_its_home() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    found = set(re.findall(r"^::: nemo_trt\.(\S+)$", page, re.M))
    homes = {f"{home}.{name}" for name, (home, _) in nemo_trt._HOMES.items()}
    assert found == homes | {"errors"}


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('[a](gone.md) [b](page.md#part) <img src="no.svg"> [c](https://example.org/x)')
    assert dead_links(page) == ["gone.md", "no.svg"]
