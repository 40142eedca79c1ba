from dataclasses import replace

import numpy as np
import pytest

from orchestrator.figures import draw_figures
from orchestrator.margins import share
from orchestrator.report import make_report
from orchestrator.spec import RADII, Column, Experiment, Row, Table
from orchestrator.store import Status, Store
from tests.stores import ORIGIN


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store.db")
    yield store
    store.close()


@pytest.fixture
def experiment(make_run, tmp_path):
    columns = [Column(title=metric, metric=metric) for metric in RADII]
    published = [70.0, 60.0, 50.0, 40.0, 20.0]
    rows = [Row(label=f"row {run}", run=run, published=published) for run in (0, 22)]
    return Experiment(
        path=tmp_path / "x.yaml",
        name="tiny",
        source="",
        profile="demo",
        note="demo: not comparable",
        checkpoint_seconds=60,
        data_root=None,
        runs=(make_run(0), make_run(22)),
        columns=tuple(columns),
        tables=(
            Table(id="one", title="One", rows=rows),
            Table(id="ablation", title="Ablation", header="offset", rows=rows[::-1]),
        ),
    )


def finish(store, run, shift):
    margins = np.linspace(-1, 3, 100, dtype="<f4") + np.float32(shift)
    store.queue([run])
    store.start(run, ORIGIN)
    for epoch in range(1, run.train.epochs + 1):
        rate = 0.1 if epoch < run.train.epochs else 0.01
        values = {name: share(margins, radius) for name, radius in RADII.items()}
        store.record(run.key, epoch, values | {"train_loss": 1 / epoch, "learning_rate": rate})
    certificate = {"arithmetic": "float64", "violations": []}
    store.finish(run.key, Status.DONE, margins=margins.tobytes(), certificate=certificate)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_figure_is_there_as_png_and_svg(experiment, store, tmp_path):
    for number, run in enumerate(experiment.replicates([0, 1]).runs):
        finish(store, run, number / 10)
    written = draw_figures(make_report(experiment, store), store, tmp_path / "figures")

    stems = ["curves-ablation", "curves-one", "paper-against-ours", "trade-off-ablation"]
    stems += ["training-ablation", "training-one"]
    assert names(tmp_path / "figures") == sorted(
        f"{stem}.{form}" for stem in stems for form in ("png", "svg")
    )
    assert sorted(path.stem for path in written) == sorted(stems)
    svg = (tmp_path / "figures" / "curves-one.svg").read_text()
    assert "demo: not comparable" in svg


def test_the_same_results_are_the_same_files(experiment, store, tmp_path):
    finish(store, experiment.runs[0], 0)
    for folder in ("a", "b"):
        draw_figures(make_report(experiment, store), store, tmp_path / folder)

    assert names(tmp_path / "a") == names(tmp_path / "b")
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_without_results_there_is_nothing_to_draw(experiment, store, tmp_path):
    assert draw_figures(make_report(experiment, store), store, tmp_path / "figures") == []


def test_a_run_in_training_has_training_curves_only(experiment, store, tmp_path):
    run = experiment.runs[0]
    store.queue([run])
    store.start(run, ORIGIN)
    store.record(run.key, 1, {"train_loss": 1.0, "accuracy": 0.5})
    experiment = replace(experiment, note="")
    draw_figures(make_report(experiment, store), store, tmp_path / "figures")

    assert {name.partition(".")[0] for name in names(tmp_path / "figures")} == {
        "training-ablation",
        "training-one",
    }
