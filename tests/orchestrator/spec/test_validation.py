import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from orchestrator.spec.validation import dotted_names, parse_number, suggest, validate


@dataclass(frozen=True, kw_only=True)
class Engine:
    kind: Literal["petrol", "electric"]
    power: float
    gears: int = 5
    ratios: tuple[float, ...] = ()

    def __post_init__(self):
        problems = []
        if not self.power > 0:
            problems.append(f"power: must be positive, got {self.power}")
        if self.gears > 9:
            problems.append(f"gears: too many, got {self.gears}")
        if problems:
            raise ValueError("\n".join(problems))


@dataclass(frozen=True, kw_only=True)
class Body:
    doors: int = 4
    shares: tuple[float, ...] = ()
    limit: int | None = None
    open_: bool = False
    extras: dict[str, str] = field(default_factory=dict)


class Car(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    engine: Engine
    body: Body = Body()
    price: Annotated[FiniteFloat, Field(gt=0)] | None = None


GOOD = {"name": "T", "engine": {"kind": "petrol", "power": 20}}


def found(**changes):
    """
    Return the problems of the valid car with some fields changed, with dotted paths.
    """
    _, problems = validate(Car, GOOD | changes)
    return {".".join(map(str, keys)): text for keys, text in problems}


def engine(**changes):
    return {"engine": GOOD["engine"] | changes}


def test_valid_data_gives_the_model_without_problems():
    model, problems = validate(Car, GOOD)

    assert problems == []
    assert model == Car(name="T", engine=Engine(kind="petrol", power=20.0))


def test_numbers_in_quotes_are_numbers():
    """
    YAML 1.1 tools and people write them in quotes.
    """
    model, problems = validate(Car, GOOD | engine(power="1e-3", gears="3"))

    assert problems == []
    assert (model.engine.power, model.engine.gears) == (1e-3, 3)


def test_numbers_are_also_written_as_in_the_paper():
    model, problems = validate(
        Car, GOOD | engine(power="√2/2", gears="6/2", ratios=["1/4"]) | {"name": "1/4"}
    )

    assert problems == []
    assert model.engine == Engine(kind="petrol", power=2**0.5 / 2, gears=3, ratios=(0.25,))
    assert model.name == "1/4"


@pytest.mark.parametrize(
    ("changes", "path", "text"),
    [
        (engine(gears="many"), "engine.gears", "must be a whole number, got 'many'"),
        (engine(gears=1.5), "engine.gears", "must be a whole number, got 1.5"),
        (engine(gears=None), "engine.gears", "must be a whole number, got None"),
        (engine(gears=True), "engine.gears", "must be a whole number, got True"),
        (engine(gears=[1]), "engine.gears", "must be a whole number, got [1]"),
        (engine(gears=float("inf")), "engine.gears", "must be a finite number, got inf"),
        (engine(gears="1/2"), "engine.gears", "must be a whole number, got 0.5"),
        (
            engine(gears="1_000_000_000_000_000_000"),
            "engine.gears",
            "must be a whole number below 2**63, got '1_000_000_000_000_000_000'",
        ),
        (engine(power="fast"), "engine.power", "must be a number, got 'fast'"),
        (engine(power=False), "engine.power", "must be a number, got False"),
        (engine(power=-1), "engine.power", "must be positive, got -1.0"),
        (engine(power=float("nan")), "engine.power", "must be positive, got nan"),
        (engine(kind="steam"), "engine.kind", "must be 'petrol' or 'electric', got 'steam'"),
        ({"engine": 3}, "engine", "must be a mapping, got 3"),
        ({"engine": None}, "engine", "must be a mapping, got None"),
        ({"name": 3}, "name", "must be text, got 3"),
        ({"price": float("nan")}, "price", "must be a finite number, got nan"),
        ({"price": float("inf")}, "price", "must be a finite number, got inf"),
        ({"price": -1}, "price", "must be greater than 0, got -1"),
        ({"price": True}, "price", "must be a number, got True"),
        ({"body": {"limit": True}}, "body.limit", "must be a whole number, got True"),
        ({"body": {"open_": 3}}, "body.open_", "must be true or false, got 3"),
        ({"body": {"shares": 3}}, "body.shares", "must be a list, got 3"),
        ({"body": {"shares": [0.5, "x"]}}, "body.shares.1", "must be a number, got 'x'"),
        ({"body": {"extras": {"a": 1}}}, "body.extras.a", "must be text, got 1"),
    ],
)
def test_wrong_value_names_field_rule_and_value(changes, path, text):
    assert found(**changes) == {path: text}


def test_boolean_in_a_list_of_numbers_is_refused():
    assert found(body={"shares": [0.5, True]}) == {"body.shares.1": "must be a number, got True"}


def test_long_values_are_cut():
    (text,) = found(name=[*range(100)]).values()

    assert text.startswith("must be text, got [0, 1, 2,")
    assert text.endswith("...")
    assert len(text) < 90


def test_missing_fields_are_named_at_every_depth():
    _, problems = validate(Car, {"engine": {"gears": 4}})

    assert sorted(problems) == [
        (("engine", "kind"), "is missing"),
        (("engine", "power"), "is missing"),
        (("name",), "is missing"),
    ]


def test_unknown_field_names_the_nearest_and_all_allowed_ones():
    assert found(nmae="T", body={"dors": 2}, **engine(gear=4)) == {
        "nmae": "unknown field; did you mean `name`? (allowed: name, engine, body, price)",
        "body.dors": "unknown field; did you mean `doors`? "
        "(allowed: doors, shares, limit, open_, extras)",
        "engine.gear": "unknown field; did you mean `gears`? (allowed: kind, power, gears, ratios)",
    }


def test_a_wrong_value_does_not_hide_later_checks():
    """
    Pydantic alone stops at the wrong kind and never runs the dataclass's own checks.
    """
    problems = found(price=-1, **engine(kind="steam", power=-1, gears=12))

    assert problems == {
        "price": "must be greater than 0, got -1",
        "engine.kind": "must be 'petrol' or 'electric', got 'steam'",
        "engine.power": "must be positive, got -1.0",
        "engine.gears": "too many, got 12",
    }


def test_a_wrong_list_item_does_not_hide_later_checks():
    problems = found(**engine(ratios=["x"], power=-1))

    assert problems == {
        "engine.ratios.0": "must be a number, got 'x'",
        "engine.power": "must be positive, got -1.0",
    }


def test_the_model_beside_problems_has_valid_values_in_their_place():
    model, problems = validate(Car, GOOD | engine(kind="steam", gears="many"))

    assert len(problems) == 2
    assert model == Car(name="T", engine=Engine(kind="petrol", power=20.0, gears=5))


def test_the_given_data_is_unchanged():
    data = GOOD | engine(kind="steam") | {"unknown": 1}
    validate(Car, data)

    assert data == GOOD | engine(kind="steam") | {"unknown": 1}


def test_without_a_valid_replacement_there_is_no_model():
    class Picky(BaseModel):
        items: Annotated[list[int], Field(min_length=1)]

    model, problems = validate(Picky, {"items": 3})

    assert model is None
    assert problems == [(("items",), "must be a list, got 3")]


def test_the_nearest_name_is_suggested_only_if_it_is_near():
    assert (
        suggest("epoch", ["epochs", "seed"]) == "; did you mean `epochs`? (allowed: epochs, seed)"
    )
    assert suggest("zzz", ["epochs", "seed"]) == " (allowed: epochs, seed)"


def test_nearest_finds_the_last_part_of_a_dotted_name():
    assert suggest("size", ["epochs", "model.size"]).startswith("; did you mean `model.size`?")


def test_dotted_names_are_the_leaves():
    assert dotted_names(Car) == [
        "name",
        "engine.kind",
        "engine.power",
        "engine.gears",
        "engine.ratios",
        "body.doors",
        "body.shares",
        "body.limit",
        "body.open_",
        "body.extras",
        "price",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("√2", math.sqrt(2)),
        ("√2/16", math.sqrt(2) / 16),
        ("√2/4", math.sqrt(2) / 4),
        ("4√2", 4 * math.sqrt(2)),
        ("16√2", 16 * math.sqrt(2)),
        ("3√2/4", 3 * math.sqrt(2) / 4),
        (" 4 √2 ", 4 * math.sqrt(2)),
        ("√12", math.sqrt(12)),
        ("1/64", 1 / 64),
        ("1/4", 1 / 4),
        ("12", 12.0),
    ],
)
def test_numbers_are_written_as_in_the_paper(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "/4",
        "√",
        "1/0",
        "1/00",
        "√2/0",
        "2√",
        "√2/√2",
        "-1/4",
        "1.5/2",
        "1e-3",
        "fc",
    ],
)
def test_other_text_is_no_number(text):
    assert parse_number(text) is None
