import math
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec.loader import load_experiment

PROJECT = Path(__file__).parents[3]

# A good file


def test_entries_override_defaults_and_profiles_override_entries(spec_file):
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


def test_later_changes_override_earlier_ones(spec_file):
    changes = "[{set: {epochs: 2}}, {runs: 0..1, set: {epochs: 3}}, {runs: [0], set: {epochs: 9}}]"
    old = '[{runs: "1", set: {batch_size: 20, model: {size: 8}}}]'
    experiment = spec_file((old, changes)).experiment("quick")

    assert [run.train.epochs for run in experiment.runs] == [9, 3]


def test_numbers_in_lists_are_written_as_in_the_paper_too(spec_file):
    drops = "epochs: 4\n  optimizer: {drops: [1/2, 3/4]}"
    experiment = spec_file(("epochs: 4", drops)).experiment("quick")

    assert experiment.runs[0].train.optimizer.drops == (0.5, 0.75)


def test_an_empty_profile_trains_the_runs_as_they_stand(spec_file):
    file = spec_file(("profiles:\n", "profiles:\n  plain:\n"))

    assert [run.train.batch_size for run in file.experiment("plain").runs] == [250, 250]


def test_experiment_has_the_fields_of_the_file(spec_file, tmp_path):
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


def test_an_unknown_profile_is_refused_with_the_existing_ones(spec_file, tmp_path):
    with pytest.raises(SpecError) as caught:
        spec_file().experiment("quik")

    assert caught.value.problems == [f"{tmp_path}/x.yaml: no profile 'quik', only quick"]


def test_an_experiment_is_loaded_by_profile_with_settings(spec_file, tmp_path):
    spec_file(("profiles:\n", "default_profile: {cpu: quick}\nprofiles:\n  full: {}\n"))
    path = str(tmp_path / "x.yaml")

    assert load_experiment(path).profile == "quick"
    assert load_experiment(path, "full").profile == "full"
    custom = load_experiment(path, "full", ["epochs=2"])
    assert (custom.profile, custom.base, custom.runs[0].train.epochs) == ("custom", "full", 2)


def test_loading_the_first_profile_reports_every_mistake(spec_file, tmp_path):
    spec_file()

    assert load_experiment(tmp_path / "x.yaml").profile == "quick"
    with pytest.raises(SpecError) as caught:
        load_experiment(tmp_path / "x.yaml", settings=["epochs=x", "seeds=1"])
    assert len(caught.value.problems) == 2


def test_reading_the_file_needs_no_heavy_library():
    """
    Widths are checked by arithmetic, so `validate` and error messages appear at once.
    """
    code = (
        "import sys, pathlib\n"
        "from orchestrator.spec.loader import SpecFile\n"
        "SpecFile(pathlib.Path('experiments.yaml'))\n"
        "print({'torch', 'ray', 'mlflow', 'sqlalchemy', 'pandas', 'numpy'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "set()"


# --set


def test_overrides_make_the_profile_custom_with_a_note(spec_file):
    experiment = spec_file().experiment("quick", ["epochs=7", "loss.offset=√2/2"])

    assert experiment.profile == "custom"
    assert {run.profile for run in experiment.runs} == {"custom"}
    assert experiment.note == (
        "custom: quick with epochs=7, loss.offset=√2/2; not comparable with the paper"
    )
    assert [run.train.epochs for run in experiment.runs] == [7, 7]
    assert [run.train.loss.offset for run in experiment.runs] == [math.sqrt(2) / 2] * 2


def test_overrides_replace_the_profiles_changes_and_leave_the_rest(spec_file):
    one = spec_file().experiment("quick", ["model.size=4", "resources.gpus=0"]).runs[1]

    assert (one.train.model.size, one.train.model.kind, one.train.batch_size) == (4, "conv", 20)
    assert one.resources.gpus == 0


def test_all_wrong_values_of_overrides_are_reported(problems_of_set):
    assert problems_of_set("epochs=abc", "model.kind=cnv", "resources.gpus=2") == [
        "--set epochs: runs 0, 1: epochs: must be a whole number, got 'abc'",
        "--set model.kind: runs 0, 1: model.kind: must be 'patchwise', 'fc', 'conv' or 'std', "
        "got 'cnv'",
        "--set resources.gpus: runs 0, 1: resources.gpus: got 2: a run trains on one GPU at most; "
        "allowed: 0, 1, or a share of one from 0.0001",
    ]


@pytest.mark.parametrize("text", ["epochs=true", "epochs=", "epochs=-1", "loss.offset=.nan"])
def test_wrong_values_of_overrides_name_the_option(problems_of_set, text):
    (problem,) = problems_of_set(text)

    assert problem.startswith(f"--set {text.partition('=')[0]}: runs 0, 1: ")


def test_wrong_names_and_wrong_values_of_overrides_are_reported_together(problems_of_set):
    found = problems_of_set("epoch=7", "epochs=x", "batch_size=[", "model.width=1e-9")

    assert [line.partition(": ")[0] for line in found] == [
        "--set batch_size=[",
        "--set epoch=7",
        "--set epochs",
        "--set model.width",
    ]


def test_mistakes_in_the_file_come_before_those_in_options(spec_file):
    file = spec_file(("epochs: 4", "epochs: 4\n  optimizer: {nesterov: true}"))

    with pytest.raises(SpecError) as caught:
        file.experiment("quick", ["epochs=x", "optimizer.momentum=0"])
    first, second = caught.value.problems
    assert first.endswith("x.yaml:4: runs 0, 1: optimizer.nesterov: needs a momentum above 0")
    assert second.startswith("--set epochs: ")


def test_an_override_of_resources_alone_stays_in_its_profile(spec_file):
    file = spec_file()
    name = file.profiles[0]

    placed = file.experiment(name, ["resources.gpus=0"])

    assert (placed.profile, placed.note) == (name, file.experiment(name).note)
    assert {run.profile for run in placed.runs} == {name}
    assert {run.resources.gpus for run in placed.runs} == {0}
    assert file.experiment(name, ["epochs=2", "resources.gpus=0"]).profile == "custom"


def test_the_ids_of_the_runs_are_collected_once(spec_file):
    """
    Each row of a table and each claim refers to them.
    """
    file = spec_file().file

    assert file.run_ids is file.run_ids
    assert file.unknown([7, 0, 1, 8]) == [7, 8]
