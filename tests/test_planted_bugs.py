"""The bugs that are planted into copies of litejobs: that each still fits, and that one that does
not says so. (Whether the ordeals see them takes `python -m tests.chaos planted --full`.)"""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chaos.__main__ import ordeals
from chaos.planted import Bug, NotPlanted, bugs

import litejobs

SOURCE = '''
LIMIT = 4

class Store:
    def settle(self, now):
        """Settles."""
        if self.holds(
            now,
        ):
            return """
                UPDATE job SET state = ?
                WHERE claim = ?
            """
        return None

class Intake:
    def settle(self):
        return 1
'''


def bug(*edits: dict[str, Any]) -> Bug:
    return Bug.read("no-fence", "there is no fence", "model 20", list(edits))


def test_there_are_at_least_55_bugs() -> None:
    assert len(bugs()) >= 55


def test_every_bug_fits_the_source_and_knows_its_names(tmp_path: Path) -> None:
    source = inspect.getsource(litejobs)
    for one in bugs():
        broken = one.edit(source)
        assert broken != source, one.name
        (tmp_path / f"{one.name}.py").write_text(broken)
    # All at once and much faster than compile(); and it sees names that are not defined.
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select=F821"]
    done = subprocess.run([*ruff, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_bug_is_seen_by_an_ordeal_that_exists() -> None:
    assert {one.ordeal for one in bugs()} <= set(ordeals())


def test_a_snippet_is_found_whatever_the_whitespace() -> None:
    planted = bug({"in": "Store.settle", "find": "self.holds(now,)", "put": "True"}).plant(SOURCE)
    assert "if True:\n" in planted


def test_a_snippet_is_found_in_sql() -> None:
    edit = {"in": "Store.settle", "find": "= ? WHERE claim", "put": "= ?\nWHERE id"}
    planted = bug(edit).plant(SOURCE)
    assert "state = ?\n                WHERE id = ?\n" in planted


def test_a_constant_is_replaced() -> None:
    assert "LIMIT = 5" in bug({"in": "LIMIT", "find": "4", "put": "5"}).plant(SOURCE)


def test_statements_are_put_before_the_first_one() -> None:
    planted = bug({"in": "Store.settle", "start": "if now:\n    return 7"}).plant(SOURCE)
    space: dict[str, Any] = {}
    exec(planted, space)
    assert space["Store"]().settle(1) == 7
    assert space["Store"].settle.__doc__ == "Settles."


def test_a_body_is_replaced() -> None:
    planted = bug({"in": "Store.settle", "body": "x = now\nreturn x"}).plant(SOURCE)
    space: dict[str, Any] = {}
    exec(planted, space)
    assert space["Store"]().settle(1) == 1
    assert space["Intake"]().settle() == 1


def test_one_of_several_places_is_enough() -> None:
    edit = {"in": ["Gone.settle", "Intake.settle"], "body": "return 2"}
    assert "return 2" in bug(edit).plant(SOURCE)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        ({"in": "Gone.settle", "find": "now", "put": ""}, "there is no Gone.settle"),
        ({"in": "tle", "find": "now", "put": ""}, "there is no tle"),
        (
            {"in": "Store.settle", "find": "gone()"},
            r"Store.settle has the snippet 'gone\(\)' 0 times",
        ),
        ({"in": "Store", "find": "now"}, "Store has the snippet 'now' 2 times"),
        ({"in": "settle", "body": "pass"}, "settle is defined 2 times"),
        ({"in": "LIMIT", "body": "pass"}, "does not define a function"),
        ({"in": "LIMIT", "find": "4", "put": "("}, "does not compile"),
    ],
)
def test_a_bug_that_does_not_fit_says_which_and_why(edit: dict[str, Any], problem: str) -> None:
    with pytest.raises(NotPlanted, match=f"the bug no-fence .*{problem}"):
        bug(edit).plant(SOURCE)


@pytest.mark.parametrize("edit", [{"in": "LIMIT"}, {"in": "LIMIT", "find": "4", "body": "pass"}])
def test_an_edit_does_one_thing(edit: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="either find, start or body"):
        bug(edit)
