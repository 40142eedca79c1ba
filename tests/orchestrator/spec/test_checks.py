import pytest

from tests.support.specs import GOOD

TRAINING = (
    "(allowed: model, data, loss, optimizer, epochs, batch_size, seed, precision, eval_every, "
    "certify, attack)"
)
ROWS = "rows: [{label: A, run: 0, published: [1.0, 0.5]}]"
ONE_GPU = "a run trains on one GPU at most; allowed: 0, 1, or a share of one from 0.0001"
NO_RANGE = "no number or range; write for example 0,20-24"
METRICS = "'accuracy', 'cra_36', 'cra_72', 'cra_108' or 'cra_1'"


def unknown(nearest, allowed):
    return f"unknown field; did you mean `{nearest}`? {allowed}"


# Every mistake of a file


@pytest.mark.parametrize(
    ("prices", "problem"),
    [
        ("{gpu_hour: -1}", "prices.gpu_hour: must be greater than or equal to 0, got -1"),
        ("{tflops: 0}", "prices.tflops: must be greater than 0, got 0"),
        ("{currency: US $}", "prices.currency: "),
        ("{gpu_hours: 1}", "prices.gpu_hours: unknown field; did you mean `gpu_hour`?"),
    ],
)
def test_impossible_prices_are_mistakes(problems_in, prices, problem):
    (found,) = problems_in(("name: x\n", f"name: x\nprices: {prices}\n"))

    assert found.startswith(f"x.yaml:2: {problem}")


def test_all_mistakes_of_a_file_are_reported_at_once(problems_in):
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
          - {id: 4, model: {kind: fc}, resources: {gpus: 2, cpu: 2}, batch_size: yes}
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
              - {label: B, run: 0, published: [.nan]}
              - {label: C, run: 0, published: [100.1]}
        """
    datasets = "'cifar10', 'cifar100', 'digits' or 'digit-pairs'"
    kinds = "'patchwise', 'fc', 'conv' or 'std'"
    file = "(allowed: name, source, data_root, default_profile, defaults, runs, profiles, "
    optimizer = "(allowed: learning_rate, momentum, nesterov, l2, drops, drop_factor)"

    assert problems_in(text=text) == [
        f"x.yaml:1: nam: unknown field; did you mean `name`? {file}columns, measurements, tables, "
        "claims, reproduction, prices)",
        "x.yaml:4: runs 0, 1, 4: epochs: must be a whole number, got 'many'",
        f"x.yaml:5: runs 0, 1, 4: dat: unknown field; did you mean `data`? {TRAINING}",
        "x.yaml:6: runs 0, 1, 4: data.augmnt: unknown field; did you mean `augment`? "
        "(allowed: name, train_limit, test_limit, augment, shuffle)",
        f"x.yaml:6: runs 0, 1, 4: data.name: must be {datasets}, got 'mnist'",
        "x.yaml:7: runs 0, 1, 4: loss.offset: must be finite and not negative, got -1.0",
        "x.yaml:7: runs 0, 1, 4: loss.temperature: must be positive and finite, got nan",
        f"x.yaml:9: run 0: model.kind: must be {kinds}, got 'patchwize'",
        "x.yaml:9: run 0: model.widht: unknown field; did you mean `width`? "
        "(allowed: kind, size, width)",
        "x.yaml:10: run 1: model: is missing",
        "x.yaml:11: run 1 is already defined at x.yaml:10",
        "x.yaml:11: run 1: model.size: must be a whole number, got 1.5",
        "x.yaml:11: run 1: model.width: must be positive and finite, got inf",
        "x.yaml:11: run 1: seed: must be in [0, 2**63), got -1",
        "x.yaml:12: run 4: batch_size: must be a whole number, got 'yes'",
        "x.yaml:12: run 4: name: is missing",
        "x.yaml:12: run 4: resources.cpu: unknown field; did you mean `cpus`? "
        "(allowed: cpus, gpus)",
        f"x.yaml:12: run 4: resources.gpus: got 2: {ONE_GPU}",
        "x.yaml:14: profile p: there is no run 7, 8; the runs are 0, 1, 4",
        f"x.yaml:14: run 0: optimizer.dops: unknown field; did you mean `drops`? {optimizer}",
        f"x.yaml:15: profile 'custom' {RESERVED}",
        "x.yaml:15: profiles.custom.checkpoint_seconds: must be greater than 0, got 0",
        "x.yaml:16: default_profile.tpu: unknown field; did you mean `gpu`? (allowed: gpu, cpu)",
        "x.yaml:16: default_profile: unknown profile 'pp'; did you mean `p`? (allowed: p, custom)",
        "x.yaml:22: table t: run 5: 2 published values for 1 column",
        "x.yaml:22: table t: there is no run 5",
        "x.yaml:23: tables.0.rows.1.published.0: must be a finite number, got nan",
        "x.yaml:24: tables.0.rows.2.published.0: must be less than or equal to 100, got 100.1",
    ]


PUBLISHED = "tables.0.rows.0.published"
LABEL = "tables.0.rows.0.label"
CHANGE = "profiles.quick.changes.0"
FOLDER = "cannot name a folder; use letters, digits, - and _, but not custom, logs or ray"
RESERVED = "is reserved; use letters, digits, - and _, but not custom, logs or ray"
BREAKS = "would break the printed table; use no | and no line break"
BIG = "1" + 29 * "0"
TOO_BIG = "must be a whole number below 2**63, got"


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
        ("[1.0, 0.5]", "[1.0]", 17, "table t: run 0: 1 published value for 2 columns"),
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
        ("name: B,", 'name: "",', 8, "run 1: name: must not be empty"),
        (ROWS, "rows: []", 17, "tables.0.rows: must not be empty"),
        (
            "epochs: 4",
            "epochs: 4\n  epochs: 5",
            4,
            "`epochs` is given here and in line 3; keep one",
        ),
        ("epochs: 4", "epochs: 1e999", 3, "runs 0, 1: epochs: must be a finite number, got inf"),
        ("epochs: 4", f"epochs: '{BIG}'", 3, f"runs 0, 1: epochs: {TOO_BIG} '{BIG}'"),
        ("epochs: 4", f"epochs: {BIG}", 3, f"whole numbers must be below 2**63, got {BIG}"),
        ("defaults:\n", "defaults:\n  id: 5\n", 3, "defaults.id: every run has its own ID"),
        (
            "epochs: 4",
            "epochs: 4\n  optimizer: {drops: [true]}",
            4,
            "runs 0, 1: optimizer.drops.0: must be a number, got True",
        ),
        (
            "name: A,",
            "name: A, resources: {gpus: 1.5},",
            7,
            f"run 0: resources.gpus: got 1.5: {ONE_GPU}",
        ),
        (
            "name: A,",
            "name: A, resources: {gpus: 1e-9},",
            7,
            f"run 0: resources.gpus: got 1e-09: {ONE_GPU}",
        ),
        (
            "name: A,",
            "name: A, resources: {gpus: -1},",
            7,
            "run 0: resources.gpus: must be greater than or equal to 0, got -1",
        ),
        (
            "id: t",
            "id: ../t",
            15,
            "tables.0.id: got '../t': becomes part of file names; use letters, digits, - and _",
        ),
        (
            "[1.0, 0.5]}]",
            "[1.0, 0.5]}, {label: A, run: 1, published: [1, 1]}]",
            17,
            "table t: row 'A' is already defined at x.yaml:17",
        ),
        (
            "tables:\n",
            "tables:\n  - {id: t, title: S, rows: [{label: A, run: 0, published: [1, 1]}]}\n",
            16,
            "table 't' is already defined at x.yaml:15",
        ),
        ("title: CRA", "title: Acc", 13, "column 'Acc' is already defined at x.yaml:13"),
        ("title: CRA", "title: CRA|", 13, f"columns.1.title: got 'CRA|': {BREAKS}"),
        ("label: A,", "label: A | B,", 17, f"{LABEL}: got 'A | B': {BREAKS}"),
        ("label: A,", 'label: "A\\nB",', 17, f"{LABEL}: got 'A\\nB': {BREAKS}"),
        (
            "title: T",
            'title: T\n    header: "A\\e[2J"',
            17,
            f"tables.0.header: got 'A\\x1b[2J': {BREAKS}",
        ),
        (
            "columns:",
            "measurements: [norms]\ncolumns:",
            13,
            "measurements.0: must be 'layer norm', 'nearly orthogonal' or 'under attack', got "
            "'norms'",
        ),
        (
            "seed: 1,",
            "seed: 1, attack: {radius: 0},",
            8,
            "run 1: attack.radius: must be positive and finite, got 0.0",
        ),
        (
            "seed: 1,",
            "seed: 1, attack: {radius: 36/255, step: 5},",
            8,
            "run 1: attack.step: unknown field; did you mean `steps`? (allowed: radius, name, "
            "steps, images)",
        ),
        ("  quick:", "  a b:", 10, f"profile 'a b' {FOLDER}"),
        ("  quick:", "  ../evil:", 10, f"profile '../evil' {FOLDER}"),
        ("  quick:", "  ray:", 10, f"profile 'ray' {RESERVED}"),
        ("  quick:", "  logs:", 10, f"profile 'logs' {RESERVED}"),
        ("  quick:", "  custom:", 10, f"profile 'custom' {RESERVED}"),
    ],
)
def test_one_mistake_is_reported_in_one_line(problems_in, old, new, line, problem):
    assert problems_in((old, new)) == [f"x.yaml:{line}: {problem}"]


@pytest.mark.parametrize(
    ("new", "problem"),
    [
        ("", "run number 2: id: is missing"),
        ("id: -1, ", "run -1: id: must be greater than or equal to 0, got -1"),
        ("id: x, ", "run x: id: must be a whole number, got 'x'"),
        ("id: 1.5, ", "run 1.5: id: must be a whole number, got 1.5"),
        ("id: true, ", "run True: id: must be a whole number, got True"),
        ("id: '3', ", "run 3: id: must be a whole number, got '3'"),
        ("id: 1000001, ", "run 1000001: id: must be less than or equal to 1000000, got 1000001"),
    ],
)
def test_a_wrong_id_is_reported_in_one_line(problems_in, new, problem):
    assert problems_in(("id: 1, ", new), ('runs: "1", ', "")) == [f"x.yaml:8: {problem}"]


def test_a_wrong_id_is_not_reported_again_where_it_is_used(problems_in):
    assert problems_in(("id: 1, ", "")) == ["x.yaml:8: run number 2: id: is missing"]


def test_a_mistake_in_a_profile_is_reported_before_it_is_used(problems_in):
    """
    Every profile is checked: a mistake in `demo` is reported even if `paper` is used.
    """
    text = GOOD.replace("profiles:\n", "profiles:\n  full: {}\n")

    assert problems_in(("size: 8", "size: x"), text=text) == [
        "x.yaml:13: run 1: model.size: must be a whole number, got 'x'"
    ]


def test_a_mistake_in_the_defaults_is_reported_in_one_line_for_any_number_of_runs(problems_in):
    """
    Few runs are listed, many are counted. Two profiles do not double the line.
    """
    many = "".join(f"  - {{id: {n}, name: N, model: {{kind: fc}}}}\n" for n in range(2, 6))
    few = problems_in(("epochs: 4", "epochs: x"), ("profiles:\n", "profiles:\n  full: {}\n"))
    all_ = problems_in(("epochs: 4", "epochs: x"), ("profiles:\n", many + "profiles:\n"))

    assert few == ["x.yaml:3: runs 0, 1: epochs: must be a whole number, got 'x'"]
    assert all_ == ["x.yaml:3: 6 runs: epochs: must be a whole number, got 'x'"]


def test_a_mistake_shared_by_an_anchor_is_reported_in_the_line_of_the_anchor(problems_in):
    found = problems_in(
        ("{id: 0, name: A, model: {kind: patchwise}}", "&a {id: 0, name: A, model: {kind: x}}"),
        ("{id: 1, name: B, seed: 1, model: {kind: conv}}", "{<<: *a, id: 1, epochs: y}"),
    )

    assert [line.partition(", got")[0] for line in found] == [
        "x.yaml:7: runs 0, 1: model.kind: must be 'patchwise', 'fc', 'conv' or 'std'",
        "x.yaml:8: run 1: epochs: must be a whole number",
    ]


def test_a_repeated_id_is_refused_with_both_places(problems_in):
    found = problems_in(("id: 1,", "id: 0,"), ('runs: "1", ', ""))

    assert found == ["x.yaml:8: run 0 is already defined at x.yaml:7"]


def test_booleans_are_neither_run_ids_nor_published_values(problems_in):
    found = problems_in(("run: 0, published: [1.0,", "run: true, published: [true,"))

    assert len(found) == 2


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
def test_unusual_yaml_is_rejected_with_one_line_per_problem(problems_in, old, new):
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
        ("    note:", "    nte:"),
    ],
)  # fmt: skip
def test_no_mistake_of_the_file_hides_one_of_its_runs(problems_in, mistake):
    found = problems_in(mistake, ("kind: conv", "kind: cnv"))

    assert len(found) >= 2
    assert any("model.kind" in line for line in found)


def test_misnamed_defaults_are_reported_without_the_fields_missing_in_runs(problems_in):
    (problem,) = problems_in(("defaults:", "default:"))
    assert problem.startswith("x.yaml:2: default: unknown field; did you mean `defaults`?")


def test_a_repeated_key_hides_no_other_mistake(problems_in):
    found = problems_in(("epochs: 4", "epochs: 4\n  epochs: 5"), ("seed: 1", "seed: -1"))

    assert found == [
        "x.yaml:4: `epochs` is given here and in line 3; keep one",
        "x.yaml:9: run 1: seed: must be in [0, 2**63), got -1",
    ]


def test_a_wrong_name_is_not_reported_as_repeated(problems_in):
    """
    Both labels are replaced by the same text before the other checks.
    """
    rows = "[1.0, 0.5]}, {label: [B], run: 1, published: 3}]"
    found = problems_in(("label: A,", "label: [A],"), ("[1.0, 0.5]}]", rows))

    assert found == [
        "x.yaml:17: tables.0.rows.0.label: must be text, got ['A']",
        "x.yaml:17: tables.0.rows.1.label: must be text, got ['B']",
        "x.yaml:17: tables.0.rows.1.published: must be a list, got 3",
    ]


def test_wrong_ids_of_a_change_are_reported_in_one_line(problems_in):
    assert problems_in(('runs: "1"', "runs: {a: 1}")) == [
        f"x.yaml:12: {CHANGE}.runs: got {{'a': 1}}: \"{{'a': 1}}\" is {NO_RANGE}"
    ]


def test_a_name_that_looks_like_a_number_of_the_paper_stays_text(spec_file):
    file = spec_file(("name: A", 'name: "1/4"'))

    assert file.experiment("quick").runs[0].name == "1/4"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("name: x", r'name: "x\e[2J"', "x.yaml:1: name: got 'x\\x1b[2J'"),
        ("name: A,", r'name: "A\nError: b",', "x.yaml:7: run 0: name: got 'A\\nError: b'"),
        ("title: T\n", 'title: "T\\u202e"\n', "x.yaml:16: tables.0.title: got 'T\\u202e'"),
        ("title: Acc,", r'title: "Acc\x9b",', "x.yaml:13: columns.0.title: got 'Acc\\x9b'"),
        ('"quick: for', r'"quick:\u200b for', "x.yaml:11: profiles.quick.note: got 'quick:\\u200b"),
    ],
)
def test_names_and_notes_have_only_printable_characters(problems_in, old, new, line):
    (problem,) = problems_in((old, new))

    assert problem.startswith(line)


def test_a_note_may_have_several_lines(spec_file):
    file = spec_file(('"quick: for looking only"', "|\n        quick:\n        for looking only"))

    assert file.experiment("quick").note == "quick:\nfor looking only\n"


@pytest.mark.parametrize("runs", ["null", "x", "[]", "{a: 1}", "{all: [1]}", "[[1]]", "1.5"])
def test_a_value_that_is_neither_of_two_types_is_a_mistake(problems_in, runs):
    claim = f"{{id: a, text: A, at_most: {{runs: {runs}, column: CRA, value: 3}}}}"
    problems = problems_in(("name: x\n", f"name: x\nclaims: [{claim}]\n"))

    assert problems
    assert all(line.startswith("x.yaml:2: claims.0.at_most.runs") for line in problems)


# Files that are too large


def test_a_list_of_ranges_stands_for_a_limited_number_of_runs(problems_in):
    ranges = "0-1000000," * 3500
    (problem,) = problems_in(('runs: "1"', f'runs: "{ranges}1"'))

    assert problem.endswith("stands for more than 10000 numbers")
    assert len(problem) < 200


def test_the_number_of_runs_and_of_profiles_is_limited(problems_in):
    runs = "".join(f"  - {{id: {i}, name: A, model: {{kind: conv}}}}\n" for i in range(2, 600))
    profiles = "".join(f"  p{i}: {{}}\n" for i in range(30))
    large = (("runs:\n", f"runs:\n{runs}"), ("profiles:\n", f"profiles:\n{profiles}"))

    assert problems_in(*large) == [
        "x.yaml:6: runs: must have at most 500 entries",
        "x.yaml:607: profiles: must have at most 20 entries",
    ]


def test_of_many_mistakes_the_first_hundred_are_printed(problems_in):
    wrong = "".join(f"  epoch{i}: 4\n" for i in range(300))
    problems = problems_in(("  epochs: 4\n", f"  epochs: 4\n{wrong}"))

    assert len(problems) == 101
    assert problems[-1] == "and 200 more mistakes"


def test_a_mistake_is_at_most_two_thousand_characters_long(problems_in):
    (problem,) = problems_in(("epochs: 4", f"? {'epoch' * 10_000}\n  : 4"))

    assert len(problem) <= 2000
