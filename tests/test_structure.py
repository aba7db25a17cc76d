"""The file is a book: this reads it, and holds its order and its habits.

Each rule is a function that gives the violations of it; each is tried on a text that breaks it,
and then on litejobs.py.
"""

from __future__ import annotations

import ast
import functools
import re
import symtable
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

SOURCE = Path(__file__).resolve().parent.parent / "litejobs.py"
SECTIONS = [
    "Errors",
    "Values",
    "Policies",
    "Schedules",
    "Wire",
    "Definitions",
    "Execution",
    "Tracing",
    "Schema",
    "File",
    "Jobs in SQL",
    "Caller's connection",
    "Enqueue",
    "Schedules in SQL",
    "Ready",
    "Nodes",
    "Health",
    "Store",
    "Events",
    "Duties",
    "Program",
    "Worker",
    "Supervisor",
    "LiteJobs",
    "Testing",
    "Command line",
]
OF_SQL = SECTIONS[SECTIONS.index("Schema") : SECTIONS.index("Store") + 1]
RULER = "#" * 80
LONGEST_FUNCTION = 60

# What begins or joins a statement of SQL. Words alone would be found in plain sentences.
SQL = re.compile(
    r"\b(SELECT|INSERT( OR \w+)? INTO|UPDATE\s+\S+\s+SET|DELETE FROM|RETURNING|ORDER BY|GROUP BY"
    r"|(CREATE|DROP|ALTER)( \w+)? (TABLE|INDEX|TRIGGER|VIEW)|PRAGMA|WHERE"
    r"|BEGIN( (IMMEDIATE|EXCLUSIVE|DEFERRED))?|COMMIT|ROLLBACK|SAVEPOINT|VACUUM|ATTACH)\b"
)

Definition = ast.FunctionDef | ast.AsyncFunctionDef
Scope = ast.ClassDef | Definition


@attrs.frozen
class Section:
    """A banner's noun and prose, and the statements from it to the next banner."""

    name: str
    prose: tuple[str, ...]
    line: int
    body: tuple[ast.stmt, ...]


@functools.cache
def sections(source: str) -> list[Section]:
    """The sections of a file. Only whole banners count: a ruler, `# Noun`, prose, a ruler."""
    banner = re.compile(rf"^{RULER}\n# (.+)\n((?:#.*\n)*?){RULER}$", re.MULTILINE)
    found = [
        (source.count("\n", 0, match.start()) + 1, match[1], tuple(match[2].splitlines()))
        for match in banner.finditer(source)
    ]
    ends = [*(line for line, _, _ in found), source.count("\n") + 2][1:]
    statements = ast.parse(source).body
    return [
        Section(name, prose, line, tuple(s for s in statements if line < s.lineno < end))
        for (line, name, prose), end in zip(found, ends, strict=True)
    ]


# The rules


class RunTimeOnly(ast.NodeTransformer):
    """Leaves out what does not run: annotations, and code for type checkers alone."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.copy_location(ast.arg(node.arg), node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        value = node.value or ast.Constant(None)
        return self.generic_visit(ast.copy_location(ast.Assign([node.target], value), node))

    def visit_If(self, node: ast.If) -> ast.AST:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return ast.copy_location(ast.If(ast.Constant(False), [ast.Pass()], node.orelse), node)
        return self.generic_visit(node)


def names_used(statement: ast.stmt) -> set[str]:
    """The names of the module that a top-level statement reads when it or its code runs."""
    stripped = RunTimeOnly().visit(ast.parse(ast.unparse(statement)))
    table = symtable.symtable(ast.unparse(stripped), "<statement>", "exec")
    used = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced()}
    for inner in tables_below(table):
        used |= {symbol.get_name() for symbol in inner.get_symbols() if symbol.is_global()}
    return used


def tables_below(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    for inner in table.get_children():
        yield inner
        yield from tables_below(inner)


def names_defined(statement: ast.stmt) -> set[str]:
    """The names that a top-level statement gives to the module."""
    table = symtable.symtable(ast.unparse(statement), "<statement>", "exec")
    return {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned()}


def forward_references(source: str) -> list[str]:
    """Where a section uses a name of a section below it."""
    parts = sections(source)
    homes: dict[str, int] = {}
    for place, section in enumerate(parts):
        for statement in section.body:
            for name in names_defined(statement):
                homes.setdefault(name, place)
    return [
        f"{section.name}, line {statement.lineno}: uses {name} of {parts[homes[name]].name}"
        for place, section in enumerate(parts)
        for statement in section.body
        for name in sorted(names_used(statement))
        if homes.get(name, place) > place
    ]


def scopes(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Scope, bool]]:
    """All classes and functions: dotted name, node, and whether it is public all the way."""
    for statement in body:
        if isinstance(statement, Scope):
            name = prefix + statement.name
            public = not re.search(r"(^|\.)_", name)
            inside = isinstance(statement, ast.ClassDef)
            yield name, statement, public
            for below, node, also in scopes(statement.body, f"{name}."):
                yield below, node, public and inside and also
        elif isinstance(statement, ast.If | ast.Try | ast.With):
            inner = [s for s in ast.iter_child_nodes(statement) if isinstance(s, ast.stmt)]
            yield from scopes(inner, prefix)


def is_overload(node: Scope) -> bool:
    return any(ast.unparse(d) in ("overload", "typing.overload") for d in node.decorator_list)


def undocumented(source: str) -> list[str]:
    """Public classes, functions and methods without a docstring. Python's own methods
    (`__len__`) and the overloads of one function need none."""
    return [
        f"line {node.lineno}: {name}"
        for name, node, public in scopes(ast.parse(source).body)
        if public and not is_overload(node) and not ast.get_docstring(node)
    ]


def length(node: Scope) -> int:
    """Lines from `def` to the end, without the docstring."""
    lines = (node.end_lineno or 0) - node.lineno + 1
    if ast.get_docstring(node) is not None:
        docstring = node.body[0]
        lines -= (docstring.end_lineno or 0) - docstring.lineno + 1
    return lines


def long_functions(source: str) -> list[str]:
    """Functions that no longer fit a page."""
    return [
        f"line {node.lineno}: {name} has {length(node)} lines"
        for name, node, _ in scopes(ast.parse(source).body)
        if not isinstance(node, ast.ClassDef) and length(node) > LONGEST_FUNCTION
    ]


def constants(statement: ast.stmt) -> Iterator[ast.Constant]:
    """All constants in code; docstrings, which are for people, left out."""
    docstrings = {id(node.value) for node in ast.walk(statement) if isinstance(node, ast.Expr)}
    for node in ast.walk(statement):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            yield node


def sql_outside_the_store(source: str) -> list[str]:
    """Texts above the File or below the Store that look like SQL."""
    return [
        f"{section.name}, line {constant.lineno}: {found[0]}"
        for section in sections(source)
        if section.name not in OF_SQL
        for statement in section.body
        for constant in constants(statement)
        if (found := SQL.search(str(constant.value)))
    ]


# Tried on texts that break them


def banner(name: str, prose: str = "Prose.") -> str:
    return f"{RULER}\n# {name}\n#\n# {prose}\n{RULER}\n"


TWO_SECTIONS = banner("First") + "{}\n" + banner("Second") + "def later(): ...\nLATER = 1\n"


def test_a_banner_without_its_second_ruler_makes_no_section() -> None:
    assert [section.name for section in sections(TWO_SECTIONS.format("x = 1"))] == [
        "First",
        "Second",
    ]
    assert sections(f"{RULER}\n# Errors\n\nx = 1\n") == []


@pytest.mark.parametrize(
    "code",
    [
        "later()",
        "def f(): return later()",
        "def f(x=LATER): ...",
        "async def f(): return [later() for _ in ()]",
        "class C:\n    x: int = LATER",
        "class C:\n    def m(self): return lambda: later",
        "@later\ndef f(): ...",
        "f = lambda: later()",
        "Kind = list[LATER]",
        "try: pass\nexcept LATER: pass",
        "def f():\n    def g(): return later()\n    return g",
        "if not TYPE_CHECKING: later()",
    ],
)
def test_a_name_of_a_later_section_is_found_wherever_it_is_used(code: str) -> None:
    [found] = forward_references(TWO_SECTIONS.format(code))
    assert re.fullmatch(r"First, line \d+: uses (later|LATER) of Second", found)


@pytest.mark.parametrize(
    "code",
    [
        "def f(x: later) -> LATER: y: LATER = x",
        "class C:\n    x: later",
        "def f(later): return later",
        "def f():\n    later = 1\n    return later",
        "def f(): return [later for later in ()]",
        "def f(x): return x.later",
        "class C:\n    def later(self): return self.later()",
        "if TYPE_CHECKING:\n    x = later()",
    ],
)
def test_annotations_and_names_of_ones_own_are_no_use_of_a_later_section(code: str) -> None:
    assert forward_references(TWO_SECTIONS.format(code)) == []


def test_a_missing_docstring_is_found() -> None:
    source = """
class Public:
    def method(self): ...
    def _own(self): ...
    def __len__(self): ...
class _Own:
    def method(self): ...
def function():
    def inner(): ...
@overload
def function(): ...
if True:
    async def other(): ...
def fine():
    "Has one."
"""
    found = [line.partition(": ")[2] for line in undocumented(source)]
    assert found == ["Public", "Public.method", "function", "other"]


def test_a_long_function_is_found_and_its_docstring_does_not_count() -> None:
    lines = "    x = 1\n" * (LONGEST_FUNCTION - 1)
    docstring = '    """One.\n\n    Two.\n    """\n'
    assert long_functions(f"def f():\n{docstring}{lines}") == []
    assert long_functions(f"def f():\n{lines}    x = 2\n") == ["line 1: f has 61 lines"]
    assert long_functions(f"class C:\n  def f(self):\n{lines}    x = 2\n") == [
        "line 2: C.f has 61 lines"
    ]


def test_sql_outside_the_store_is_found_and_words_are_not() -> None:
    def found(code: str) -> list[str]:
        return sql_outside_the_store(banner("Worker") + code)

    assert found("x = f'SELECT {y} FROM z'") != []
    assert found("def f():\n    run('''\n        DELETE FROM litejobs_job\n    ''')") != []
    assert found("x = 'PRAGMA user_version'") != []
    assert found("x = 'select a job, update it, delete from the list'") == []
    assert found("def f():\n    'SELECT is what this does.'") == []
    assert sql_outside_the_store(banner("Store") + "x = 'SELECT 1'") == []


# litejobs.py


@pytest.fixture(scope="module")
def source() -> str:
    return SOURCE.read_text(encoding="utf-8")


def test_the_sections_stand_in_their_order(source: str) -> None:
    assert [section.name for section in sections(source)] == SECTIONS


def test_the_docstring_lists_the_sections_in_that_order(source: str) -> None:
    docstring = ast.get_docstring(ast.parse(source)) or ""
    listed = docstring.partition("uses only those above it:")[2]
    plain = re.sub(r"\(.*?\)", "", listed).rstrip(".\n")
    assert [" ".join(name.split()) for name in plain.split(",")] == SECTIONS


def test_every_ruler_belongs_to_a_banner_with_up_to_six_lines_of_prose(source: str) -> None:
    found = sections(source)
    assert len(re.findall(r"^#{20,}", source, re.MULTILINE)) == 2 * len(found)
    for section in found:
        assert section.prose[0] == "#", section.name
        assert 2 <= len(section.prose) <= 7, section.name


def test_code_stands_in_a_section(source: str) -> None:
    first = sections(source)[0].line
    before = [s for s in ast.parse(source).body if s.lineno < first]
    for statement in before:
        if isinstance(statement, ast.If):
            assert ast.unparse(statement.test) == "typing.TYPE_CHECKING"
            assert all(isinstance(s, ast.Import | ast.ImportFrom) for s in statement.body)
        else:
            assert isinstance(statement, ast.Import | ast.ImportFrom | ast.Expr | ast.Assign)


def test_a_section_uses_only_those_above_it(source: str) -> None:
    assert forward_references(source) == []


def test_every_public_name_has_a_docstring(source: str) -> None:
    assert undocumented(source) == []


def test_no_function_is_longer_than_a_page(source: str) -> None:
    assert long_functions(source) == []


def test_sql_stands_in_the_store_alone(source: str) -> None:
    assert sql_outside_the_store(source) == []
