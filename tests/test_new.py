"""`litejobs new`: what it writes works as it stands, and nothing is overwritten."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import litejobs

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> str:
    """What Python prints, who must have nothing to complain about."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**os.environ, "PYTHONPATH": str(PROJECT), "MYPYPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text("utf-8") for path in folder.rglob("*.py")}


class TestWhatItWrites:
    @pytest.fixture(autouse=True)
    def written(self) -> None:
        assert litejobs.main(["new", "reports:generate", "--queue", 'odd "queue" 😀']) == 0
        assert litejobs.main(["new", "plain"]) == 0

    def test_is_a_module_and_its_test(self, folder: Path) -> None:
        assert [*sorted(files(folder))] == [
            "plain.py", "reports_generate.py", "test_plain.py", "test_reports_generate.py",
        ]  # fmt: skip

    def test_passes_its_tests_and_leaves_no_queue_behind(self, folder: Path) -> None:
        assert "4 passed" in run("pytest", "-q", "-p", "no:cacheprovider")
        assert not [*folder.glob("*.db*")]

    def test_passes_ruff(self) -> None:
        run("ruff", "check", "--isolated", "--select", "A,B,C4,E,F,I,N,PT,RUF,SIM,UP,W")

    def test_is_formatted(self) -> None:
        # Which quotes are best depends on the name of the queue.
        run("ruff", "format", "--isolated", "--check", "plain.py", "test_plain.py")

    def test_passes_mypy(self) -> None:
        run("mypy", "--strict", ".")

    def test_fails_its_test_when_the_work_is_done_wrong(self, folder: Path) -> None:
        module = folder / "plain.py"
        module.write_text(module.read_text("utf-8").replace("{copies} of", "{copies} off"), "utf-8")
        with pytest.raises(AssertionError, match="2 failed"):
            run("pytest", "-q", "-p", "no:cacheprovider", "test_plain.py")

    def test_has_the_name_and_the_queue(self) -> None:
        look = "import reports_generate as m, plain as p;"
        look += "f = m.reports_generate; print(ascii([f.name, f.options.queue]));"
        look += "print([p.plain.name, p.plain.options.queue])"
        done = subprocess.run(
            [sys.executable, "-c", look],
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
            check=True,
        )
        expected = ascii(["reports:generate", 'odd "queue" 😀'])
        assert done.stdout == f"{expected}\n['plain', 'default']\n"


class TestWhatItSays:
    def test_is_what_to_do_next(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert litejobs.main(["new", "reports:generate"]) == 0
        assert capsys.readouterr().out == (
            "wrote reports_generate.py and test_reports_generate.py\n"
            "Put the work into reports_generate(). Where your LiteJobs is, add:\n"
            "    from reports_generate import reports_generate\n"
            "    jobs.register(reports_generate)\n"
            f"Try it: {Path(sys.executable).name} -m pytest test_reports_generate.py\n"
        )

    def test_names_the_folder(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "jobs").mkdir()
        assert litejobs.main(["new", "send-mail", "--dir", "jobs"]) == 0
        assert str(Path("jobs", "test_send_mail.py")) in capsys.readouterr().out
        assert sorted(files(folder)) == [
            str(Path("jobs", name)) for name in ("send_mail.py", "test_send_mail.py")
        ]


class TestWhatItRefuses:
    @pytest.mark.parametrize("there", ["reports_generate.py", "test_reports_generate.py"])
    def test_to_overwrite_either_file_and_writes_nothing(
        self, folder: Path, there: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (folder / there).write_text("mine")
        assert litejobs.main(["new", "reports:generate"]) == 2
        printed = capsys.readouterr()
        assert printed.err == f"litejobs: {there}: is there already, and stays as it is\n"
        assert printed.out == ""
        assert files(folder) == {there: "mine"}

    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            ("Reports", "expected lower-case words"),
            ("reports/generate", "expected lower-case words"),
            ("../reports", "expected lower-case words"),
            ("reports:", "expected lower-case words"),
            ("2fast", "expected lower-case words"),
            ("größe", "expected lower-case words"),
            ("x" * 201, "expected 1 to 200 printable"),
            ("", "expected 1 to 200 printable"),
            ("class", "'class' means something else already"),
            ("json", "'json' means something else already"),
            ("litejobs", "'litejobs' means something else already"),
        ],
    )
    def test_names_that_no_module_should_have(
        self, folder: Path, name: str, problem: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert litejobs.main(["new", name]) == 2
        assert capsys.readouterr().err.startswith(f"litejobs: NAME: {problem}")
        assert files(folder) == {}

    def test_a_queue_that_cannot_be(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert litejobs.main(["new", "plain", "--queue", ""]) == 2
        assert "litejobs: --queue: expected 1 to 200" in capsys.readouterr().err
        assert files(folder) == {}

    def test_a_folder_that_is_not_there(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert litejobs.main(["new", "plain", "--dir", "nowhere"]) == 2
        assert capsys.readouterr().err.endswith("plain.py: there is no such folder\n")
        assert [*folder.iterdir()] == []
