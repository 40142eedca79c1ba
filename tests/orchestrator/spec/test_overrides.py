import pytest

from orchestrator.spec.overrides import SETTINGS, Layers, is_custom, read_overrides
from orchestrator.spec.source import Place


def place(name):
    return lambda keys: Place(f"{name}:{'.'.join(map(str, keys))}")


def test_later_layers_win_and_mappings_are_merged():
    layers = Layers()
    layers.lay({"epochs": 3, "model": {"kind": "fc", "size": 1}}, place("defaults"))
    layers.lay({"model": {"size": 2}, "seed": 1}, place("run"))

    assert layers.data == {"epochs": 3, "model": {"kind": "fc", "size": 2}, "seed": 1}


def test_layers_remember_where_each_value_came_from():
    layers = Layers()
    layers.lay({"epochs": 3, "model": {"kind": "fc", "size": 1}}, place("defaults"))
    layers.lay({"model": {"size": 2}}, place("run"))

    assert str(layers.origin(("epochs",))) == "defaults:epochs"
    assert str(layers.origin(("model", "kind"))) == "defaults:model.kind"
    assert str(layers.origin(("model", "size"))) == "run:model.size"
    assert str(layers.origin(("model", "nothing"))) == "run:model"
    assert str(layers.origin(("nothing",))) == "run:"


def test_layers_know_which_value_was_laid_last():
    layers = Layers()
    layers.lay({"a": 1, "b": 1}, place("one"))
    layers.lay({"a": 2}, place("two"))

    assert layers.latest(("b",), ("a",)) == ("a",)
    assert layers.latest(("b",), ("c",)) == ("b",)
    assert layers.latest(("d",), ("c",)) == ("d",)


def test_laying_changes_no_layer_that_was_given():
    defaults = {"model": {"kind": "fc"}}
    layers = Layers()
    layers.lay(defaults, place("defaults"))
    layers.lay({"model": {"kind": "conv"}}, place("run"))

    assert defaults == {"model": {"kind": "fc"}}


def test_a_value_replaces_a_mapping_and_a_mapping_a_value():
    layers = Layers()
    layers.lay({"a": {"b": 1}, "c": 1}, place("one"))
    layers.lay({"a": 2, "c": {"d": 3}}, place("two"))

    assert layers.data == {"a": 2, "c": {"d": 3}}


def test_layers_read_numbers_as_the_paper_writes_them():
    layers = Layers()
    layers.lay({"loss": {"offset": "√2/2", "temperature": "1/64"}}, place("run"))

    assert layers.data == {"loss": {"offset": 2**0.5 / 2, "temperature": 1 / 64}}


def test_all_settings_can_be_overridden():
    assert {"epochs", "seed", "model.width", "data.train_limit", "resources.cpus"} < set(SETTINGS)
    assert not {"id", "name", "train", "model"} & set(SETTINGS)


def test_overrides_are_values_by_name():
    texts = ["epochs=3", "loss.offset=√2", "optimizer.drops=[0.5]", "model.kind=fc"]

    assert read_overrides(texts) == (
        {"epochs": 3, "loss.offset": "√2", "optimizer.drops": [0.5], "model.kind": "fc"},
        [],
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("epochs", "write key=value, for example epochs=10"),
        ("epoch=7", "unknown field; did you mean `epochs`? (allowed: "),
        ("size=3", "unknown field; did you mean `model.size`? (allowed: "),
        ("model=3", "unknown field"),
        ("epochs=[", "expected "),
        ("epochs=*x", "found undefined alias 'x'"),
        ("epochs={a: 1, a: 2}", "`a` stands here and in line 1; keep one"),
        (f"epochs={2**63}", f"whole numbers stay below 2**63, got {2**63}"),
    ],
)
def test_a_wrong_override_is_one_line(text, problem):
    values, (mistake,) = read_overrides([text])

    assert values == {}
    assert str(mistake).startswith(f"--set {text}: {problem}")
    assert "\n" not in str(mistake)


def test_where_runs_are_placed_makes_no_other_experiment():
    assert not is_custom([])
    assert not is_custom(["resources.gpus=0"])
    assert is_custom(["resources.gpus=0", "epochs=2"])
