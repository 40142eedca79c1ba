import pytest

from orchestrator.spec.overrides import SETTINGS, MergedSettings, is_custom, read_overrides
from orchestrator.spec.source import Place


def place(name):
    return lambda keys: Place(f"{name}:{'.'.join(map(str, keys))}")


def test_later_settings_win_and_mappings_are_merged():
    settings = MergedSettings()
    settings.merge({"epochs": 3, "model": {"kind": "fc", "size": 1}}, place("defaults"))
    settings.merge({"model": {"size": 2}, "seed": 1}, place("run"))

    assert settings.data == {"epochs": 3, "model": {"kind": "fc", "size": 2}, "seed": 1}


def test_every_value_has_its_place():
    settings = MergedSettings()
    settings.merge({"epochs": 3, "model": {"kind": "fc", "size": 1}}, place("defaults"))
    settings.merge({"model": {"size": 2}}, place("run"))

    assert str(settings.place(("epochs",))) == "defaults:epochs"
    assert str(settings.place(("model", "kind"))) == "defaults:model.kind"
    assert str(settings.place(("model", "size"))) == "run:model.size"
    assert str(settings.place(("model", "nothing"))) == "run:model"
    assert str(settings.place(("nothing",))) == "run:"


def test_the_value_that_was_set_last_is_found():
    settings = MergedSettings()
    settings.merge({"a": 1, "b": 1}, place("one"))
    settings.merge({"a": 2}, place("two"))

    assert settings.last_set(("b",), ("a",)) == ("a",)
    assert settings.last_set(("b",), ("c",)) == ("b",)
    assert settings.last_set(("d",), ("c",)) == ("d",)


def test_merging_does_not_change_its_arguments():
    defaults = {"model": {"kind": "fc"}}
    settings = MergedSettings()
    settings.merge(defaults, place("defaults"))
    settings.merge({"model": {"kind": "conv"}}, place("run"))

    assert defaults == {"model": {"kind": "fc"}}


def test_a_partial_source_changes_values_but_not_the_place_of_their_mapping():
    settings = MergedSettings()
    settings.merge({"model": {"size": 1}}, place("run"))
    settings.merge({"model": {"size": 2}, "loss": {"offset": 1}}, place("change"), partial=True)
    settings.set("model.width", 0.5)

    assert settings.data == {"model": {"size": 2, "width": 0.5}, "loss": {"offset": 1}}
    assert str(settings.place(("model", "size"))) == "change:model.size"
    assert str(settings.place(("model", "width"))) == "--set model.width"
    assert str(settings.place(("model", "kind"))) == "run:model"
    assert str(settings.place(("loss", "temperature"))) == "change:loss"


def test_a_value_replaces_a_mapping_and_a_mapping_a_value():
    settings = MergedSettings()
    settings.merge({"a": {"b": 1}, "c": 1}, place("one"))
    settings.merge({"a": 2, "c": {"d": 3}}, place("two"))

    assert settings.data == {"a": 2, "c": {"d": 3}}


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
        ("epochs={a: 1, a: 2}", "`a` is given here and in line 1; keep one"),
        (f"epochs={2**63}", f"whole numbers must be below 2**63, got {2**63}"),
    ],
)
def test_a_wrong_override_is_reported_in_one_line(text, problem):
    values, (mistake,) = read_overrides([text])

    assert values == {}
    assert str(mistake).startswith(f"--set {text}: {problem}")
    assert "\n" not in str(mistake)


def test_overrides_of_resources_are_not_custom():
    assert not is_custom([])
    assert not is_custom(["resources.gpus=0"])
    assert is_custom(["resources.gpus=0", "epochs=2"])
