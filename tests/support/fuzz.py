"""Changes of valid files for the tests with damaged and made-up input."""

import copy
import json
import sqlite3
from contextlib import closing

from hypothesis import strategies as st

HUGE = "huge" * 2000
ODD = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308),
    *(float("inf"), float("nan"), "", " ", "a", "0", "-1", "1e999", "0-1000000", "true", HUGE),
    *("\ud800", "\x00", "\x1b[2J", "\u2028", "√2", "1/0", "../../etc/passwd", "/dev/zero"),
    *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:00", "NaN"),
    *([], {}, [[]], [{}], {"": None}, {"a": [1]}, [None], ["\ud800"], {"\ud800": 1}),
]
TEXTS = [value for value in ODD if isinstance(value, str)]
CHANGES = st.integers(1, 3)


def places(tree):
    """
    Return every container of a tree with each of its keys or positions.
    """
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, value in inner:
        found.append((tree, key))
        if isinstance(value, dict | list):
            found += places(value)
    return found


@st.composite
def changed_tree(draw, tree):  # noqa: C901 - a list of cases
    """
    Return the tree with values replaced by odd ones, moved, nested, doubled or left out.
    """
    tree = copy.deepcopy(tree)

    def one_of(values):
        return values[draw(st.integers(0, len(values) - 1))]

    for _ in range(draw(CHANGES)):
        found = places(tree)
        if not found:
            break
        parent, key = one_of(found)
        match one_of(["odd", "other", "delete", "nest", "double", "rename"]):
            case "odd":
                parent[key] = copy.deepcopy(one_of(ODD))
            case "other":
                other, place = one_of(found)
                parent[key] = copy.deepcopy(other[place])
            case "delete":
                del parent[key]
            case "nest":
                value = parent[key]
                for _ in range(one_of([1, 2, 60])):
                    value = one_of([[value], {"a": value}])
                parent[key] = value
            case "double" if isinstance(parent, list):
                parent.insert(key, copy.deepcopy(parent[key]))
            case _ if isinstance(parent, dict):
                parent[one_of([*TEXTS, *parent])] = parent.pop(key)
    return tree


@st.composite
def changed_bytes(draw, content):
    """
    Return the content with bits flipped, and bytes replaced, left out, doubled or cut off.
    """
    for _ in range(draw(CHANGES)):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.sampled_from([1, 4, 100]))
        before, part, after = content[:at], content[at : at + length], content[at + length :]
        match draw(st.sampled_from(["flip", "replace", "delete", "double", "cut"])):
            case "flip" if part:
                content = (
                    before + bytes([part[0] ^ 1 << draw(st.integers(0, 7))]) + part[1:] + after
                )
            case "replace":
                content = before + draw(st.binary(min_size=1, max_size=4)) * length + after
            case "delete":
                content = before + after
            case "double":
                content = before + part * 2 + after
            case "cut":
                content = before
    return content


def changed_json(content):
    """
    Return a strategy of changes of a JSON text, of its values or of its bytes.
    """
    trees = changed_tree([json.loads(content)]).map(lambda tree: json.dumps(tree)[1:-1].encode())
    deep = st.just(b"[" * 200_000)
    return st.one_of(trees, trees, changed_bytes(content), deep)


ENDLESS = "WITH RECURSIVE x(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM x) SELECT * FROM x"
TABLES = ("runs", "drivers", "attempts", "epochs", "metrics", "margins", "cells", "alembic_version")
VALUES = [
    None,
    -1,
    0,
    2**63 - 1,
    0.5,
    1e308,
    b"\xff",
    *(text for text in TEXTS if text != "\ud800"),
]


@st.composite
def changed_store(draw, content):
    """
    Return the content of a SQLite file with values, rows or tables changed, or just its bytes.
    """
    if draw(st.booleans()):
        return draw(changed_bytes(content))
    changes = draw(st.lists(TABLE_CHANGES, min_size=1, max_size=3))
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(content)
        connection.execute("PRAGMA ignore_check_constraints = ON")
        for change in changes:
            _change_table(connection, *change)
        connection.commit()
        return connection.serialize()


TABLE_CHANGES = st.tuples(
    st.sampled_from(TABLES),
    st.integers(0, 30),  # the place of a column, of more than there are
    st.sampled_from(["value", "value", "value", "delete", "drop", "view", "column"]),
    st.sampled_from(VALUES) | st.sampled_from(ODD).map(json.dumps),
)


def _change_table(connection, table, place, kind, value):
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    if not columns:
        return
    column = columns[place % len(columns)]
    try:
        match kind:
            case "value":
                connection.execute(f'UPDATE OR REPLACE {table} SET "{column}" = ?', [value])
            case "delete":
                connection.execute(f"DELETE FROM {table}")
            case "drop":
                connection.execute(f"DROP TABLE {table}")
            case "view":
                connection.execute("PRAGMA legacy_alter_table = ON")
                connection.execute(f"ALTER TABLE {table} RENAME TO hidden_{table}")
                connection.execute(f"CREATE VIEW {table} AS {ENDLESS}")
            case "column":
                connection.execute(f'ALTER TABLE {table} RENAME COLUMN "{column}" TO other')
    except sqlite3.Error:
        pass  # the schema does not allow this change
