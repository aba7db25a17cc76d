"""The programs of the README and of the guide run, and print what they say that they print."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {page: (ROOT / page).read_text("utf-8") for page in ("README.md", "examples/README.md")}
PROGRAM = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.S)
PROGRAMS = {
    match.groups(): f"{page}:{text.count(chr(10), 0, match.start()) + 1}"
    for page, text in reversed(PAGES.items())
    for match in PROGRAM.finditer(text)
}
"""Programs and what they print, with a place: some are on both pages."""


def test_the_readme_is_one_page() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 600


@pytest.mark.parametrize("page", [*PAGES, "tests/README.md"])
def test_what_a_page_links_to_is_there(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    anchors = {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads(text)}
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        place, _, anchor = link.partition("#")
        if place and not place.startswith("http"):
            assert ((ROOT / page).parent / place).exists(), link
        elif anchor and not place:
            assert anchor in anchors, link


def heads(text: str) -> list[str]:
    return re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)


def test_every_example_is_in_the_readme() -> None:
    for path in (ROOT / "examples").iterdir():
        if path.is_file() and path.name not in ("README.md", "__init__.py"):
            assert f"(examples/{path.name})" in PAGES["README.md"] or path.suffix == ".db"


@pytest.mark.parametrize("page", PAGES)
def test_says_of_every_program_what_it_prints(page: str) -> None:
    assert PAGES[page].count("```python") == len(PROGRAM.findall(PAGES[page])) >= 4


@pytest.mark.parametrize(("program", "printed"), PROGRAMS, ids=PROGRAMS.values())
def test_a_program_prints_what_the_page_says(program: str, printed: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(program, "utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert (done.stdout, done.stderr) == (printed, "")
