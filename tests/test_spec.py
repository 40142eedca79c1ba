import math
import textwrap
from dataclasses import asdict
from pathlib import Path

import pytest

from orchestrator.document import SpecError
from orchestrator.spec import ids_of, parse_ids
from orchestrator.specfile import SETTINGS, SpecFile

PAPER = Path(__file__).parent.parent / "experiments.yaml"

GOOD = """\
name: x
defaults:
  epochs: 4
  data: {name: digits}
  loss: {offset: √2, temperature: 1/4}
runs:
  - {id: 0, name: A, model: {kind: patchwise}}
  - {id: 1, name: B, seed: 1, model: {kind: conv}}
profiles:
  quick:
    note: "quick: for looking only"
    changes: [{runs: "1", set: {batch_size: 20, model: {size: 8}}}]
columns: [{title: Acc, metric: accuracy}, {title: CRA, metric: cra_36}]
tables:
  - id: t
    title: T
    rows: [{label: A, run: 0, published: [1.0, 0.5]}]
"""
TRAINING = (
    "(allowed: model, data, loss, optimizer, epochs, batch_size, seed, precision, eval_every, "
    "certify)"
)
ROWS = "rows: [{label: A, run: 0, published: [1.0, 0.5]}]"
NO_RANGE = "no number or range; write for example 0,20-24"
METRICS = "'accuracy', 'cra_36', 'cra_72', 'cra_108' or 'cra_1'"


def unknown(nearest, allowed):
    return f"unknown field; did you mean `{nearest}`? {allowed}"


@pytest.fixture
def spec_file(tmp_path):
    """
    Writes the good file, with replacements (old, new), and opens it.
    """

    def make(*replacements, text=GOOD):
        for old, new in replacements:
            assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the file"
            text = text.replace(old, new)
        path = tmp_path / "x.yaml"
        path.write_text(textwrap.dedent(text))
        return SpecFile(path)

    return make


@pytest.fixture
def problems_in(spec_file, tmp_path):
    """
    The problems of the good file with replacements, the folder left out.
    """

    def find(*replacements, text=GOOD):
        with pytest.raises(SpecError) as caught:
            spec_file(*replacements, text=text)
        return [line.replace(f"{tmp_path}/", "") for line in caught.value.problems]

    return find


@pytest.fixture
def problems_of_set(spec_file, tmp_path):
    """
    The problems of --set texts over the good file.
    """

    def find(*texts):
        with pytest.raises(SpecError) as caught:
            spec_file().experiment("quick", texts)
        return [line.replace(f"{tmp_path}/", "") for line in caught.value.problems]

    return find


# A good file


def test_runs_are_their_entries_over_the_defaults_under_the_profile(spec_file):
    zero, one = spec_file().experiment("quick").runs

    assert (zero.id, zero.name, zero.profile, zero.train.epochs) == (0, "A", "quick", 4)
    assert (zero.train.model.kind, zero.train.model.size) == ("patchwise", 16)
    assert zero.train.loss.offset == math.sqrt(2)
    assert zero.train.loss.temperature == 0.25
    assert (one.id, one.train.seed, one.train.batch_size) == (1, 1, 20)
    assert (one.train.model.kind, one.train.model.size) == ("conv", 8)


def test_a_change_without_runs_is_for_all(spec_file):
    experiment = spec_file(('{runs: "1", set:', "{set:")).experiment("quick")

    assert [run.train.batch_size for run in experiment.runs] == [20, 20]


def test_later_changes_lie_over_earlier_ones(spec_file):
    changes = "[{set: {epochs: 2}}, {runs: 0..1, set: {epochs: 3}}, {runs: [0], set: {epochs: 9}}]"
    old = '[{runs: "1", set: {batch_size: 20, model: {size: 8}}}]'
    experiment = spec_file((old, changes)).experiment("quick")

    assert [run.train.epochs for run in experiment.runs] == [9, 3]


def test_experiment_carries_what_the_file_says(spec_file, tmp_path):
    experiment = spec_file(("name: x\n", "name: x\nsource: S\ndata_root: images\n")).experiment(
        "quick"
    )

    assert (experiment.name, experiment.source, experiment.profile) == ("x", "S", "quick")
    assert experiment.note == "quick: for looking only"
    assert experiment.checkpoint_seconds == 60
    assert (experiment.path, experiment.data_root) == (tmp_path / "x.yaml", Path("images"))
    assert [column.metric for column in experiment.columns] == ["accuracy", "cra_36"]
    assert experiment.tables[0].rows[0].published == [1.0, 0.5]


def test_key_is_id_seed_and_digest(spec_file):
    zero, one = spec_file().experiment("quick").runs

    assert zero.key == f"0-s0-{zero.train.digest()}"
    assert one.key == f"1-s1-{one.train.digest()}"


def test_name_resources_and_profile_do_not_change_a_key(spec_file):
    before = spec_file().experiment("quick").runs
    after = spec_file(
        ("name: A,", "name: Z, resources: {gpus: 0.5, cpus: 3},"), ("  quick:", "  other:")
    ).experiment("other")

    assert [run.key for run in after.runs] == [run.key for run in before]
    assert after.runs[0].resources.gpus == 0.5


def test_default_profile_follows_the_cluster_else_it_is_the_first(spec_file):
    file = spec_file(("profiles:\n", "default_profile: {gpu: full}\nprofiles:\n  full: {}\n"))

    assert file.profiles == ("full", "quick")
    assert file.default_profile(has_gpu=True) == "full"
    assert file.default_profile(has_gpu=False) == "full"
    assert spec_file().default_profile(has_gpu=True) == "quick"


def test_unknown_profile_is_refused_with_those_there_are(spec_file, tmp_path):
    with pytest.raises(SpecError) as caught:
        spec_file().experiment("quik")

    assert caught.value.problems == [f"{tmp_path}/x.yaml: no profile 'quik', only quick"]


# Every mistake of a file


def test_all_mistakes_of_a_file_are_told_at_once(problems_in):
    text = """\
        nam: x
        name: x
        defaults:
          epochs: many
          dat: {name: digits}
          data: {name: mnist, augmnt: true}
          loss: {offset: -1, temperature: .nan}
        runs:
          - {id: 0, name: A, model: {kind: patchwize, widht: 2}}
          - {id: 1, name: B}
          - {id: 1, name: C, model: {kind: fc, size: 1.5, width: .inf}, seed: -1}
          - {id: 4, model: {kind: fc}, resources: {gpus: 1.5, cpu: 2}, batch_size: yes}
        profiles:
          p: {changes: [{runs: "7-8", set: {epochs: 2}}, {runs: "0", set: {optimizer: {dops: 1}}}]}
          custom: {checkpoint_seconds: 0}
        default_profile: {gpu: pp, tpu: p}
        columns: [{title: Acc, metric: accuracy}]
        tables:
          - id: t
            title: T
            rows:
              - {label: A, run: 5, published: [1.0, 2.0]}
              - {label: A, run: 0, published: [.nan]}
              - {label: A, run: 0, published: [100.1]}
        """
    datasets = "'cifar10', 'cifar100', 'digits' or 'digit-pairs'"
    kinds = "'patchwise', 'fc', 'conv' or 'std'"
    file = "(allowed: name, source, data_root, default_profile, defaults, runs, profiles, "
    optimizer = "(allowed: learning_rate, momentum, nesterov, l2, drops, drop_factor)"

    assert sorted(problems_in(text=text)) == sorted(
        [
            f"x.yaml:1: nam: unknown field; did you mean `name`? {file}columns, tables)",
            "x.yaml:4: runs 0, 1, 4: epochs: must be a whole number, got 'many'",
            f"x.yaml:5: runs 0, 1, 4: dat: unknown field; did you mean `data`? {TRAINING}",
            f"x.yaml:6: runs 0, 1, 4: data.name: must be {datasets}, got 'mnist'",
            "x.yaml:6: runs 0, 1, 4: data.augmnt: unknown field; did you mean `augment`? "
            "(allowed: name, train_limit, test_limit, augment)",
            "x.yaml:7: runs 0, 1, 4: loss.offset: must be finite and not negative, got -1.0",
            "x.yaml:7: runs 0, 1, 4: loss.temperature: must be positive and finite, got nan",
            f"x.yaml:9: run 0: model.kind: must be {kinds}, got 'patchwize'",
            "x.yaml:9: run 0: model.widht: unknown field; did you mean `width`? "
            "(allowed: kind, size, width)",
            "x.yaml:10: run 1: model: is missing",
            "x.yaml:11: run 1: the ID stands also at x.yaml:10",
            "x.yaml:11: run 1: model.size: must be a whole number, got 1.5",
            "x.yaml:11: run 1: model.width: must be positive and finite, got inf",
            "x.yaml:11: run 1: seed: must be in [0, 2**63), got -1",
            "x.yaml:12: run 4: name: is missing",
            "x.yaml:12: run 4: resources.gpus: got 1.5: above 1, GPUs are whole; "
            "a fraction shares one GPU",
            "x.yaml:12: run 4: resources.cpu: unknown field; did you mean `cpus`? "
            "(allowed: cpus, gpus)",
            "x.yaml:12: run 4: batch_size: must be a whole number, got 'yes'",
            "x.yaml:14: profile p: there is no run 7, 8; the runs are 0, 1, 4",
            f"x.yaml:14: run 0: optimizer.dops: unknown field; did you mean `drops`? {optimizer}",
            "x.yaml:15: profiles.custom.checkpoint_seconds: must be greater than 0, got 0",
            "x.yaml:15: the profile name 'custom' is taken for --set; use another",
            "x.yaml:16: default_profile: unknown profile 'pp'; did you mean `p`? "
            "(allowed: p, custom)",
            "x.yaml:16: default_profile: got 'tpu', allowed: gpu, cpu",
            "x.yaml:22: table t: run 5: 2 published values for 1 columns",
            "x.yaml:22: table t: there is no run 5",
            "x.yaml:23: tables.0.rows.1.published.0: must be a finite number, got nan",
            "x.yaml:24: tables.0.rows.2.published.0: must be less than or equal to 100, got 100.1",
        ]
    )


PUBLISHED = "tables.0.rows.0.published"
CHANGE = "profiles.quick.changes.0"


@pytest.mark.parametrize(
    ("old", "new", "line", "problem"),
    [
        ("name: x\n", "", 1, "name: is missing"),
        ("name: x\n", "name: 3\n", 1, "name: must be text, got 3"),
        ("epochs: 4", "epochs: -4", 3, "runs 0, 1: epochs: must be positive and finite, got -4"),
        ("epochs: 4", "epochs: 4.5", 3, "runs 0, 1: epochs: must be a whole number, got 4.5"),
        ("epochs: 4", "epochs: true", 3, "runs 0, 1: epochs: must be a whole number, got True"),
        ("epochs: 4", "epochs: .nan", 3, "runs 0, 1: epochs: must be a finite number, got nan"),
        ("epochs: 4", "epochs: .inf", 3, "runs 0, 1: epochs: must be a finite number, got inf"),
        ("offset: √2", "offset: √x", 5, "runs 0, 1: loss.offset: must be a number, got '√x'"),
        ("{offset: √2, ", "{", 5, "runs 0, 1: loss.offset: is missing"),
        ("seed: 1,", "sede: 1,", 8, f"run 1: sede: {unknown('seed', TRAINING)}"),
        ("size: 8", "size: 0", 12, "run 1: model.size: must be positive and finite, got 0"),
        ('runs: "1"', 'run: "1"', 12, f"{CHANGE}.run: {unknown('runs', '(allowed: runs, set)')}"),
        ('runs: "1"', 'runs: "1-"', 12, f"{CHANGE}.runs: got '1-': '1-' is {NO_RANGE}"),
        ("run: 0,", "run: 7,", 17, "table t: there is no run 7"),
        ("[1.0, 0.5]", "[1.0]", 17, "table t: run 0: 1 published values for 2 columns"),
        ("[1.0, 0.5]", "[1.0, x]", 17, f"{PUBLISHED}.1: must be a number, got 'x'"),
        (
            "[1.0, 0.5]",
            "[1.0, -1]",
            17,
            f"{PUBLISHED}.1: must be greater than or equal to 0, got -1",
        ),
        ("[1.0, 0.5]", "[1.0, .nan]", 17, f"{PUBLISHED}.1: must be a finite number, got nan"),
        (f"    {ROWS}\n", "", 15, "tables.0.rows: is missing"),
        (
            "metric: cra_36",
            "metric: cra36",
            13,
            f"columns.1.metric: must be {METRICS}, got 'cra36'",
        ),
    ],
)
def test_one_mistake_is_one_line(problems_in, old, new, line, problem):
    assert problems_in((old, new)) == [f"x.yaml:{line}: {problem}"]


@pytest.mark.parametrize(
    ("new", "problem"),
    [
        ("", "run number 2: id: is missing"),
        ("id: -1, ", "run -1: id: must be greater than or equal to 0, got -1"),
        ("id: x, ", "run x: id: must be a whole number, got 'x'"),
        ("id: 1.5, ", "run 1.5: id: must be a whole number, got 1.5"),
        ("id: true, ", "run True: id: must be a whole number, got True"),
    ],
)
def test_a_wrong_id_is_one_line(problems_in, new, problem):
    assert problems_in(("id: 1, ", new), ('runs: "1", ', "")) == [f"x.yaml:8: {problem}"]


def test_a_wrong_id_does_not_hide_that_a_profile_means_it(problems_in):
    assert problems_in(("id: 1, ", "")) == [
        "x.yaml:12: profile quick: there is no run 1; the runs are 0",
        "x.yaml:8: run number 2: id: is missing",
    ]


def test_a_mistake_of_a_profile_is_told_before_the_profile_is_used(problems_in):
    """
    A file is good as a whole or not at all: `paper` must not hide what is wrong in `demo`.
    """
    text = GOOD.replace("profiles:\n", "profiles:\n  full: {}\n")

    assert problems_in(("size: 8", "size: x"), text=text) == [
        "x.yaml:13: run 1: model.size: must be a whole number, got 'x'"
    ]


def test_a_mistake_in_the_defaults_is_one_line_for_any_number_of_runs(problems_in):
    """
    Few runs are named, many are counted; two profiles do not double the line.
    """
    many = "".join(f"  - {{id: {n}, name: N, model: {{kind: fc}}}}\n" for n in range(2, 6))
    few = problems_in(("epochs: 4", "epochs: x"), ("profiles:\n", "profiles:\n  full: {}\n"))
    all_ = problems_in(("epochs: 4", "epochs: x"), ("profiles:\n", many + "profiles:\n"))

    assert few == ["x.yaml:3: runs 0, 1: epochs: must be a whole number, got 'x'"]
    assert all_ == ["x.yaml:3: 6 runs: epochs: must be a whole number, got 'x'"]


def test_one_of_two_equal_mapping_keys_is_not_silently_dropped(problems_in):
    assert problems_in(("epochs: 4", "epochs: 4\n  epochs: 5")) == [
        "x.yaml:4: `epochs` stands here and in line 3; keep one"
    ]


def test_an_id_that_is_twice_there_is_refused_with_both_places(problems_in):
    found = problems_in(("id: 1,", "id: 0,"), ('runs: "1", ', ""))

    assert found == ["x.yaml:8: run 0: the ID stands also at x.yaml:7"]


def test_an_id_that_is_twice_there_in_quotes_is_refused(problems_in):
    """
    Both would be run 0, with one key and one checkpoint.
    """
    assert problems_in(("id: 1, name: B, seed: 1", "id: '0', name: B"), ('runs: "1", ', ""))


def test_booleans_are_no_run_of_a_table_and_no_published_value(problems_in):
    found = problems_in(("run: 0, published: [1.0,", "run: true, published: [true,"))

    assert len(found) == 2


def test_a_boolean_among_the_drops_is_refused(problems_in):
    drops = "epochs: 4\n  optimizer: {drops: [true]}"
    (problem,) = problems_in(("epochs: 4", drops))

    assert problem.startswith("x.yaml:4: runs 0, 1: optimizer.drops.0: must be a number")


def test_drops_are_written_as_in_the_paper_too(spec_file):
    drops = "epochs: 4\n  optimizer: {drops: [1/2, 3/4]}"
    experiment = spec_file(("epochs: 4", drops)).experiment("quick")

    assert experiment.runs[0].train.optimizer.drops == (0.5, 0.75)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("epochs: 4", "epochs: 4\n  12: 3"),
        ("id: 1,", "id: [1],"),
        ("seed: 1,", "12: 1,"),
        ("name: x", "name: x\n12: 3"),
        ("  - {id: 0, name: A, model: {kind: patchwise}}", "  - 3"),
        ("kind: conv", "kind: [conv]"),
        ("model: {kind: conv}", "model: [conv]"),
    ],
)
def test_odd_yaml_is_refused_in_lines(problems_in, old, new):
    found = problems_in((old, new))

    assert all(line.startswith("x.yaml:") and "\n" not in line for line in found)


@pytest.mark.parametrize(
    "mistake",
    [
        ("metric: cra_36", "metric: cra36"),
        ("label: A,", "label: [A],"),
        ("published: [1.0, 0.5]", "published: 3"),
        ("id: t", "idd: t"),
        ("for looking only", "for looking only\"\n    nte: \""),
        ("name: x\n", ""),
    ],
)  # fmt: skip
def test_no_mistake_of_the_file_hides_one_of_its_runs(problems_in, mistake):
    found = problems_in(mistake, ("kind: conv", "kind: cnv"))

    assert len(found) >= 2
    assert any("model.kind" in line for line in found)


def test_unknown_metric_and_unknown_profile_field_together_hide_no_mistake_of_a_run(problems_in):
    found = problems_in(
        ("metric: cra_36", "metric: cra36"), ("    note:", "    nte:"), ("kind: conv", "kind: cnv")
    )

    assert len(found) == 3


def test_an_empty_profile_trains_the_runs_as_they_stand(spec_file):
    text = GOOD.replace("  quick:\n", "  quick:\nunused:\n")
    text = text[: text.index("unused:")] + text[text.index("columns:") :]

    runs = spec_file(text=text).experiment("quick").runs

    assert {run.train.epochs for run in runs} == {4}


@pytest.mark.parametrize(
    ("old", "new"),
    [("name: B,", 'name: "",'), (ROWS, "rows: []")],
)
def test_rules_of_length_are_sentences(problems_in, old, new):
    (problem,) = problems_in((old, new))

    assert "must be String should" not in problem
    assert "must be List should" not in problem


# --set


def test_overrides_make_the_profile_custom_and_say_so_in_the_note(spec_file):
    experiment = spec_file().experiment("quick", ["epochs=7", "loss.offset=√2/2"])

    assert experiment.profile == "custom"
    assert {run.profile for run in experiment.runs} == {"custom"}
    assert experiment.note == (
        "custom: quick with epochs=7, loss.offset=√2/2; not comparable with the paper"
    )
    assert [run.train.epochs for run in experiment.runs] == [7, 7]
    assert [run.train.loss.offset for run in experiment.runs] == [math.sqrt(2) / 2] * 2


def test_overrides_lie_over_the_profiles_changes_and_leave_the_rest(spec_file):
    one = spec_file().experiment("quick", ["model.size=4", "resources.gpus=0"]).runs[1]

    assert (one.train.model.size, one.train.model.kind, one.train.batch_size) == (4, "conv", 20)
    assert one.resources.gpus == 0


def test_all_settings_can_be_overridden():
    assert {"epochs", "seed", "model.width", "data.train_limit", "resources.cpus"} < set(SETTINGS)
    assert not {"id", "name", "train", "model"} & set(SETTINGS)


def test_all_wrong_names_of_overrides_are_told_with_the_nearest(problems_of_set):
    first, second, third, fourth = problems_of_set("epoch=7", "size=3", "epochs", "model=3")

    assert first.startswith("--set epoch=7: unknown field; did you mean `epochs`? (allowed: ")
    assert second.startswith("--set size=3: unknown field; did you mean `model.size`? (allowed: ")
    assert third == "--set epochs: write key=value, for example epochs=10"
    assert fourth.startswith("--set model=3: unknown field")


def test_all_wrong_values_of_overrides_are_told(problems_of_set):
    assert sorted(problems_of_set("epochs=abc", "model.kind=cnv", "resources.gpus=1.5")) == [
        "--set epochs: runs 0, 1: epochs: must be a whole number, got 'abc'",
        "--set model.kind: runs 0, 1: model.kind: must be 'patchwise', 'fc', 'conv' or 'std', "
        "got 'cnv'",
        "--set resources.gpus: runs 0, 1: resources.gpus: got 1.5: above 1, GPUs are whole; "
        "a fraction shares one GPU",
    ]


@pytest.mark.parametrize("text", ["epochs=true", "epochs=", "epochs=-1", "loss.offset=.nan"])
def test_wrong_values_of_overrides_name_the_option(problems_of_set, text):
    (problem,) = problems_of_set(text)

    assert problem.startswith(f"--set {text.partition('=')[0]}: runs 0, 1: ")


def test_an_override_that_is_no_yaml_is_told_with_the_others(problems_of_set):
    assert len(problems_of_set("epochs=[", "epoch=3")) == 2


# Run IDs


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("0", (0,)),
        ("0,20-24", (0, 20, 21, 22, 23, 24)),
        ("0..4", (0, 1, 2, 3, 4)),
        (" 3 , 1,3, 0-1 ", (3, 1, 0)),
        ("7-7", (7,)),
        (7, (7,)),
        ([1, "3-4"], (1, 3, 4)),
    ],
)
def test_ids_are_numbers_and_ranges_each_once_in_order(text, ids):
    assert parse_ids(text) == ids


@pytest.mark.parametrize("text", ["", "a", "-1", "1-", "1.5", "1,,2", "1-2-3", True, None])
def test_what_is_no_id_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="is no number or range; write for example 0,20-24"):
        parse_ids(text)


@pytest.mark.parametrize("text", ["5-3", "1,9..8"])
def test_an_empty_range_is_refused(text):
    with pytest.raises(ValueError, match=r"the range (5-3|9-8) is empty"):
        parse_ids(text)


def test_selection_keeps_the_files_order(spec_file):
    experiment = spec_file().experiment("quick")

    assert [run.id for run in experiment.select([1, 0]).runs] == [0, 1]
    assert [run.id for run in experiment.select([1]).runs] == [1]


def test_selection_of_unknown_runs_names_them_and_the_known_ones(spec_file):
    with pytest.raises(SpecError) as caught:
        spec_file().experiment("quick").select([7, 1, 5])

    assert caught.value.problems == ["--only: there is no run 5, 7; the runs are 0, 1"]


def test_replicates_train_every_run_once_per_number(spec_file):
    experiment = spec_file().experiment("quick").replicates([0, 2])

    assert [(run.id, run.train.seed) for run in experiment.runs] == [
        (0, 0),
        (1, 1),
        (0, 2000),
        (1, 2001),
    ]
    assert len({run.key for run in experiment.runs}) == 4
    assert {run.profile for run in experiment.runs} == {"quick"}


def test_the_command_lines_choice_is_runs_first_then_replicates(spec_file):
    experiment = spec_file().experiment("quick")

    assert experiment.chosen(None, None) == experiment
    assert [(run.id, run.train.seed) for run in experiment.chosen("1", "0..1").runs] == [
        (1, 1),
        (1, 1001),
    ]


@pytest.mark.parametrize(
    ("only", "seeds", "problem"),
    [
        ("a", None, f"--only a: 'a' is {NO_RANGE}"),
        (None, "3-1", "--seeds 3-1: the range 3-1 is empty"),
        ("9", None, "--only: there is no run 9; the runs are 0, 1"),
    ],
)
def test_a_wrong_choice_names_its_option(spec_file, only, seeds, problem):
    with pytest.raises(SpecError) as caught:
        spec_file().experiment("quick").chosen(only, seeds)

    assert caught.value.problems == [problem]


def test_the_option_of_any_command_is_named():
    with pytest.raises(SpecError) as caught:
        ids_of("--rerun", "x")

    assert caught.value.problems == [f"--rerun x: 'x' is {NO_RANGE}"]
    assert ids_of("--rerun", "3,1") == (3, 1)


# The paper: experiments.yaml

ROOT2 = math.sqrt(2)
# ID: name, model, size parameter, dataset, loss offset, temperature
PAPERS_RUNS = {
    0: ("AOL-Small", "patchwise", 16, "cifar10", ROOT2, 1 / 4),
    1: ("AOL-Medium", "patchwise", 32, "cifar10", ROOT2, 1 / 4),
    2: ("AOL-Large", "patchwise", 48, "cifar10", ROOT2, 1 / 4),
    10: ("AOL-FC", "fc", 16, "cifar10", ROOT2, 1 / 4),
    11: ("AOL-Conv", "conv", 16, "cifar10", ROOT2, 1 / 4),
    12: ("AOL-STD", "std", 16, "cifar10", ROOT2, 1 / 4),
    20: ("AOL-Small", "patchwise", 16, "cifar10", ROOT2 / 16, 1 / 64),
    21: ("AOL-Small", "patchwise", 16, "cifar10", ROOT2 / 4, 1 / 16),
    22: ("AOL-Small", "patchwise", 16, "cifar10", ROOT2, 1 / 4),
    23: ("AOL-Small", "patchwise", 16, "cifar10", 4 * ROOT2, 1.0),
    24: ("AOL-Small", "patchwise", 16, "cifar10", 16 * ROOT2, 4.0),
    30: ("AOL-Small", "patchwise", 16, "cifar100", ROOT2, 1 / 4),
    31: ("AOL-Medium", "patchwise", 32, "cifar100", ROOT2, 1 / 4),
    32: ("AOL-Large", "patchwise", 48, "cifar100", ROOT2, 1 / 4),
}
# Table: its rows as label, Std Acc, CRA 36/255, CRA 72/255, CRA 108/255, CRA 1, run ID
PAPERS_TABLES = {
    "CIFAR-10": [
        ("AOL-Small", 70.3, 62.9, 55.0, 47.7, 22.3, 0),
        ("AOL-Medium", 71.3, 64.0, 56.1, 49.1, 23.3, 1),
        ("AOL-Large", 71.4, 64.1, 56.5, 49.4, 23.8, 2),
    ],
    "CIFAR-100": [
        ("AOL-Small", 42.4, 32.5, 24.8, 19.2, 6.7, 30),
        ("AOL-Medium", 43.2, 33.7, 26.0, 20.2, 7.2, 31),
        ("AOL-Large", 43.7, 33.7, 26.3, 20.7, 7.8, 32),
    ],
    "Ablation: loss offset (AOL-Small, CIFAR-10)": [
        ("√2/16", 80.3, 46.4, 17.5, 3.6, 0.0, 20),
        ("√2/4", 77.8, 63.0, 47.5, 32.8, 2.2, 21),
        ("√2", 70.6, 62.8, 54.5, 47.7, 22.5, 22),
        ("4√2", 59.9, 55.0, 50.6, 46.3, 31.1, 23),
        ("16√2", 48.5, 45.4, 42.4, 39.7, 29.0, 24),
    ],
    "Ablation: architectures (CIFAR-10)": [
        ("AOL-FC", 67.1, 58.5, 50.3, 42.4, 17.6, 10),
        ("AOL-STD", 65.4, 56.9, 48.3, 40.5, 16.2, 12),
        ("AOL-Conv", 68.5, 60.2, 52.3, 45.2, 19.5, 11),
    ],
}


@pytest.fixture(scope="module")
def paper():
    return SpecFile(PAPER).experiment("paper")


@pytest.fixture(scope="module")
def demo():
    return SpecFile(PAPER).experiment("demo")


def test_the_file_has_the_papers_fourteen_runs(paper):
    found = {
        run.id: (
            run.name,
            run.train.model.kind,
            run.train.model.size,
            run.train.data.name,
            run.train.loss.offset,
            run.train.loss.temperature,
        )
        for run in paper.runs
    }

    assert list(found) == [0, 1, 2, 10, 11, 12, 20, 21, 22, 23, 24, 30, 31, 32]
    assert found == PAPERS_RUNS


def test_all_runs_train_as_the_paper_trains(paper):
    for run in paper.runs:
        settings = asdict(run.train)
        assert settings["model"]["width"] == 1
        assert settings["data"] == {
            "name": run.train.data.name,
            "train_limit": None,
            "test_limit": None,
            "augment": True,
        }
        assert settings["optimizer"] == {
            "learning_rate": 1e-3,
            "momentum": 0.9,
            "nesterov": True,
            "l2": 5e-4,
            "drops": (0.9, 0.99, 0.999),
            "drop_factor": 10,
        }
        assert (run.train.epochs, run.train.batch_size) == (1000, 250)
        assert (run.train.precision, run.train.eval_every) == ("float32", 1)
        assert run.train.certify == "float64"


def test_the_rate_drops_at_the_papers_epochs(paper):
    train = paper.runs[0].train

    assert [train.learning_rate(epoch) for epoch in (0, 899, 900, 989, 990, 998, 999)] == (
        pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6])
    )


def test_the_paper_profile_carries_no_watermark(paper):
    assert (paper.profile, paper.note) == ("paper", "")
    assert "2208.03160" in paper.source


def test_runs_0_and_22_are_one_configuration_with_two_keys(paper):
    runs = {run.id: run for run in paper.runs}

    assert runs[0].train.digest() == runs[22].train.digest()
    assert runs[0].train.seed != runs[22].train.seed
    assert runs[0].key != runs[22].key


def test_no_other_two_runs_share_their_settings(paper):
    assert len({run.train.digest() for run in paper.runs}) == 13


def test_every_run_has_a_seed_of_its_own_in_every_replicate(paper):
    """
    Replicates of runs 0 and 22 would else be one training that is counted twice.
    """
    seeds = [run.train.seed for run in paper.replicates(range(100)).runs]

    assert len(set(seeds)) == 1400


def test_the_file_has_the_papers_seventy_published_values(paper):
    found = {
        table.title: [(row.label, *row.published, row.run) for row in table.rows]
        for table in paper.tables
    }

    assert found == PAPERS_TABLES
    assert list(found) == list(PAPERS_TABLES)
    assert sum(len(row.published) for table in paper.tables for row in table.rows) == 70


def test_columns_are_the_papers(paper):
    assert [(column.title, column.metric) for column in paper.columns] == [
        ("Std Acc", "accuracy"),
        ("CRA 36/255", "cra_36"),
        ("CRA 72/255", "cra_72"),
        ("CRA 108/255", "cra_108"),
        ("CRA 1", "cra_1"),
    ]


def test_gpus_train_the_paper_and_cpus_the_demo():
    file = SpecFile(PAPER)

    assert file.profiles == ("paper", "demo")
    assert file.default_profile(has_gpu=True) == "paper"
    assert file.default_profile(has_gpu=False) == "demo"


def test_the_demo_is_watermarked_and_trains_on_digits(demo):
    datasets = {run.id: run.train.data.name for run in demo.runs}

    assert demo.note.startswith("demo: not comparable with the paper")
    assert [run.id for run in demo.runs] == list(PAPERS_RUNS)
    assert {datasets[run_id] for run_id in (30, 31, 32)} == {"digit-pairs"}
    assert {name for run_id, name in datasets.items() if run_id < 30} == {"digits"}


def test_the_demo_keeps_what_the_paper_varies(demo):
    kept = {
        run.id: (run.name, run.train.model.kind, run.train.model.size, run.train.loss.offset)
        for run in demo.runs
    }

    assert kept == {
        run_id: (name, kind, size, offset)
        for run_id, (name, kind, size, _, offset, _) in PAPERS_RUNS.items()
    }


def test_no_demo_run_is_taken_for_a_run_of_the_paper(demo, paper):
    digests = {run.train.digest() for run in paper.runs}

    assert not digests & {run.train.digest() for run in demo.runs}


def test_an_override_of_resources_alone_stays_in_its_profile(spec_file):
    file = spec_file()
    name = file.profiles[0]

    placed = file.experiment(name, ["resources.gpus=0"])

    assert (placed.profile, placed.note) == (name, file.experiment(name).note)
    assert {run.profile for run in placed.runs} == {name}
    assert {run.resources.gpus for run in placed.runs} == {0}
    assert file.experiment(name, ["epochs=2", "resources.gpus=0"]).profile == "custom"


@pytest.mark.parametrize("name", ["../evil", "ray", "logs", "a b", "custom"])
def test_a_profile_that_would_be_another_folder_is_refused(problems_in, name):
    (problem,) = problems_in(("  quick:", f"  {name}:"), text=GOOD)

    assert "profile" in problem


def test_an_id_among_the_defaults_is_refused(problems_in):
    found = problems_in(("defaults:\n", "defaults:\n  id: 5\n"))

    assert found == ["x.yaml:3: defaults.id: every run has an ID of its own"]
