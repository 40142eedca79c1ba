import html
import html.parser
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from orchestrator.analysis.report import make_report
from orchestrator.analysis.verdicts import describe_verdict
from orchestrator.provenance import Provenance
from orchestrator.reporting.figures import draw_figures, figures_of
from orchestrator.reporting.html import render_page
from orchestrator.reporting.latex import ESCAPES, escape, render_latex
from orchestrator.reporting.markdown import render_markdown
from orchestrator.spec.loader import SpecFile
from orchestrator.store import Status, Store
from tests.support.reports import finish
from tests.support.shell import PROJECT

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PDFLATEX = shutil.which("pdflatex")


@pytest.fixture(scope="module")
def figures():
    """
    Return the list in which `written` keeps its figures, so that they are drawn once.
    """
    return []


@pytest.fixture
def written(reported, store, tmp_path, figures, tmp_path_factory):
    """
    Return the file of a page with one finished and one failed run.
    """
    first, second = reported.runs
    finish(store, first, 0.0)
    store.queue([second])
    store.finish(second.key, Status.FAILED, error="out of <memory>")
    report = make_report(reported, store)
    file = tmp_path / "report.html"
    if not figures:
        figures += draw_figures(report, store, tmp_path_factory.mktemp("figures"))
    file.write_text(render_page(report, store, figures), encoding="utf-8")
    return file


class Outline(html.parser.HTMLParser):
    """
    Tracks open tags, counts tags and collects every URL that a browser would load.
    """

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.count = [], [], {}

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def outline(text):
    found = Outline()
    found.feed(text)
    return found


def test_the_page_is_well_formed_and_loads_nothing(written):
    found = outline(written.read_text(encoding="utf-8"))

    assert found.open == []
    assert found.count["table"] == 2
    assert found.count["figure"] == 6
    assert all(value.startswith("data:image/svg+xml;base64,") for value in found.loads)
    assert "http" not in re.sub(r"base64,[^\"]*", "", written.read_text(encoding="utf-8"))


def test_the_page_has_verdicts_failures_and_provenance(written):
    text = written.read_text(encoding="utf-8")

    assert "demo: not comparable" in text
    assert "out of &lt;memory&gt;" in text
    assert re.search(
        r'class="(reproduced|differs|underpowered)" title="\w+: 7[45]\.\d measured', text
    )
    assert "Binomial error of the test images alone: ±" in text
    assert "abc" in text  # the commit


def test_every_verdict_is_also_described_outside_tooltips(written, reported, store):
    text = written.read_text(encoding="utf-8")
    report = make_report(reported, store)
    descriptions = re.findall(
        r"<details><summary>Verdicts in words</summary>(.*?)</details>", text, re.DOTALL
    )

    assert len(descriptions) == len(report.tables)
    for filled, words in zip(report.tables, descriptions, strict=True):
        assert re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html.unescape(words)) == [
            (f"{cell.row}, {cell.column}", describe_verdict(report.verdicts[cell]))
            for row in filled.cells
            for cell in row
        ]


def test_a_cell_has_the_same_symbols_as_in_markdown(written, reported, store):
    text = written.read_text(encoding="utf-8")
    report = make_report(reported, store)
    symbols = re.findall(r"<td class=.*?>\S+ (\S*)<small>", text)
    table = render_markdown(report).partition("## Verdicts")[2]
    expected = re.findall(r"\| +([✓✗?]\S*) \S+ \[.*?\](°?) ", table)

    assert [symbol for symbol in symbols if symbol] == [
        verdict + prior for verdict, prior in expected
    ]
    assert any(symbol.endswith("°") for symbol in symbols)


def test_a_cell_of_two_seeds_has_no_symbol_of_the_prior(reported, store):
    for run in reported.replicates([0, 1]).runs:
        finish(store, run, 0.0)

    assert "°" not in render_page(make_report(reported, store), store, [])


def test_each_table_has_a_legend_of_its_symbols(written):
    text = written.read_text(encoding="utf-8")
    legends = re.findall(r'<ul class="legend">(.*?)</ul>', text, re.DOTALL)

    assert len(legends) == 2
    for legend in legends:
        symbols = dict(re.findall(r'<span class="(\w*)">(.)</span>', legend))
        verdicts = set(re.findall(r'<td class="(\w+)"', text))
        assert symbols.keys() == verdicts | {""}
        assert symbols["missing"] == "–"
        assert symbols[""] == "°"
        assert all(f"</span> {verdict}: " in legend for verdict in verdicts)


def test_the_note_is_on_the_page_once(written):
    text = written.read_text(encoding="utf-8")

    assert text.count("demo: not comparable") == 1
    assert '<p class="note">(demo: not comparable; as a claim' in text


def test_a_page_without_a_note(reported, store):
    assert 'class="note"' not in render_page(
        make_report(replace(reported, note=""), store), store, []
    )


def test_without_javascript_there_are_no_buttons(written):
    body, _, script = written.read_text(encoding="utf-8").partition("<script>")

    assert "<button" not in body
    assert 'id="sorting" hidden' in body
    assert "createElement" in script


def test_an_interrupted_run_without_an_error_has_no_empty_box(written, reported, store):
    failed = written.read_text(encoding="utf-8").count("<pre>")
    store.finish(reported.runs[1].key, Status.INTERRUPTED)
    text = render_page(make_report(reported, store), store, [])

    assert failed == 1
    assert "seed 22: interrupted after epoch 0 of 3" in text
    assert "<pre>" not in text


def test_violations_are_on_the_page(reported, store):
    finish(store, reported.runs[0], 0.0)
    report = replace(make_report(reported, store), violations=("run 0, seed 0: a <margin>",))

    assert "run 0, seed 0: a &lt;margin&gt;" in render_page(report, store, [])


def test_a_page_without_results_is_well_formed(reported, store, tmp_path):
    file = tmp_path / "empty.html"
    file.write_text(render_page(make_report(reported, store), store, []), encoding="utf-8")

    assert outline(file.read_text(encoding="utf-8")).count["table"] == 2
    assert "None yet." in file.read_text(encoding="utf-8")


def headings(text):
    return re.findall(r'<(h1|h2|h3|th scope="col")>(.*?)</', text)


def shown_figures(text):
    return re.findall(r'<figure id="(.*?)"><img', text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """
    Return the experiment and the store of the demo with all its runs finished.
    """
    opened = Store(tmp_path_factory.mktemp("whole") / "store.db")
    experiment = SpecFile(PROJECT / "experiments.yaml").experiment("demo")
    for run in experiment.runs:
        finish(opened, run, 0.0, spectra=True)
    yield experiment, opened
    opened.close()


@pytest.mark.slow
def test_the_committed_page_of_the_demo_is_current_in_structure(whole, tmp_path):
    """
    `make docs` updates it; other results give the same headings.
    """
    experiment, store = whole
    committed = (PROJECT / "results" / "demo" / "report.html").read_text(encoding="utf-8")
    drawn = draw_figures(make_report(experiment, store), store, tmp_path, ["svg"])
    fresh = render_page(make_report(experiment, store), store, drawn)

    assert headings(committed) == headings(fresh)
    assert shown_figures(committed) == shown_figures(fresh)
    for tag in ("table", "figure", "details", "dl", "button"):
        assert outline(committed).count.get(tag) == outline(fresh).count.get(tag), tag


def wording(text):
    """
    Return the text without tables and evidence, with # for each number, and the summary.
    """
    lines = [line for line in text.splitlines() if not line.startswith(("|", "- C"))]
    (summary,) = (line for line in lines if " of the paper, " in line)
    rest = [line for line in lines if line != summary]
    return [re.sub(r"\d+(\.\d+)?", "#", line) for line in rest], summary


def test_the_committed_tables_have_the_current_wording(whole):
    experiment, store = whole
    report = replace(make_report(experiment, store), violations=())
    committed = (PROJECT / "results" / "demo" / "tables.md").read_text(encoding="utf-8")
    on_the_page = (PROJECT / "results" / "demo" / "report.html").read_text(encoding="utf-8")
    words, summary = wording(committed)

    assert words == wording(render_markdown(report))[0]
    assert summary in html.unescape(on_the_page)


def test_the_committed_figures_are_complete(whole):
    experiment, store = whole
    drawn = {name for name, _ in figures_of(make_report(experiment, store), store)}
    committed = {path.name for path in (PROJECT / "results" / "demo" / "figures").iterdir()}

    assert committed == {f"{name}.{form}" for name in drawn for form in ("png", "svg")}


def browse(file, *options):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *options]
    command += [f"--user-data-dir={file.parent / 'browser'}", file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


SORTING = """
<script>
document.querySelectorAll("th button")[1].click();
document.querySelectorAll("th button")[1].click();
const rows = [...document.querySelector("tbody").rows].map(row => row.cells[0].innerText);
const visible = document.getElementById("sorting").checkVisibility();
document.title = `visible: ${visible} ${rows.join("|")}`;
</script></body>"""


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_a_browser_sorts_columns_without_messages(written, tmp_path):
    """
    Descending by the first column the finished run comes before the one without a value.
    """
    file = tmp_path / "sorting.html"
    text = written.read_text(encoding="utf-8")
    file.write_text(text.replace("</body>", SORTING), encoding="utf-8")
    done = browse(file, "--enable-logging=stderr", "--dump-dom")

    assert "<title>visible: true row 0|row 22</title>" in done.stdout
    assert "CONSOLE" not in done.stderr


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
@pytest.mark.parametrize(("scheme", "dark"), [(0, True), (1, False)])
def test_a_browser_inverts_figures_in_dark_mode(written, scheme, dark):
    """
    Most pixels are background, of the page and of the figures.
    """
    picture = written.parent / "page.png"
    browse(
        written,
        f"--blink-settings=preferredColorScheme={scheme}",
        f"--screenshot={picture}",
        "--window-size=800,4000",
    )
    with Image.open(picture) as opened:
        grey = np.asarray(opened.convert("L"))

    assert np.median(grey) == pytest.approx(23 if dark else 255, abs=3)
    assert ((grey > 245).mean() < 0.01) == dark


def test_latex_has_every_table_and_escapes_special_characters(reported, store):
    finish(store, reported.runs[0], 0.0)
    text = render_latex(make_report(reported, store))

    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert text.count(r"\toprule") == 2
    assert r"cra\_36" in text
    assert "row 0 & 7" in text
    assert "-- (70.0)" in text


def test_latex_puts_published_values_below_those_of_several_seeds(reported, store):
    """
    Beside them they would make the table wider than the page.
    """
    for run in reported.replicates([0, 1]).runs[::2]:  # of run 0
        finish(store, run, 0.0 if run.train.seed < 1000 else 0.2)
    lines = render_latex(make_report(reported, store)).splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith("row 0 & "))

    assert re.fullmatch(r"row 0( & \d+\.\d \$\\pm\$ \d\.\d){5} \\\\", lines[place])
    assert lines[place + 1] == r" & (70.0) & (60.0) & (50.0) & (40.0) & (20.0) \\"
    assert lines[place + 2] == r"row 22 & -- & -- & -- & -- & -- \\"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4√2", r"4$\sqrt{2}$"),
        ("a\n\n\\input{x}", r"a \textbackslash{}input\{x\}"),
        ("[1cm] a", "{}[1cm] a"),
        ("* a", "{}* a"),
        ("100 % & more_", r"100 \% \& more\_"),
        ("a\\b~c^d", r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d"),
        ("–", "--"),
        ("√n < λ", r"$\surd$n $<$ $\lambda$"),
    ],
)
def test_text_is_escaped_for_latex(text, expected):
    assert escape(text) == expected


@pytest.mark.skipif(not PDFLATEX, reason="there is no pdflatex")
@pytest.mark.parametrize("shifts", [(1.0,), (3.0, -3.0, 3.0)], ids=["one seed", "several"])
def test_the_projects_tables_compile_and_fit_a_page(store, tmp_path, shifts):
    """
    The document has every escaped character and the widest numbers: 100.0, or 66.7 ± 57.7.
    """
    experiment = SpecFile(PROJECT / "experiments.yaml").experiment("demo", ["epochs=1"])
    for replicate, shift in enumerate(shifts):
        for run in experiment.replicates([replicate]).runs:
            finish(store, run, shift)
    report = make_report(experiment, store)
    characters = "".join(f"{character} " for character in [*ESCAPES, "√", "√16", "é", "°"])
    document = [r"\documentclass{article}", r"\usepackage{booktabs}", r"\begin{document}"]
    document += [r"\input{tables}", escape(characters), r"\end{document}"]
    (tmp_path / "tables.tex").write_text(render_latex(report), encoding="utf-8")
    (tmp_path / "all.tex").write_text("\n".join(document), encoding="utf-8")
    command = [PDFLATEX, "-halt-on-error", "-interaction=nonstopmode", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)

    assert [line for line in done.stdout.splitlines() if line.startswith(("!", "Overfull"))] == []
    assert done.returncode == 0
    assert (tmp_path / "all.pdf").stat().st_size > 10_000


def test_no_text_is_interpreted_as_html(reported, store):
    text = """<script>x</script>"' onload=x &amp; {{ 1 }}"""
    runs = [run.model_copy(update={"name": text}) for run in reported.runs]
    table = reported.tables[0].model_copy(update={"title": text, "header": text})
    experiment = replace(reported, name=text, source=text, note=text, runs=runs, tables=(table,))
    store.queue(runs)
    store.start(runs[0], Provenance(text, {text: text}, text))
    store.set_placement(runs[0].key, text, text, 0)
    store.finish(runs[0].key, Status.FAILED, error=text)

    page = render_page(make_report(experiment, store), store, [])

    assert page.count("<script>") == 1  # the page's own
    assert text not in page
    assert html.unescape(page).count(text) > 10
