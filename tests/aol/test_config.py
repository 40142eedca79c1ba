import hashlib
import json
import math
import re
from dataclasses import asdict, fields, is_dataclass, replace

import pytest

from aol.catalog import DATASETS
from aol.config import (
    NOT_IN_DIGEST,
    AttackConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    flatten,
    from_dict,
)

CONFIG = TrainConfig(
    model=ModelConfig(kind="patchwise"),
    data=DataConfig(name="cifar10"),
    loss=LossConfig(offset=math.sqrt(2), temperature=1 / 4),
)
# For every field a value that is not its default, nor CONFIG's.
OTHERS = {
    "model.kind": "fc",
    "model.size": 32,
    "model.width": 0.5,
    "data.name": "cifar100",
    "data.train_limit": 1000,
    "data.test_limit": 500,
    "data.augment": False,
    "data.shuffle": "authors",
    "loss.offset": 1.0,
    "loss.temperature": 1.0,
    "optimizer.learning_rate": 0.01,
    "optimizer.momentum": 0.8,
    "optimizer.nesterov": False,
    "optimizer.l2": 0.0,
    "optimizer.drops": (0.5, 0.9),
    "optimizer.drop_factor": 2.0,
    "epochs": 10,
    "batch_size": 100,
    "seed": 7,
    "precision": "tf32",
    "eval_every": 10,
    "certify": "float32",
    "attack": AttackConfig(radius=0.5),
}


def changed(config, name, value):
    """
    Return the config with another value of a field, given by its dotted name.
    """
    section, _, field = name.rpartition(".")
    if not section:
        return replace(config, **{field: value})
    return replace(config, **{section: replace(getattr(config, section), **{field: value})})


def all_fields(config):
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from (f"{item.name}.{inner.name}" for inner in fields(value))
        else:
            yield item.name


EVERYTHING = CONFIG
for _name, _value in OTHERS.items():
    EVERYTHING = changed(EVERYTHING, _name, _value)


def test_the_list_of_other_values_is_complete():
    assert list(OTHERS) == list(all_fields(CONFIG))


# --- digest ---


@pytest.mark.parametrize("name", NOT_IN_DIGEST)
def test_the_seed_and_an_attack_are_not_in_the_digest(name):
    assert changed(CONFIG, name, OTHERS[name]).digest() == CONFIG.digest()


def test_only_values_off_their_defaults_are_in_the_digest():
    """
    A new field with a default therefore keeps the names of finished runs.
    """
    settings = {
        "data": {"name": "cifar10"},
        "loss": {"offset": math.sqrt(2), "temperature": 0.25},
        "model": {"kind": "patchwise"},
    }
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))

    assert CONFIG.digest() == hashlib.sha256(text.encode()).hexdigest()[:8]
    assert replace(CONFIG, optimizer=OptimizerConfig(l2=5e-4)).digest() == CONFIG.digest()


@pytest.mark.parametrize("name", [name for name in OTHERS if name not in NOT_IN_DIGEST])
def test_every_other_field_changes_the_digest(name):
    assert changed(CONFIG, name, OTHERS[name]).digest() != CONFIG.digest()


def test_no_two_single_changes_share_a_digest():
    digests = {changed(CONFIG, name, value).digest() for name, value in OTHERS.items()}

    assert len(digests) == len(OTHERS) - len(NOT_IN_DIGEST) + 1  # theirs is the digest of CONFIG


def test_the_digest_is_eight_hexadecimal_digits():
    assert len(EVERYTHING.digest()) == 8
    assert int(EVERYTHING.digest(), 16) >= 0


def test_equal_settings_have_equal_digests():
    """
    Whole numbers equal their floats, so 4 and 4.0 must not be two runs.
    """
    whole = replace(CONFIG, loss=LossConfig(offset=4, temperature=1))
    floating = replace(CONFIG, loss=LossConfig(offset=4.0, temperature=1.0))

    assert whole == floating
    assert whole.digest() == floating.digest()


# --- conversion to plain values ---


@pytest.mark.parametrize("config", [CONFIG, EVERYTHING], ids=["defaults", "everything"])
def test_a_config_can_be_restored_from_a_dictionary_and_json(config):
    assert from_dict(asdict(config)) == config
    again = from_dict(json.loads(json.dumps(asdict(config))))
    assert again == config
    assert again.digest() == config.digest()
    assert hash(again) == hash(config)


def test_from_dict_does_not_change_its_argument():
    settings = asdict(EVERYTHING)
    before = json.dumps(settings)
    from_dict(settings)

    assert json.dumps(settings) == before


def test_an_unknown_setting_is_refused():
    settings = asdict(CONFIG)
    settings["model"]["widht"] = 2.0

    with pytest.raises(TypeError, match="widht"):
        from_dict(settings)


def test_flat_names_are_dotted():
    flat = flatten(EVERYTHING)

    attack = {f"attack.{name}": value for name, value in asdict(OTHERS["attack"]).items()}
    assert flat == {name: OTHERS[name] for name in OTHERS if name != "attack"} | attack
    assert list(flat)[: len(OTHERS) - 1] == list(OTHERS)[:-1]


def test_configs_are_frozen():
    with pytest.raises(AttributeError):
        CONFIG.epochs = 3


# --- invalid values ---

REFUSALS = [
    (ModelConfig, {"kind": "fc", "size": 0}, "size: must be positive and finite, got 0"),
    (ModelConfig, {"kind": "fc", "width": -1.0}, "width: must be positive and finite, got -1.0"),
    (ModelConfig, {"kind": "fc", "width": math.inf}, "width: must be positive and finite, got inf"),
    (ModelConfig, {"kind": "fc", "width": math.nan}, "width: must be positive and finite, got nan"),
    (
        DataConfig,
        {"name": "digits", "train_limit": 0},
        "train_limit: must be positive and finite, got 0",
    ),
    (
        DataConfig,
        {"name": "digits", "test_limit": -5},
        "test_limit: must be positive and finite, got -5",
    ),
    (
        LossConfig,
        {"offset": 1.0, "temperature": 0.0},
        "temperature: must be positive and finite, got 0.0",
    ),
    (
        LossConfig,
        {"offset": -1.0, "temperature": 1.0},
        "offset: must be finite and not negative, got -1.0",
    ),
    (
        LossConfig,
        {"offset": math.nan, "temperature": 1.0},
        "offset: must be finite and not negative, got nan",
    ),
    (OptimizerConfig, {"learning_rate": 0}, "learning_rate: must be positive and finite, got 0"),
    (OptimizerConfig, {"drop_factor": 0}, "drop_factor: must be positive and finite, got 0"),
    (OptimizerConfig, {"momentum": 1.0}, "momentum: must be in [0, 1), got 1.0"),
    (OptimizerConfig, {"momentum": -0.1}, "momentum: must be in [0, 1), got -0.1"),
    (OptimizerConfig, {"momentum": 0}, "nesterov: needs a momentum above 0"),
    (OptimizerConfig, {"l2": -1e-4}, "l2: must be finite and not negative, got -0.0001"),
    (OptimizerConfig, {"l2": math.inf}, "l2: must be finite and not negative, got inf"),
    (
        OptimizerConfig,
        {"drops": (0.5, 1.0)},
        "drops: each is a fraction in (0, 1), got [0.5, 1.0]",
    ),
    (OptimizerConfig, {"drops": (0.0,)}, "drops: each is a fraction in (0, 1), got [0.0]"),
]


@pytest.mark.parametrize(("section", "values", "message"), REFUSALS)
def test_a_wrong_value_is_refused_with_its_name_rule_and_value(section, values, message):
    with pytest.raises(ValueError, match=message.split(":")[0]) as caught:
        section(**values)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, "epochs: must be positive and finite, got 0"),
        ("batch_size", -1, "batch_size: must be positive and finite, got -1"),
        ("eval_every", 0, "eval_every: must be positive and finite, got 0"),
        ("seed", -1, "seed: must be in [0, 2**63), got -1"),
        ("seed", 2**63, "seed: must be in [0, 2**63), got 9223372036854775808"),
    ],
)
def test_a_wrong_number_of_the_run_is_refused(name, value, message):
    with pytest.raises(ValueError, match="must be") as caught:
        replace(CONFIG, **{name: value})

    assert str(caught.value) == message


def test_all_mistakes_of_a_section_are_reported_at_once():
    with pytest.raises(ValueError, match="learning_rate") as caught:
        OptimizerConfig(learning_rate=0, drop_factor=-1, momentum=2, l2=-1, drops=(2,))

    names = [line.split(":")[0] for line in str(caught.value).splitlines()]
    assert names == ["learning_rate", "drop_factor", "momentum", "l2", "drops"]


def test_the_edges_are_allowed():
    LossConfig(offset=0.0, temperature=1e-9)
    OptimizerConfig(momentum=0.0, nesterov=False, l2=0.0, drops=())
    replace(CONFIG, seed=2**63 - 1, epochs=1, batch_size=1)


# --- derived values ---


@pytest.mark.parametrize(
    ("epochs", "rates"),
    [
        (1000, {0: 1e-3, 899: 1e-3, 900: 1e-4, 989: 1e-4, 990: 1e-5, 998: 1e-5, 999: 1e-6}),
        (10, {0: 1e-3, 8: 1e-3, 9: 1e-4}),
        (1, {0: 1e-3}),
        (3, {0: 1e-3, 1: 1e-3, 2: 1e-3}),
        (100, {89: 1e-3, 90: 1e-4, 98: 1e-4, 99: 1e-5}),
    ],
)
def test_the_learning_rate_drops_at_fractions_of_the_run(epochs, rates):
    config = replace(CONFIG, epochs=epochs)

    for epoch, rate in rates.items():
        assert config.learning_rate(epoch) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize("percent", range(1, 100))
def test_drops_happen_at_their_epoch_despite_rounding(percent):
    """
    0.55 * 100 is 55.00000000000001, and the rate still drops at epoch 55.
    """
    drops = OptimizerConfig(drops=(percent / 100,))
    for hundreds in (1, 2, 3, 7, 10):
        config = replace(CONFIG, epochs=100 * hundreds, optimizer=drops)
        assert config.learning_rate(percent * hundreds - 1) == 1e-3
        assert config.learning_rate(percent * hundreds) == 1e-4


def test_the_order_of_drops_does_not_matter():
    config = replace(CONFIG, optimizer=OptimizerConfig(drops=(0.999, 0.9, 0.99)))

    assert [config.learning_rate(e) for e in range(1000)] == [
        CONFIG.learning_rate(e) for e in range(1000)
    ]


def test_the_rate_is_constant_without_drops():
    config = replace(CONFIG, optimizer=OptimizerConfig(drops=()))

    assert {config.learning_rate(epoch) for epoch in range(1000)} == {1e-3}


@pytest.mark.parametrize(
    ("epochs", "eval_every", "evaluated"),
    [(5, 1, [0, 1, 2, 3, 4]), (5, 2, [1, 3, 4]), (4, 2, [1, 3]), (3, 10, [2])],
)
def test_every_nth_epoch_and_the_last_are_evaluated(epochs, eval_every, evaluated):
    config = replace(CONFIG, epochs=epochs, eval_every=eval_every)

    assert [epoch for epoch in range(epochs) if config.evaluates(epoch)] == evaluated


@pytest.mark.parametrize(
    ("name", "limit", "images"),
    [
        ("cifar10", None, 50_000),
        ("cifar100", 300, 300),
        ("digits", None, 1442),
        ("digits", 5000, 1442),
        ("digit-pairs", None, 2500),
    ],
)
def test_an_epoch_has_the_images_up_to_the_limit(name, limit, images):
    data = DataConfig(name=name, train_limit=limit)

    assert data.train_images == images
    assert data.classes == len(DATASETS[name].classes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data", {"name": {"a": 1}}),
        ("data", {"name": "cifar11"}),
        ("data", {"augment": 1}),
        ("data", {"test_limit": 0.5}),
        ("model", {"size": True}),
        ("model", {"width": "1"}),
        ("loss", {"offset": None}),
        ("optimizer", {"drops": ["0.9"]}),
        ("epochs", 2**63),
        ("epochs", [1]),
        ("precision", None),
        ("attack", {"radius": "1"}),
        ("attack", [1]),
        ("attack", 1),
    ],
)
def test_settings_of_other_types_are_refused(name, value):
    settings = asdict(CONFIG)
    settings[name] = settings[name] | value if isinstance(settings[name], dict) else value

    with pytest.raises(TypeError):
        from_dict(settings)


@pytest.mark.parametrize(
    ("section", "name", "value", "problem"),
    [
        (None, "epochs", [1], "epochs: must be a whole number below 2**63, got [1]"),
        (None, "precision", 1, "must be 'float32' or 'tf32' or 'bf16', got 1"),
        ("model", "width", "1", "width: must be a number, got '1'"),
        ("data", "augment", 1, "augment: must be true or false, got 1"),
        ("data", "test_limit", "", "must be a whole number below 2**63 or null, got ''"),
        ("optimizer", "drops", ["x"], "drops: must be a list, each item a number, got ('x',)"),
        (
            "loss",
            "offset",
            "x" * 1000,
            "offset: must be a number, got 'xxxxxxxxxxxx...xxxxxxxxxxxxx'",
        ),
    ],
)
def test_the_message_about_another_type_says_what_is_allowed(section, name, value, problem):
    settings = asdict(CONFIG)
    (settings[section] if section else settings)[name] = value

    with pytest.raises(TypeError, match=f"{re.escape(problem)}$"):
        from_dict(settings)


def test_whole_numbers_are_read_as_numbers():
    settings = json.loads(json.dumps(asdict(CONFIG))) | {"epochs": 3}
    settings["model"]["width"] = 1

    assert from_dict(settings) == replace(CONFIG, epochs=3)
