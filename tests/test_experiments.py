"""The paper's experiments as `experiments.yaml` has them."""

import math
from dataclasses import asdict
from pathlib import Path

import pytest

from orchestrator.spec.loader import SpecFile

PAPER = Path(__file__).parent.parent / "experiments.yaml"
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
            "shuffle": "authors",
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
        assert (run.train.precision, run.train.eval_every) == ("tf32", 10)
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
    Otherwise replicates of runs 0 and 22 would be one training that is counted twice.
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

    assert file.profiles == ("paper", "demo", "laptop")
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


def test_no_demo_run_has_the_key_of_a_run_of_the_paper(demo, paper):
    digests = {run.train.digest() for run in paper.runs}

    assert not digests & {run.train.digest() for run in demo.runs}
