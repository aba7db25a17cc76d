"""Draws examples/terminal.svg from a session that really runs: `python tests/picture.py`.

It needs rich (`pip install rich`), and takes some twenty seconds.
"""

import contextlib
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.text import Text

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
WIDTH = 92
PACKAGES = ("asyncio", "email", "json", "logging", "unittest", "xml", "importlib")


def run(command: str, folder: Path, *, kill_at: int | None = None) -> str:
    """What a command prints. It is killed with all its workers when so many files are indexed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        command,
        shell=True,
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": str(WIDTH)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        done = re.match(r"(\d+)/", line)
        if kill_at is not None and done is not None and int(done[1]) >= kill_at:
            os.killpg(process.pid, signal.SIGKILL)
            lines.append("Killed\n")
            kill_at = None
    process.wait()
    return "".join(lines)


def look(command: str, folder: Path) -> str:
    """What a command prints on a terminal."""
    ours, theirs = pty.openpty()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    subprocess.run(command, shell=True, cwd=folder, env=environment, stdout=theirs, check=False)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # It is at its end.
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")


def main() -> None:
    with open(os.devnull, "w") as nowhere, TemporaryDirectory() as name:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True)
        folder = Path(name)
        for package in PACKAGES:
            shutil.copytree(Path(sysconfig.get_path("stdlib"), package), folder / "lib" / package)
        (folder / "lib" / "old.py").write_text("print 'an older Python'\n")
        shutil.copy(EXAMPLES / "index_library.py", folder)
        index = "python index_library.py lib --db jobs.db"
        for command, words, kill_at in (
            (index, "# kill -9 of all its processes", 60),
            ("litejobs stats jobs.db", "", None),
            (index, "# goes on where it was", None),
            ("litejobs list jobs.db --limit 5", "", None),
            ("litejobs errors jobs.db", "", None),
        ):
            if command.startswith("litejobs"):
                output = look(command, folder).splitlines()
            else:
                output = run(command, folder, kill_at=kill_at).splitlines()[:12]
            line = Text.assemble(("$ ", "green"), (command, "bold"), f"{'':8}", (words, "dim"))
            console.print(line)
            for line in output:
                console.print(Text.from_ansi(line), no_wrap=True, crop=True)
            console.print()
    picture = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="litejobs"), flags=re.S)
    (EXAMPLES / "terminal.svg").write_text(picture, encoding="utf-8")  # It fetches no fonts.


if __name__ == "__main__":
    main()
