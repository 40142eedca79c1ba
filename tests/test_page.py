import html.parser
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from orchestrator.figures import draw_figures
from orchestrator.latex import SPECIAL, escaped, latex
from orchestrator.page import page
from orchestrator.report import make_report
from orchestrator.specfile import SpecFile
from orchestrator.store import Status
from tests.cli import PROJECT
from tests.reports import finish

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PDFLATEX = shutil.which("pdflatex")


@pytest.fixture
def written(reported, store, tmp_path):
    """
    The page of one finished run and one that failed, in a file.
    """
    first, second = reported.runs
    finish(store, first, 0.0)
    store.queue([second])
    store.finish(second.key, Status.FAILED, error="out of <memory>")
    report = make_report(reported, store)
    file = tmp_path / "report.html"
    file.write_text(page(report, store, draw_figures(report, store, tmp_path)), encoding="utf-8")
    return file


class Outline(html.parser.HTMLParser):
    """
    Tags as they open and close, and every attribute that could load something.
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


def outline(file):
    found = Outline()
    found.feed(file.read_text(encoding="utf-8"))
    return found


def test_the_page_is_whole_and_loads_nothing(written):
    found = outline(written)

    assert found.open == []
    assert found.count["table"] == 2
    assert found.count["figure"] == 6
    assert all(value.startswith("data:image/svg+xml;base64,") for value in found.loads)
    assert "http" not in re.sub(r"base64,[^\"]*", "", written.read_text(encoding="utf-8"))


def test_the_page_says_verdicts_failures_and_where_results_come_from(written):
    text = written.read_text(encoding="utf-8")

    assert "demo: not comparable" in text
    assert "out of &lt;memory&gt;" in text
    assert re.search(
        r'class="(reproduced|differs|underpowered)" title="\w+: 7[45]\.\d measured', text
    )
    assert "Binomial error of the test images alone: ±" in text
    assert "abc" in text  # the commit


def test_a_run_that_broke_off_without_an_error_has_no_empty_box(written, reported, store):
    failed = written.read_text(encoding="utf-8").count("<pre>")
    store.finish(reported.runs[1].key, Status.INTERRUPTED)
    text = page(make_report(reported, store), store, [])

    assert failed == 1
    assert "seed 22: interrupted after epoch 0 of 3" in text
    assert "<pre>" not in text


def test_what_is_broken_stands_on_the_page(reported, store):
    finish(store, reported.runs[0], 0.0)
    report = replace(make_report(reported, store), broken=("run 0, seed 0: a <margin>",))

    assert "run 0, seed 0: a &lt;margin&gt;" in page(report, store, [])


def test_a_page_of_nothing_is_a_page(reported, store, tmp_path):
    file = tmp_path / "empty.html"
    file.write_text(page(make_report(reported, store), store, []), encoding="utf-8")

    assert outline(file).count["table"] == 2
    assert "None yet." in file.read_text(encoding="utf-8")


def headings(text):
    found = re.findall(r"<(h1|h2|h3|button)>(.*?)</", text)
    return [line for line in found if line[1]]


def test_the_committed_page_of_the_demo_is_current_in_structure(store):
    """
    `make docs` makes it anew; an empty store gives the same headings but for the figures.
    """
    experiment = SpecFile(PROJECT / "experiments.yaml").experiment("demo")
    fresh = headings(page(make_report(experiment, store), store, []))
    folder = PROJECT / "results" / "demo"
    committed = (folder / "report.html").read_text(encoding="utf-8")

    assert [one for one in headings(committed) if one[1] != "Figures"] == fresh
    assert outline(folder / "report.html").count["figure"] == len(
        list((folder / "figures").glob("*.png"))
    )


SORTING = """
<script>
document.querySelectorAll("th button")[1].click();
document.querySelectorAll("th button")[1].click();
const rows = [...document.querySelector("tbody").rows];
document.title = "sorted " + rows.map(row => row.cells[0].innerText).join("|");
</script></body>"""


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_in_a_browser_columns_sort_and_nothing_complains(written, tmp_path):
    """
    Descending by the first column the finished run comes before the one without a value.
    """
    file = tmp_path / "sorting.html"
    text = written.read_text(encoding="utf-8")
    file.write_text(text.replace("</body>", SORTING), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    assert "<title>sorted row 0|row 22</title>" in done.stdout
    assert "CONSOLE" not in done.stderr


def test_latex_has_a_table_each_and_escapes_what_it_must(reported, store):
    finish(store, reported.runs[0], 0.0)
    text = latex(make_report(reported, store))

    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert text.count(r"\toprule") == 2
    assert r"cra\_36" in text
    assert "row 0 & 7" in text
    assert "-- (70.0)" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4√2", r"4$\sqrt{2}$"),
        ("100 % & more_", r"100 \% \& more\_"),
        ("a\\b~c^d", r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d"),
        ("–", "--"),
        ("√n < λ", r"$\surd$n $<$ $\lambda$"),
    ],
)
def test_text_is_escaped_for_latex(text, expected):
    assert escaped(text) == expected


@pytest.mark.skipif(not PDFLATEX, reason="there is no pdflatex")
def test_the_projects_tables_compile_and_fit_a_page(store, tmp_path):
    """
    Every sign that may stand in a label, and the widest numbers.
    """
    experiment = SpecFile(PROJECT / "experiments.yaml").experiment("demo", ["epochs=1"])
    for run in experiment.runs:
        finish(store, run, 1.0)  # all certified at most radii: 100.0
    report = make_report(experiment, store)
    signs = "".join(f"{sign} " for sign in [*SPECIAL, "√", "√16", "é", "°"])
    document = [r"\documentclass{article}", r"\usepackage{booktabs}", r"\begin{document}"]
    document += [r"\input{tables}", escaped(signs), r"\end{document}"]
    (tmp_path / "tables.tex").write_text(latex(report), encoding="utf-8")
    (tmp_path / "all.tex").write_text("\n".join(document), encoding="utf-8")
    command = [PDFLATEX, "-halt-on-error", "-interaction=nonstopmode", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)

    assert [line for line in done.stdout.splitlines() if line.startswith(("!", "Overfull"))] == []
    assert done.returncode == 0
    assert (tmp_path / "all.pdf").stat().st_size > 10_000
