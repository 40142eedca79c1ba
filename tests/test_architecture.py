"""
The order of the packages, the libraries that they may use, and the size of folders and modules.
"""

import ast
import re
import subprocess
import sys

import pytest

from tests.support.shell import PROJECT

# A module imports only from its own package and from packages that stand before it.
ORDER = [
    *("aol.errors", "aol.text", "aol.atomic", "aol.reading"),
    *("aol.catalog", "aol.config", "aol.provenance"),
    *("aol.ops", "aol.layers", "aol.models", "aol.data", "aol.certification"),
    *("aol.training", "aol.export", "aol.cli", "aol.__main__", "aol"),
    *("orchestrator.masking", "orchestrator.errors", "orchestrator.environment"),
    *("orchestrator.signals", "orchestrator.formatting", "orchestrator.logs"),
    *("orchestrator.provenance", "orchestrator.spec", "orchestrator.store"),
    *("orchestrator.analysis", "orchestrator.planning", "orchestrator.reporting"),
    *("orchestrator.scheduling", "orchestrator.tracking", "orchestrator.driver"),
    *("orchestrator.sharing", "orchestrator.cli", "orchestrator.__main__", "orchestrator"),
]

# The only packages that may use a library.
LIBRARIES = {
    "ray": ["orchestrator.scheduling"],
    "sqlalchemy": ["orchestrator.store"],
    "mlflow": ["orchestrator.tracking"],
    "pydantic": ["orchestrator.spec", "orchestrator.sharing"],
    "ruamel": ["orchestrator.spec.source"],
    "matplotlib": ["orchestrator.reporting.figures"],
    "typer": ["orchestrator.cli", "orchestrator.__main__"],
    "rich": ["orchestrator.cli"],
    "triton": ["aol.ops.triton_kernels"],
    "safetensors": ["aol.export", "aol.layers.plain"],
    "PIL": ["aol.data"],
    "sklearn": ["aol.data"],
    "torchvision": ["aol.data"],
}
RARE = {"triton", "safetensors", "PIL", "sklearn", "torchvision"}
CORE = {"aol", "torch", "numpy", "filelock"} | RARE
LAZY = {"ray", "mlflow", "matplotlib"} | RARE
LIGHT = {"aol", "aol.config", "aol.catalog", "aol.certification.certificate", "orchestrator"}
PRINTING = {"print", "typer.echo", "typer.secho", "Console", "sys.stdout", "sys.stderr"}
HEAVY = {"torch", "ray", "mlflow", "sqlalchemy", "pandas", "pydantic", "matplotlib", "scipy"}


def found_modules():
    for package in ("aol", "orchestrator"):
        for path in sorted((PROJECT / package).rglob("*.py")):
            parts = path.relative_to(PROJECT).with_suffix("").parts
            if "migrations" not in parts:
                yield ".".join(part for part in parts if part != "__init__"), path


MODULES = list(found_modules())
NAMES = {name for name, _ in MODULES}


def imported(node):
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"relative import of {node.module}"
        submodules = [f"{node.module}.{alias.name}" for alias in node.names]
        inner = [name for name in submodules if name in NAMES]
        yield from inner or [node.module]


def imports_of(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {name for node in ast.walk(tree) for name in imported(node)}


def imports_at_once(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        id(node)
        for inner in ast.walk(tree)
        if isinstance(inner, ast.FunctionDef) or _is_for_types(inner)
        for node in ast.walk(inner)
    }
    return {name for node in ast.walk(tree) if id(node) not in lazy for name in imported(node)}


def _is_for_types(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def place(name):
    """
    Return the package of a module as listed in the order.
    """
    return max((entry for entry in ORDER if f"{name}.".startswith(f"{entry}.")), key=len)


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_a_module_imports_only_from_packages_before_its_own(name, path):
    ours = {place(item) for item in imports_of(path) if item.startswith(("aol", "orchestrator"))}

    assert {item for item in ours if ORDER.index(item) > ORDER.index(place(name))} == set()


def test_no_imports_are_circular():
    graph = {name: imports_at_once(path) & NAMES for name, path in MODULES}
    while free := [name for name, wanted in graph.items() if not wanted & graph.keys() - {name}]:
        for name in free:
            del graph[name]

    assert graph == {}


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_only_one_package_uses_a_library(name, path):
    for library in {item.split(".")[0] for item in imports_of(path)} & set(LIBRARIES):
        assert any(f"{name}.".startswith(f"{allowed}.") for allowed in LIBRARIES[library]), library


@pytest.mark.parametrize(("name", "path"), [item for item in MODULES if item[0].startswith("aol")])
def test_the_core_needs_torch_and_little_else(name, path):
    assert {item.split(".")[0] for item in imports_of(path)} <= CORE | sys.stdlib_module_names


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_libraries_that_few_commands_need_are_imported_where_they_are_used(name, path):
    own = {"triton"} if name == "aol.ops.triton_kernels" else set()
    ray = {"ray"} if name.startswith("orchestrator.scheduling") else set()

    assert not {item.split(".")[0] for item in imports_at_once(path)} & LAZY - own - ray
    assert "aol.ops.triton_kernels" not in imports_at_once(path)


@pytest.mark.parametrize("name", sorted(LIGHT))
def test_modules_that_every_command_imports_are_light(name):
    code = f"import {name}, sys; print(*sorted({HEAVY!r} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, cwd=PROJECT, capture_output=True, text=True)

    assert (done.stdout.strip(), done.returncode) == ("", 0)


def printing(node):
    """
    Whether it prints, writes to a standard stream, or refers to what does.
    """
    match node:
        case ast.Call(func=function, args=[ast.Constant(value=1 | 2), *_]):
            return ast.unparse(function) in {"os.write", "os.writev", "os.fdopen", "open"}
        case ast.ImportFrom(module=module, names=names):
            return any(f"{module}.{alias.name}" in PRINTING | {"os.write"} for alias in names)
        case ast.Name() | ast.Attribute():
            return ast.unparse(node).replace("__", "") in PRINTING
    return False


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('x')", True),
        ("def log(show=print): pass", True),
        ("show = partial(print, flush=True)", True),
        ("os.write(2, b'x')", True),
        ("os.write(1, b'x')", True),
        ("os.write(descriptor, b'x')", False),
        ("sys.stderr.write('x')", True),
        ("sys.stdout.buffer.write(b'x')", True),
        ("sys.__stdout__.write('x')", True),
        ("from sys import stderr", True),
        ("from os import write", True),
        ("typer.echo('x')", True),
        ("open(2, 'w')", True),
        ("reprint('x')", False),
        ("self.console.print('x')", False),
        ("sys.argv", False),
    ],
)
def test_what_prints_is_recognised(code, expected):
    assert any(map(printing, ast.walk(ast.parse(code)))) is expected


def test_only_command_line_modules_print():
    own_log = {"orchestrator.scheduling.worker"}  # its standard output is the run's log
    found = {
        name
        for name, path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if printing(node)
    }

    assert {name for name in found if ".cli." not in name} <= own_log | {"orchestrator.__main__"}


def test_no_folder_is_too_wide_and_no_module_too_long():
    widths = {}
    for _, path in MODULES:
        if path.name != "__init__.py":
            widths.setdefault(path.parent.relative_to(PROJECT).as_posix(), []).append(path.name)

    assert {folder: len(names) for folder, names in widths.items() if len(names) > 12} == {}
    assert [name for name, path in MODULES if len(path.read_text().splitlines()) > 350] == []


def test_no_module_has_a_name_without_meaning():
    names = {path.stem for _, path in MODULES}

    assert not names & {"util", "utils", "helper", "helpers", "common", "misc", "manager"}


@pytest.mark.parametrize("part", ["aol", "orchestrator"])
def test_the_architecture_page_lists_every_package(part):
    page = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    _, section = re.split(rf"^## `{part}`.*$", page, flags=re.MULTILINE)
    named = re.findall(r"^\| `(\w+)/` ", section.partition("\n## ")[0], re.MULTILINE)
    found = {path.parent.name for path in (PROJECT / part).glob("*/__init__.py")}

    assert set(named) == found


@pytest.mark.parametrize("part", ["aol", "orchestrator"])
def test_the_architecture_page_lists_packages_in_the_enforced_order(part):
    page = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    _, section = re.split(rf"^## `{part}`.*$", page, flags=re.MULTILINE)
    listed = re.findall(r"^\| `(\w+)(?:/|\.py)` ", section.partition("\n## ")[0], re.MULTILINE)
    enforced = [name.partition(".")[2] for name in ORDER if name.startswith(f"{part}.")]

    assert listed == [name for name in enforced if name != "__main__"]


def test_files_of_tests_are_named_after_a_module_or_its_package():
    files = [
        file.relative_to(PROJECT / "tests")
        for part in ("aol", "orchestrator")
        for file in (PROJECT / "tests" / part).rglob("test_*.py")
    ]
    assert len(files) > 60
    for file in files:
        name = file.stem.removeprefix("test_")
        assert name == file.parent.name or (PROJECT / file.parent / f"{name}.py").exists(), file
