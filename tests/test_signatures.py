"""What `help()`, editors and other tools see of definitions."""

from __future__ import annotations

import doctest
import functools
import inspect
import pydoc
import sys
import typing
from typing import Any

import pytest

from litejobs import (
    Context,
    Definition,
    DefinitionChoices,
    LiteJobs,
    define,
)


@define(max_attempts=3)
def send(context: Context, to: str, *, copies: int = 1) -> list[str]:
    """Sends it.

    >>> send.name
    'send'
    """
    return [to] * copies


@define
async def fetch(url: str) -> None: ...


def plain(a, b=2):  # type: ignore[no-untyped-def]
    return a


class TestADefinition:
    def test_looks_like_its_function(self) -> None:
        assert (send.__name__, send.__qualname__, send.__module__) == ("send", "send", __name__)
        wrapped = send.__wrapped__
        assert send.__doc__ == wrapped.__doc__
        assert inspect.unwrap(send) is wrapped
        assert "def send(" in inspect.getsource(send)
        assert typing.get_type_hints(send)["to"] is str
        assert fetch.__doc__ is None

    def test_so_do_its_copies_with_other_options(self) -> None:
        copy = send.using(priority=1)
        assert (copy.__name__, copy.__doc__) == ("send", send.__doc__)
        assert inspect.signature(copy) == inspect.signature(send)
        assert inspect.signature(copy.enqueue) == inspect.signature(send.enqueue)

    def test_shows_the_parameters_without_the_context(self) -> None:
        assert str(inspect.signature(send)) == "(to: 'str', *, copies: 'int' = 1) -> 'list[str]'"

    @pytest.mark.parametrize(
        ("method", "returned"), [("enqueue", "Job"), ("aenqueue", "Job"), ("bind", "Bound")]
    )
    def test_methods_take_its_parameters(self, method: str, returned: str) -> None:
        of_send, of_fetch = (inspect.signature(getattr(each, method)) for each in (send, fetch))
        assert str(of_send) == f"(to: 'str', *, copies: 'int' = 1) -> '{returned}[list[str]]'"
        assert str(of_fetch) == f"(url: 'str') -> '{returned}[None]'"
        without = inspect.signature(getattr(define(plain), method))
        assert str(without) == f"(a, b=2) -> '{returned}[Any]'"
        assert inspect.iscoroutinefunction(getattr(send, method)) is (method == "aenqueue")

    def test_of_a_class_shows_its_fields(self, jobs: LiteJobs) -> None:
        import attrs

        @jobs.define
        @attrs.frozen
        class Mail:
            to: str

            def run(self) -> None: ...

        of_class = jobs.registry.named("Mail")
        assert [*inspect.signature(of_class.enqueue).parameters] == ["to"]

    def test_with_annotations_that_do_not_work_shows_what_it_has(self) -> None:
        @define
        def broken(a: NoSuchType) -> None: ...  # type: ignore[name-defined]  # noqa: F821

        assert [*inspect.signature(broken.enqueue).parameters] == ["a"]

    def test_help_is_about_the_function(self) -> None:
        text = pydoc.plain(pydoc.render_doc(send))
        assert "send(to: 'str', *, copies: 'int' = 1) -> 'list[str]'\n    Sends it." in text
        text = pydoc.plain(pydoc.render_doc(send.enqueue))
        assert "enqueue(to: 'str', *, copies: 'int' = 1)" in text
        assert "survives `kill -9`" in text

    def test_can_be_wrapped(self) -> None:
        @functools.wraps(send)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return send(*args, **kwargs)

        assert wrapper.__name__ == "send"
        assert [*inspect.signature(wrapper).parameters] == ["to", "copies"]
        assert wrapper("ada", copies=2) == ["ada", "ada"]

    def test_has_doctests(self) -> None:
        found = {test.name: test for test in doctest.DocTestFinder().find(sys.modules[__name__])}
        test = found[f"{__name__}.send"]
        assert doctest.DocTestRunner().run(test) == (0, 1)

    def test_of_all_is_shown_as_it_is(self) -> None:
        assert [*inspect.signature(Definition).parameters] == ["body", "options"]
        assert "args" in inspect.signature(Definition.enqueue).parameters
        assert "Calling it calls the function" in pydoc.plain(pydoc.render_doc(Definition))

    def test_as_an_attribute_of_a_class_is_itself(self) -> None:
        class Holder:
            job = send

        assert Holder().job is Holder.job is send


class TestDefine:
    def test_help_has_one_line_about_each_option(self, jobs: LiteJobs) -> None:
        for maker in (define, jobs.define):
            text = pydoc.plain(pydoc.render_doc(maker))
            lines = text.partition("Options:")[2].splitlines()
            shown = [line.partition(":")[0].strip() for line in lines if ": " in line]
            assert shown == [*DefinitionChoices.__annotations__]
            assert ": ?" not in text
            assert "        max_attempts: how many attempts it has at most\n" in text

    def test_shows_its_options_as_parameters(self, jobs: LiteJobs) -> None:
        parameters = inspect.signature(jobs.define).parameters
        assert [*parameters] == ["code", "name", *DefinitionChoices.__annotations__]
        assert str(parameters["timeout"]) == "timeout: 'Duration | None' = ..."


def test_signatures_show_types_and_leave_the_explanations_out() -> None:
    for method in (send.using, LiteJobs.find, LiteJobs.work, LiteJobs.aenqueue):
        for _ in range(2):
            assert "Annotated" not in str(inspect.signature(method))
    assert "def find(" in inspect.getsource(LiteJobs.find)
    assert "self" not in inspect.signature(LiteJobs("jobs.db").find).parameters
