from dataclasses import replace
from itertools import combinations, product

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import same_color

from orchestrator.analysis.margins import read_margins
from orchestrator.analysis.report import make_report
from orchestrator.analysis.tables import runs_of
from orchestrator.analysis.verdicts import Verdict
from orchestrator.reporting.figures import draw_figures, figures_of, files_of
from orchestrator.reporting.figures.curves import training_curves
from orchestrator.reporting.figures.style import (
    LINE_STYLES,
    RC_PARAMS,
    add_labels,
    add_legend,
    make_panels,
)
from orchestrator.spec.loader import SpecFile
from orchestrator.spec.schema import Row, Table
from tests.support.reports import damage_margins, finish
from tests.support.shell import PROJECT
from tests.support.stores import ORIGIN, recorded_statements


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def drawn(experiment, store):
    """
    Return every figure of an experiment by name, as it would be written.
    """
    with mpl.rc_context(RC_PARAMS):
        return dict(figures_of(make_report(experiment, store), store))


def points(line):
    return [tuple(map(float, point)) for point in line.get_xydata()]


def lines(axes, *, joined=True, dash=None):
    """
    Return the lines of a panel, or its unconnected markers.
    """
    found = [line for line in axes.lines if (line.get_linestyle() != "None") == joined]
    return [line for line in found if dash in (None, line.get_linestyle())]


def segments(bars):
    return [tuple(map(tuple, segment)) for segment in bars.get_segments()]


@pytest.fixture
def twice(reported, store):
    """
    Return the experiment of two runs, trained with two seeds each with different margins.
    """
    for number, run in enumerate(reported.replicates([0, 1]).runs):
        finish(store, run, number / 10)
    return reported


# Certified accuracy against the radius


def shares(store, run, radii):
    """
    Return the percentage certified at each radius by the definition, a row per seed.
    """
    stored = [one.key for one in store.runs() if one.run_id == run]
    margins = np.array([read_margins(store.margins(key)) for key in stored])
    return 100 * (margins[:, None, :] > np.sqrt(2) * np.asarray(radii)[None, :, None]).mean(2)


def test_a_curve_is_the_mean_of_the_seeds_at_every_radius(twice, store):
    (axes,) = drawn(twice, store)["curves-one"].axes

    assert len(lines(axes)) == 2
    for line, run in zip(lines(axes), (0, 22), strict=True):
        radii, certified = line.get_data()
        assert (radii[0], radii[-1]) == (0, 1.5)
        assert np.diff(radii).max() < 0.011
        assert certified == pytest.approx(shares(store, run, radii).mean(0))


def test_a_curve_passes_through_the_values_of_the_table(twice, store):
    report = make_report(twice, store)
    for filled in report.tables:
        (axes,) = drawn(twice, store)[f"curves-{filled.table.id}"].axes
        for line, row in zip(lines(axes), filled.cells, strict=True):
            curve = dict(points(line))
            for column, cell in zip(filled.columns, row, strict=True):
                assert curve[column.radius] == pytest.approx(cell.measured), cell.name


def test_the_band_is_from_the_lowest_seed_to_the_highest(twice, store):
    (axes,) = drawn(twice, store)["curves-one"].axes

    assert len(axes.collections) == 2
    for band, line, run in zip(axes.collections, lines(axes), (0, 22), strict=True):
        radii = line.get_xdata()
        both = shares(store, run, radii)
        corners = band.get_paths()[0].vertices
        heights = [corners[corners[:, 0] == radius][:, 1] for radius in radii]
        assert (both.min(0) < both.max(0)).any()
        assert [low.min() for low in heights] == pytest.approx(both.min(0))
        assert [high.max() for high in heights] == pytest.approx(both.max(0))
        assert same_color(band.get_facecolor()[0][:3], line.get_color())
        assert 0 < band.get_alpha() < 1


def test_published_values_are_at_the_radii_of_their_columns(twice, store):
    figures = drawn(twice, store)
    for table in twice.tables:
        (axes,) = figures[f"curves-{table.id}"].axes
        radii = [0, 36 / 255, 72 / 255, 108 / 255, 1]
        for markers, line, row in zip(
            lines(axes, joined=False), lines(axes), table.rows, strict=True
        ):
            assert points(markers) == list(zip(radii, row.published, strict=True))
            assert markers.get_markerfacecolor() == "none"
            assert markers.get_color() == line.get_color()


def test_an_untrained_row_has_published_values_only(reported, store):
    finish(store, reported.runs[0], 0)
    figure = drawn(reported, store)["curves-one"]
    (axes,) = figure.axes

    assert len(lines(axes)) == len(axes.collections) == 1
    assert len(lines(axes, joined=False)) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["row 0", "row 22"]


def test_damaged_margins_have_no_curve(reported, store):
    for run in reported.runs:
        finish(store, run, 0)
    damage_margins(store, 3)
    (axes,) = drawn(reported, store)["curves-one"].axes

    assert lines(axes) == []
    assert len(lines(axes, joined=False)) == 2


# Training


def train(store, run, rates, share=1.0):
    """
    Store a run in training with a learning rate per epoch; `share` multiplies its metrics.
    """
    store.queue([run])
    store.start(run, ORIGIN)
    for epoch, rate in enumerate(rates, start=1):
        values = {"train_loss": 1 / epoch, "accuracy": epoch / 10, "cra_36": epoch / 20}
        values = {name: share * value for name, value in values.items()}
        store.record(run.key, epoch, values | {"learning_rate": rate})


def drops(panel):
    return sorted(float(line.get_xdata()[0]) for line in lines(panel, dash=":"))


def band(panel, index=0):
    """
    Return the lowest and highest values of a band, by epoch.
    """
    found = {}
    for epoch, value in panel.collections[index].get_paths()[0].vertices.tolist():
        found.setdefault(epoch, []).append(value)
    return {epoch: pytest.approx((min(ends), max(ends))) for epoch, ends in found.items()}


def test_each_panel_has_its_metric_by_epoch_for_every_row(reported, store):
    for run in reported.runs:
        train(store, run, [0.1] * 3)
    loss, accuracy, certified = drawn(reported, store)["training-one"].axes

    assert [points(line) for line in loss.lines] == [[(1, 1), (2, 1 / 2), (3, 1 / 3)]] * 2
    assert [points(line) for line in accuracy.lines] == [[(1, 10), (2, 20), (3, 30)]] * 2
    assert [points(line) for line in certified.lines] == [[(1, 5), (2, 10), (3, 15)]] * 2
    assert [len(panel.collections) for panel in (loss, accuracy, certified)] == [0, 0, 0]
    assert loss.get_yscale() == "log"
    assert [panel.get_ylabel() for panel in (loss, accuracy, certified)] == [
        "training loss",
        "standard accuracy (%)",
        "CRA 36/255 (%)",
    ]


def test_several_seeds_are_one_line_of_their_mean_in_a_band_of_their_range(reported, store):
    """
    The third seed is still in its second epoch.
    """
    for number, (epochs, share) in enumerate([(3, 1.0), (3, 2.0), (2, 6.0)]):
        train(store, reported.replicates([number]).runs[0], [0.1] * epochs, share)
    figure = drawn(reported, store)["training-one"]
    _, accuracy, _ = figure.axes

    assert dict(points(accuracy.lines[0])) == pytest.approx({1: 30, 2: 60, 3: 45})
    assert band(accuracy) == {1: (10, 60), 2: (20, 120), 3: (30, 60)}
    assert "mean of the seeds; bands: from the lowest to the highest" in (
        figure.legends[0].get_title().get_text()
    )


def test_curves_of_many_seeds_take_as_many_statements_as_those_of_few(reported, store):
    counts = []
    for numbers in (range(2), range(2, 12)):
        for run in reported.replicates(numbers).runs:
            train(store, run, [0.1])
        report = make_report(reported, store)
        stored = runs_of(reported, store)
        with recorded_statements(store) as sent:
            training_curves(report.tables[0], stored, store, "")
        counts.append(len(sent))

    assert counts[0] == counts[1]


def test_an_epoch_without_evaluation_has_a_loss_only(reported, store):
    run = reported.runs[0]
    train(store, run, [0.1] * 2)
    store.record(run.key, 3, {"train_loss": 0.2, "learning_rate": 0.1})
    loss, accuracy, _ = drawn(reported, store)["training-one"].axes

    assert [epoch for epoch, _ in points(loss.lines[0])] == [1, 2, 3]
    assert [epoch for epoch, _ in points(accuracy.lines[0])] == [1, 2]


def test_drops_of_the_learning_rate_are_marked_on_every_panel(reported, store):
    train(store, reported.runs[0], [0.1, 0.1, 0.01, 0.01, 0.001])
    panels = drawn(reported, store)["training-one"].axes

    assert [drops(panel) for panel in panels] == [[2.5, 4.5]] * 3


def test_a_drop_of_several_runs_is_marked_once(reported, store):
    """
    The first run has not reached the drop, and an increasing rate is none.
    """
    first, second = reported.runs
    train(store, first, [0.1, 0.2])
    train(store, second, [0.1, 0.1, 0.01])
    train(store, reported.replicates([1]).runs[1], [0.1, 0.1, 0.01])
    figure = drawn(reported, store)["training-one"]

    assert [drops(panel) for panel in figure.axes] == [[2.5]] * 3
    assert "drops of the learning rate" in figure.legends[0].get_title().get_text()


# The trade-off


def test_the_trade_off_has_a_line_of_measured_and_one_of_published_values(twice, store):
    filled = make_report(twice, store).tables[1]
    (axes,) = drawn(twice, store)["trade-off-ablation"].axes

    for place in range(1, 5):
        ours, paper = axes.lines[2 * (place - 1) : 2 * place]
        assert points(ours) == [(row[0].measured, row[place].measured) for row in filled.cells]
        assert points(paper) == [(row[0].published, row[place].published) for row in filled.cells]
        assert (ours.get_linestyle(), paper.get_linestyle()) == ("-", ":")
        assert paper.get_markerfacecolor() == "none" != ours.get_markerfacecolor()
        assert ours.get_color() == paper.get_color() == LINE_STYLES[place - 1].color
    assert len(axes.lines) == 8


def test_rows_are_labelled_at_their_first_certified_accuracy(twice, store):
    filled = make_report(twice, store).tables[1]
    (axes,) = drawn(twice, store)["trade-off-ablation"].axes

    assert {label.get_text(): label.xy for label in axes.texts} == {
        row[0].row: (row[0].measured, row[1].measured) for row in filled.cells
    }


def test_the_trade_off_orders_columns_by_radius(twice, store):
    turned = replace(
        twice,
        columns=twice.columns[::-1],
        tables=tuple(
            table.model_copy(
                update={
                    "rows": [
                        row.model_copy(update={"published": row.published[::-1]})
                        for row in table.rows
                    ]
                }
            )
            for table in twice.tables
        ),
    )

    (axes,), (as_before,) = (
        drawn(one, store)["trade-off-ablation"].axes for one in (turned, twice)
    )
    assert [points(line) for line in axes.lines] == [points(line) for line in as_before.lines]


@pytest.mark.parametrize("kept", [slice(0, 1), slice(1, 3)])
def test_there_is_no_trade_off_without_both_accuracies(twice, store, kept):
    tables = tuple(
        table.model_copy(
            update={
                "rows": [
                    row.model_copy(update={"published": row.published[kept]}) for row in table.rows
                ]
            }
        )
        for table in twice.tables
    )

    assert "trade-off-ablation" not in drawn(
        replace(twice, columns=twice.columns[kept], tables=tables), store
    )


# Measured against published values


@pytest.fixture
def judged(reported, store):
    """
    Return a run measured 75, 70, 65, 60 and 40; two of its cells have their own margins.
    """
    finish(store, reported.runs[0], 0)
    margins = {"accuracy": 2.0, "cra_1": 0.7}
    published = [74.8, 60.0, 64.2, 59.9, 41.1]
    rows = [Row(label="a", run=0, published=published, margins=margins)]
    rows += [Row(label="b", run=22, published=published)]
    return replace(reported, tables=(Table(id="one", title="One", rows=rows),))


VALUES, DIFFERENCES = 0, 1  # the panels


def center(panel, published):
    return published if panel == VALUES else 0.0


@pytest.mark.parametrize("panel", [VALUES, DIFFERENCES])
def test_cells_are_drawn_by_verdict_at_their_value_and_difference(judged, store, panel):
    figure = drawn(judged, store)["paper-against-ours"]
    expected = {
        Verdict.REPRODUCED: [(74.8, 0.2), (59.9, 0.1)],
        Verdict.DIFFERS: [(60.0, 10.0)],
        Verdict.UNDERPOWERED: [(64.2, 0.8), (41.1, -1.1)],
    }

    found = {line.get_marker(): points(line) for line in lines(figure.axes[panel], joined=False)}
    assert found == {
        LINE_STYLES[list(Verdict).index(verdict)].marker: [
            pytest.approx((at, center(panel, at) + difference)) for at, difference in cells
        ]
        for verdict, cells in expected.items()
    }
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "margin of the cell",
        "reproduced (2)",
        "differs (1)",
        "underpowered (2)",
    ]


def test_equality_is_drawn_as_a_line(judged, store):
    values, differences = drawn(judged, store)["paper-against-ours"].axes

    (identity,) = lines(values)
    assert (identity.get_xy1(), identity.get_slope()) == ((0, 0), 1)
    (equal,) = lines(differences)
    assert list(equal.get_ydata()) == [0, 0]


@pytest.mark.parametrize("panel", [VALUES, DIFFERENCES])
def test_each_cell_has_its_margin_around_equality(judged, store, panel):
    axes = drawn(judged, store)["paper-against-ours"].axes[panel]
    margins = {74.8: 2.0, 60.0: 1.0, 64.2: 1.0, 59.9: 1.0, 41.1: 0.7}

    assert segments(axes.collections[0]) == [
        ((at, center(panel, at) - margin), (at, center(panel, at) + margin))
        for at, margin in margins.items()
    ]


@pytest.mark.parametrize("panel", [VALUES, DIFFERENCES])
def test_a_cell_has_its_interval(judged, store, panel):
    report = make_report(judged, store)
    axes = drawn(judged, store)["paper-against-ours"].axes[panel]

    found = [segment for bars in axes.collections[1:] for segment in segments(bars)]
    expected = [
        ((at, center(panel, at) + one.interval[0]), (at, center(panel, at) + one.interval[1]))
        for one in report.verdicts.values()
        if one.interval
        for at in [one.cell.published]
    ]
    assert len(found) == 5
    assert np.array(sorted(found)) == pytest.approx(np.array(sorted(expected)))


# Layout


@pytest.fixture
def crowded(store):
    """
    Return the project's tables with equal results, so that all labels compete for one position.
    """
    experiment = SpecFile(PROJECT / "experiments.yaml").experiment("demo")
    for run in experiment.runs:
        finish(store, run, 1.0)
    return experiment


@pytest.mark.slow
def test_nothing_overlaps_and_nothing_is_cut_off(crowded, store):
    figures = drawn(crowded, store)

    assert len(figures) == 10
    for name, figure in figures.items():
        figure.draw_without_rendering()
        texts = [text for axes in figure.axes for text in (axes.title, axes.xaxis.label)]
        texts += [axes.yaxis.label for axes in figure.axes]
        written = [*figure.legends, *figure.texts, *(text for text in texts if text.get_text())]
        boxes = [one.get_window_extent() for one in written]
        panels = [axes.get_window_extent() for axes in figure.axes]
        labels = 1 if name == "claims" else 2  # its rows are labelled, and not their axis
        assert len(boxes) == 1 + 1 + 1 + labels * len(panels), name
        for one, other in [*combinations(boxes, 2), *product(boxes, panels)]:
            assert not one.overlaps(other), name
        for box in boxes:
            assert figure.bbox.count_contains([box.min, box.max]) == 2, name
        assert all(axes.get_legend() is None for axes in figure.axes), name


@pytest.mark.slow
def test_labels_cover_neither_each_other_nor_a_marker(crowded, store):
    figure = drawn(crowded, store)["trade-off-loss-offset"]
    (axes,) = figure.axes
    labels = [label.get_window_extent() for label in axes.texts]
    markers = np.concatenate(
        [line.get_transform().transform(line.get_xydata()) for line in axes.lines]
    )

    assert len(labels) == 5
    assert not any(one.overlaps(other) for one, other in combinations(labels, 2))
    assert all(label.count_contains(markers) == 0 for label in labels)
    for label in labels:
        assert axes.bbox.count_contains([label.min, label.max]) == 2


def test_labels_keep_their_position_when_the_figure_is_drawn(crowded, store):
    figure = drawn(crowded, store)["trade-off-loss-offset"]
    before = [label.get_window_extent().bounds for label in figure.axes[0].texts]
    figure.draw_without_rendering()

    after = [label.get_window_extent().bounds for label in figure.axes[0].texts]
    assert after == [pytest.approx(box, abs=1) for box in before]


@pytest.fixture
def long_names(twice):
    """
    Return tables whose rows have long names.
    """
    names = {0: "a network that is as wide as it is deep, and it is deep", 22: "w" * 50}
    return replace(
        twice,
        tables=tuple(
            table.model_copy(
                update={
                    "rows": [row.model_copy(update={"label": names[row.run]}) for row in table.rows]
                }
            )
            for table in twice.tables
        ),
    )


def test_a_legend_of_long_names_has_fewer_columns_and_fits(long_names, store):
    for name, figure in drawn(long_names, store).items():
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        assert figure.bbox.count_contains([box.min, box.max]) == 2, name


def test_a_figure_has_the_note_of_the_profile_and_the_title_of_its_table(twice, store):
    for name, figure in drawn(twice, store).items():
        titles = " ".join(axes.get_title() for axes in figure.axes).strip()
        assert figure.get_suptitle() == "demo: not comparable", name
        assert titles in ("One", "Ablation", "Measured against published values"), name

    assert drawn(replace(twice, note=""), store)["curves-one"].texts == []


# The files


def test_every_figure_is_written_as_png_and_svg(twice, store, tmp_path):
    written = draw_figures(make_report(twice, store), store, tmp_path / "figures")

    stems = ["curves-ablation", "curves-one", "paper-against-ours", "trade-off-ablation"]
    stems += ["training-ablation", "training-one"]
    assert names(tmp_path / "figures") == sorted(
        f"{stem}.{form}" for stem in stems for form in ("png", "svg")
    )
    assert sorted(path.stem for path in written) == sorted(stems)
    svg = (tmp_path / "figures" / "curves-one.svg").read_text()
    assert "demo: not comparable" in svg


def test_figures_are_drawn_in_one_format_or_in_all(reported, store, tmp_path):
    finish(store, reported.runs[0], 0)
    report = make_report(reported, store)
    folder = tmp_path / "figures"
    written = draw_figures(report, store, folder, ["png"])

    assert names(folder) == sorted(path.name for path in written)
    assert {path.suffix for path in written} == {".png"}
    assert [path.name for path in files_of(written[:1])] == ["curves-one.png", "curves-one.svg"]


@pytest.mark.slow
def test_equal_results_give_equal_files(reported, store, tmp_path):
    finish(store, reported.runs[0], 0)
    for folder in ("a", "b"):
        draw_figures(make_report(reported, store), store, tmp_path / folder)

    assert names(tmp_path / "a") == names(tmp_path / "b")
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_without_results_no_figure_is_drawn(reported, store, tmp_path):
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"$\bad$ costs $3", r"$\bad$ costs $3"),
        (r"a \$ b", r"a \$ b"),
        ("a\n\nb", "a b"),
        ("_hidden", " _hidden"),
    ],
)
def test_a_figure_shows_text_of_others_as_it_is(text, shown):
    figure, (axes,) = make_panels(text, text)
    add_legend(figure, [(text, axes.plot([0, 1])[0])], "")
    add_labels(figure, axes, [(text, 0.5, 0.5)])
    figure.draw_without_rendering()

    drawn = [axes.title, *axes.texts, *figure.legends[0].get_texts(), figure._suptitle]
    assert {one._preprocess_math(one.get_text()) for one in drawn} == {(shown, False)}
