from dataclasses import replace

from orchestrator.figures import by_run, draw_figures
from orchestrator.report import make_report
from tests.reports import finish
from tests.stores import ORIGIN


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_figure_is_there_as_png_and_svg(reported, store, tmp_path):
    for number, run in enumerate(reported.replicates([0, 1]).runs):
        finish(store, run, number / 10)
    written = draw_figures(make_report(reported, store), store, tmp_path / "figures")

    stems = ["curves-ablation", "curves-one", "paper-against-ours", "trade-off-ablation"]
    stems += ["training-ablation", "training-one"]
    assert names(tmp_path / "figures") == sorted(
        f"{stem}.{form}" for stem in stems for form in ("png", "svg")
    )
    assert sorted(path.stem for path in written) == sorted(stems)
    svg = (tmp_path / "figures" / "curves-one.svg").read_text()
    assert "demo: not comparable" in svg


def test_figures_of_single_tables_can_be_had_alone_in_one_format(reported, store, tmp_path):
    finish(store, reported.runs[0], 0)
    report = make_report(reported, store)
    folder = tmp_path / "figures"
    written = draw_figures(report, store, folder, ["png"], overall=False)

    assert names(folder) == sorted(path.name for path in written)
    assert {path.suffix for path in written} == {".png"}
    assert "paper-against-ours.png" not in names(folder)
    assert by_run(report, [*written, folder / "paper-against-ours.png"]) == {
        0: written,
        22: written,
    }


def test_the_same_results_are_the_same_files(reported, store, tmp_path):
    finish(store, reported.runs[0], 0)
    for folder in ("a", "b"):
        draw_figures(make_report(reported, store), store, tmp_path / folder)

    assert names(tmp_path / "a") == names(tmp_path / "b")
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_without_results_there_is_nothing_to_draw(reported, store, tmp_path):
    assert draw_figures(make_report(reported, store), store, tmp_path / "figures") == []


def test_a_run_in_training_has_training_curves_only(reported, store, tmp_path):
    run = reported.runs[0]
    store.queue([run])
    store.start(run, ORIGIN)
    store.record(run.key, 1, {"train_loss": 1.0, "accuracy": 0.5})
    reported = replace(reported, note="")
    draw_figures(make_report(reported, store), store, tmp_path / "figures")

    assert {name.partition(".")[0] for name in names(tmp_path / "figures")} == {
        "training-ablation",
        "training-one",
    }
