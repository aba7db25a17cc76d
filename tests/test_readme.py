"""The README's programs run, and print what it says that they print."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
PROGRAMS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README.read_text("utf-8"), re.S)


def test_says_of_every_program_what_it_prints() -> None:
    assert README.read_text("utf-8").count("```python") == len(PROGRAMS) >= 4


@pytest.mark.parametrize(("program", "printed"), PROGRAMS)
def test_a_program_prints_what_the_readme_says(program: str, printed: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(program, "utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert (done.stdout, done.stderr) == (printed, "")
