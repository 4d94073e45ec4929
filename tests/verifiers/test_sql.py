from __future__ import annotations

import os
import re
import sqlite3
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3agent.errors import ConfigError, VerifierError
from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers import find_verifier, judge
from r3agent.verifiers.child.querying import Refused, is_ordered, opened, rows_of, same_rows
from r3agent.verifiers.sql import Sql
from tests.support.trees import span

SCHEMA = """
create table t(a, b);
insert into t values (1, 2.5), (2, null), (2, null), (3, 'x');
create virtual table words using fts5(w);
insert into words values ('one two');
"""
ROWS = [[1, 2.5], [2, None], [2, None], [3, "x"]]
COUNT = "with recursive c(x) as (select 1 union all select x + 1 from c) select {} from c"


def task(**info: Any) -> Task:
    return Task(id="t", messages=({"role": "user", "content": "?"},), info={"schema": SCHEMA, **info})


def judged(query: str, answer: Any = "select a, b from t", **info: Any) -> Verdict:
    return Sql(timeout_s=2)(task(answer=answer, **info), query)


@pytest.mark.parametrize(
    ("query", "answer", "passed"),
    [
        ("select * from t order by a desc", "select a, b from t", True),
        ("So:\n```sql\nselect * from t;\n```\nDone.", "select a, b from t", True),
        ("1. So:\r\n   ```SQLite\r\n   select * from t -- all;\r\n   ;\r\n   ```\r\n", "select a, b from t", True),
        ("```sql\nselect * from t\n```\nWith an index:\n```sql\ncreate index i on t(a)\n```", ROWS, True),
        ("```sql\nselect 1\n```\nNo:\n```postgresql\n-- all\nselect * from t\n```\n```\n1|2.5\n```", ROWS, True),
        ("<answer>```sql select * from t;```</answer>", ROWS, True),
        ("`select * from t`", ROWS, True),
        ("```sql\nselect * from t; select 1\n```", ROWS, False),
        ("select * from t order by a desc", "select a, b from t order by a", False),
        ("select distinct a, b from t", "select a, b from t", False),
        ("select b, a from t", "select a, b from t", False),
        ("select a from t where b = 9", "select a, b from t where b = 9", False),
        ("select a, coalesce(b, 0) from t", "select a, b from t", False),
        ("select 0.1 + 0.2", "select 0.3", True),
        ("select 0.301", "select 0.3", False),
        ("select 1000000001", "select 1000000000", False),
        ("select '1'", "select 1", False),
        ("select 1.0", "select 1", True),
        ("select t.a from t, json_each('[1, 3]') j where t.a = j.value", [[1], [3]], True),
        ("select value from json_tree('{\"x\": {\"y\": 5}}') where type = 'integer'", [[5]], True),
        ("select json_group_array(a) from t", [["[1,2,2,3]"]], True),
        ("select date('2024-02-28', '+2 days'), strftime('%Y', '2024-02-28')", [["2024-03-01", "2024"]], True),
        ("select w from words where words match 'two'", [["one two"]], True),
        (
            "with recursive c(x) as (select 1 union all select x + 1 from c where x < 3) select x from c",
            [[1], [2], [3]],
            True,
        ),
        ("select a, b from t where a = 9", [], True),
        ("select b from t where a = 2", [[None], [None]], True),
        ("select b from t where a = 2", [["None"], ["None"]], False),
        ("select a, b from t", ROWS, True),
        ("select a, b from t", ROWS[1:], False),
    ],
)
def test_results_are_compared_as_sets_with_repeats(query: str, answer: Any, passed: bool) -> None:
    assert judged(query, answer).passed is passed


HOSTILE = {
    "attach database 'x.db' as x": "not authorized",
    "select * from pragma_table_info('t')": "not authorized",
    "pragma query_only = off": "not authorized",
    "pragma writable_schema = 1": "not authorized",
    "delete from t": "not authorized",
    "insert into t values (1, 1)": "not authorized",
    "create temp table u(a)": "not authorized",
    "begin": "not authorized",
    "vacuum into 'x.db'": "authoriz",
    "select load_extension('x')": "not authorized",
    "select writefile('x', 'y')": "no such function",
    "select 1; select 2": "one statement",
    "": "not a query",
    "-- nothing": "not a query",
    "\0": "null character",
    "select \ud800": "surrogates",
    "sel": "syntax error",
    COUNT.format("x"): "rows",
    "select zeroblob(2000000)": "too big",
    "select replace(hex(zeroblob(400000)), '0', hex(zeroblob(400000)))": "too big",
    f"select {'+'.join('1' * 5000)}": "too large",
    " union all ".join(["select 1"] * 600): "too many terms",
    "select like(replace(hex(zeroblob(900)), '0', '%a'), hex(zeroblob(400000)))": "too complex",
}


@pytest.fixture
def connection(tmp_path: Path) -> Any:
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as made:
        made.executescript(SCHEMA)
    made.close()
    before = path.read_bytes()
    connection = opened(f"{path.as_uri()}?mode=ro&immutable=1", "")
    yield connection
    connection.close()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.db"]


@pytest.mark.parametrize("query", HOSTILE)
def test_nothing_but_one_bounded_read_is_run(connection: sqlite3.Connection, query: str) -> None:
    with pytest.raises(Refused, match=HOSTILE[query]):
        rows_of(connection, query, timeout_s=2, max_rows=1000)
    assert rows_of(connection, "select count(*) from t", timeout_s=2, max_rows=1) == (1, [(4,)])


LONG = "printf('%.*c', 900000000, 'x')"
"""Expression that takes a second or more in one step of SQLite, which looks at the time every 1,000 steps."""


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (COUNT.format("count(*)"), "over the limit of 1 s"),
        (f"select {', '.join([LONG] * 8)}", "over timeout_s = 1"),
        (COUNT.format("randomblob(900000)") + " limit 900", "over the memory limit|over memory_mb = 128"),
        (COUNT.format("x"), "over the limit of 10000 rows"),
    ],
    ids=["time", "time within few steps", "memory", "rows"],
)
def test_going_over_a_limit_fails_and_names_it(query: str, says: str) -> None:
    verdict = Sql(timeout_s=60 if "memory" in says else 1, memory_mb=128)(task(answer="select 1"), query)
    assert not verdict.passed
    assert re.search(says, verdict.feedback or ""), verdict.feedback


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ({"answer": "select no_such"}, "the expected query: no such column"),
        ({"answer": COUNT.format("x")}, "the expected query: over the limit of 10000 rows"),
        ({"schema": "create tabel", "answer": "select 1"}, "the database or the expected query: .*syntax error"),
        ({"answer": [{"a": 1}]}, r"the row \{'a': 1\}: a row is a list .* in the order of the query's columns"),
        ({"answer": [1, 2]}, "the row 1: a row is a list"),
        ({"answer": ["x"]}, "the row 'x': a row is a list"),
        ({"answer": [[1], [1, 2]]}, "rows of 1 and of 2 cells"),
        ({"answer": [[[1]]]}, r"the row \[\[1\]\]: a row is a list"),
        ({"answer": {"a": [1]}}, "give a query, or a list of rows"),
        ({"answer": 5}, "answer is 5: give a query, or a list of rows"),
        ({"answer": None}, "answer is None"),
        ({}, "give answer, and database or schema"),
        ({"answer": "select 1", "database": "x.db"}, "give answer, and database or schema"),
    ],
)
async def test_a_broken_expectation_is_an_error(info: dict[str, Any], says: str) -> None:
    with pytest.raises(VerifierError, match=rf"(?s)Sql failed on task 't': .*{says}"):
        await judge(find_verifier("sql"), task(**info), [span("attempt", text="select 1")])


def test_a_database_file_is_read_and_a_missing_one_named(tmp_path: Path) -> None:
    path = tmp_path / "a b?.db"
    with sqlite3.connect(path) as made:
        made.executescript(SCHEMA)
    made.close()
    asked = Task(id="t", messages=({"role": "user", "content": "?"},), info={"database": str(path), "answer": ROWS})
    assert Sql()(asked, "select * from t").passed
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a b\?\.db: no such file"):
        Sql()(asked, "select * from t")


def test_settings_that_cannot_be_are_refused() -> None:
    for settings in ({"timeout_s": 0}, {"row_limit": 0}, {"tolerance": -1}, {"memory_mb": 1}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            Sql(**settings)


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("select a from t order by a", True),
        ("select a from t ORDER\n BY a limit 3", True),
        ("select a from (select a from t order by a)", False),
        ("select a, row_number() over (order by b) from t", False),
        ("select 'order by' from t -- order by", False),
        ("select a /* order by */ from t", False),
        ('select "order by" , [order by], `order by` from t', False),
        ("with x as (select 1 order by 1) select * from x", False),
    ],
)
def test_order_matters_where_the_query_itself_orders(query: str, ordered: bool) -> None:
    assert is_ordered(query) is ordered


cells = (
    st.none()
    | st.integers(-3, 3)
    | st.sampled_from([0.5, 1.0, 1e300, float("inf")])
    | st.sampled_from("ab1")
    | st.binary(max_size=1)
)
tables = st.integers(1, 3).flatmap(lambda n: st.lists(st.tuples(*[cells] * n), max_size=6))


@given(tables, st.randoms(use_true_random=False))
def test_order_and_noise_below_the_tolerance_change_nothing(rows: list[Any], rng: Any) -> None:
    noisy = [tuple(c * (1 + rng.uniform(-1e-12, 1e-12)) if isinstance(c, float) else c for c in row) for row in rows]
    assert same_rows(rows, noisy, ordered=True, tolerance=1e-9)
    rng.shuffle(noisy)
    assert same_rows(rows, noisy, ordered=False, tolerance=1e-9)
    assert same_rows(noisy, rows, ordered=False, tolerance=1e-9)


@given(tables, tables)
def test_without_tolerance_equality_is_that_of_multisets(one: list[Any], other: list[Any]) -> None:
    def typed(rows: list[Any]) -> Counter[Any]:
        return Counter(tuple((isinstance(c, str), isinstance(c, bytes), c) for c in row) for row in rows)

    assert same_rows(one, other, ordered=False, tolerance=0.0) == (typed(one) == typed(other))


@given(st.text(max_size=40))
def test_any_text_is_refused_or_read(text: str) -> None:
    connection = opened(None, SCHEMA)
    before = rows_of(connection, "select * from t", timeout_s=60, max_rows=10)
    with suppress(Refused):
        rows_of(connection, text, timeout_s=60, max_rows=10)
    assert rows_of(connection, "select * from t", timeout_s=60, max_rows=10) == before
    connection.close()
