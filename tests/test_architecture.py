import ast
import re
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent

# Who may import what of ours: the rooms of the house and the doors between them.
DOORS = {
    "aol": set(),
    "aol.aside": set(),
    "aol.config": set(),
    "aol.products": set(),
    "aol.toom_cook": {"aol.products"},
    "aol.kernels": set(),
    "aol.fused": {"aol.kernels"},
    "aol.signs": {"aol.fused"},
    "aol.maxmin": {"aol.fused"},
    "aol.gram": {"aol.cost", "aol.products", "aol.toom_cook"},
    "aol.rescale": {"aol.cost", "aol.gram", "aol.products", "aol.signs"},
    "aol.loss": set(),
    "aol.metrics": set(),
    "aol.augment": set(),
    "aol.sources": set(),
    "aol.layers": {"aol.maxmin", "aol.rescale"},
    "aol.models": {"aol.config", "aol.cost", "aol.layers", "aol.network", "aol.widths"},
    "aol.widths": {"aol.config"},
    "aol.cost": {"aol.config", "aol.widths"},
    "aol.data": {"aol.aside", "aol.config", "aol.sources"},
    "aol.bounds": set(),
    "aol.gate": set(),
    "aol.lipschitz": {"aol.bounds", "aol.gate", "aol.layers", "aol.network"},
    "aol.step": {
        "aol.augment",
        "aol.config",
        "aol.data",
        "aol.layers",
        "aol.loss",
        "aol.metrics",
    },
    "aol.train": {
        "aol.config",
        "aol.data",
        "aol.gate",
        "aol.layers",
        "aol.lipschitz",
        "aol.loss",
        "aol.metrics",
        "aol.models",
        "aol.step",
    },
    "aol.network": set(),  # a copy of it goes beside exported weights
    "aol.plain": {"aol.bounds", "aol.layers", "aol.network"},
    "aol.certificate": {"aol.bounds", "aol.network"},
    "aol.result": {"aol.train"},
    "aol.checkout": set(),
    "aol.environment": {"aol.checkout", "aol.config"},
    "aol.folder": {
        "aol.aside",
        "aol.config",
        "aol.data",
        "aol.environment",
        "aol.result",
        "aol.train",
    },
    "aol.classes": {"aol.config"},
    "aol.pictures": set(),
    "aol.radius": set(),
    "aol.trained": {"aol.config", "aol.folder", "aol.models"},
    "aol.export": {
        "aol.aside",
        "aol.certificate",
        "aol.classes",
        "aol.folder",
        "aol.network",
        "aol.plain",
        "aol.trained",
    },
    "aol.certify": {
        "aol.certificate",
        "aol.export",
        "aol.pictures",
        "aol.radius",
        "aol.trained",
    },
    "aol.__main__": {"aol.certify", "aol.data", "aol.folder"},
    "orchestrator": set(),
    "orchestrator.environment": set(),
    "orchestrator.location": set(),
    "orchestrator.signals": set(),
    "orchestrator.document": set(),
    "orchestrator.validation": {"orchestrator.document"},
    "orchestrator.spec": {"aol.config", "orchestrator.document"},
    "orchestrator.sections": {
        "orchestrator.document",
        "orchestrator.numbers",
        "orchestrator.spec",
        "orchestrator.validation",
    },
    "orchestrator.settings": {
        "aol.config",
        "orchestrator.document",
        "orchestrator.spec",
        "orchestrator.validation",
    },
    "orchestrator.fitting": {
        "aol.config",
        "aol.widths",
        "orchestrator.document",
        "orchestrator.settings",
    },
    "orchestrator.specfile": {
        "orchestrator.document",
        "orchestrator.fitting",
        "orchestrator.sections",
        "orchestrator.settings",
        "orchestrator.spec",
        "orchestrator.validation",
    },
    "orchestrator.provenance": {"aol.checkout", "aol.config"},
    "orchestrator.store": {
        "orchestrator.store.copying",
        "orchestrator.store.database",
        "orchestrator.store.schema",
        "orchestrator.store.writing",
    },
    "orchestrator.store.copying": {
        "orchestrator.store.database",
        "orchestrator.store.schema",
        "orchestrator.store.writing",
    },
    "orchestrator.store.database": set(),
    "orchestrator.store.lock": {"orchestrator.store.database"},
    "orchestrator.store.schema": set(),
    "orchestrator.store.reading": {
        "orchestrator.store.database",
        "orchestrator.store.lock",
        "orchestrator.store.schema",
    },
    "orchestrator.store.writing": {
        "orchestrator.provenance",
        "orchestrator.spec",
        "orchestrator.store.reading",
        "orchestrator.store.schema",
    },
    "orchestrator.plan": {
        "aol.config",
        "orchestrator.numbers",
        "orchestrator.spec",
        "orchestrator.store",
    },
    "orchestrator.resources": {
        "aol.cost",
        "aol.products",
        "orchestrator.numbers",
        "orchestrator.spec",
        "orchestrator.store",
    },
    "orchestrator.margins": {"orchestrator.store"},
    "orchestrator.comparing": {
        "orchestrator.cells",
        "orchestrator.grid",
        "orchestrator.margins",
        "orchestrator.numbers",
        "orchestrator.spec",
        "orchestrator.store",
    },
    "orchestrator.figures": {"orchestrator.figures.drawing"},
    "orchestrator.figures.sheet": set(),
    "orchestrator.figures.curves": {
        "orchestrator.cells",
        "orchestrator.figures.sheet",
        "orchestrator.margins",
        "orchestrator.store",
    },
    "orchestrator.figures.points": {
        "orchestrator.cells",
        "orchestrator.figures.sheet",
        "orchestrator.report",
        "orchestrator.verdicts",
    },
    "orchestrator.figures.drawing": {
        "orchestrator.cells",
        "orchestrator.figures.curves",
        "orchestrator.figures.points",
        "orchestrator.figures.sheet",
        "orchestrator.report",
        "orchestrator.store",
    },
    "orchestrator.invariants": {
        "aol.config",
        "aol.cost",
        "aol.gate",
        "orchestrator.cells",
        "orchestrator.margins",
        "orchestrator.spec",
        "orchestrator.store",
    },
    "orchestrator.folders": {
        "aol.config",
        "orchestrator.margins",
        "orchestrator.numbers",
        "orchestrator.spec",
        "orchestrator.store",
    },
    "orchestrator.archive": {"orchestrator.numbers"},
    "orchestrator.bundling": {
        "aol.checkout",
        "orchestrator.archive",
        "orchestrator.cells",
        "orchestrator.page",
        "orchestrator.provenance",
        "orchestrator.report",
        "orchestrator.spec",
        "orchestrator.store",
    },
    "orchestrator.rereading": {"orchestrator.cells", "orchestrator.report"},
    "orchestrator.verifying": {
        "aol.checkout",
        "orchestrator.archive",
        "orchestrator.bundling",
        "orchestrator.cells",
        "orchestrator.coherence",
        "orchestrator.document",
        "orchestrator.margins",
        "orchestrator.numbers",
        "orchestrator.provenance",
        "orchestrator.report",
        "orchestrator.rereading",
        "orchestrator.spec",
        "orchestrator.specfile",
        "orchestrator.store",
    },
    "orchestrator.histories": {"orchestrator.store"},
    "orchestrator.coherence": {
        "aol.config",
        "orchestrator.numbers",
        "orchestrator.spec",
        "orchestrator.store",
    },
    "orchestrator.merging": {
        "orchestrator.coherence",
        "orchestrator.histories",
        "orchestrator.numbers",
        "orchestrator.store",
    },
    "orchestrator.ingest": {
        "orchestrator.folders",
        "orchestrator.histories",
        "orchestrator.provenance",
        "orchestrator.store",
    },
    "orchestrator.exporting": {
        "aol.aside",
        "aol.export",
        "aol.folder",
        "aol.trained",
        "orchestrator.cells",
        "orchestrator.folders",
        "orchestrator.schedule",
        "orchestrator.spec",
        "orchestrator.store",
        "orchestrator.worker",
    },
    "orchestrator.card": {
        "aol.config",
        "aol.export",
        "aol.gate",
        "orchestrator.exporting",
        "orchestrator.invariants",
        "orchestrator.numbers",
        "orchestrator.report",
    },
    "orchestrator.events": {"orchestrator.spec", "orchestrator.store"},
    "orchestrator.recording": {
        "orchestrator.events",
        "orchestrator.location",
        "orchestrator.provenance",
        "orchestrator.store",
    },
    "orchestrator.progress": {
        "orchestrator.events",
        "orchestrator.numbers",
        "orchestrator.plan",
        "orchestrator.spec",
        "orchestrator.store",
    },
    "orchestrator.tracking": {"orchestrator.tracking.recorder", "orchestrator.tracking.tracker"},
    "orchestrator.tracking.projection": {"aol.config", "orchestrator.store"},
    "orchestrator.tracking.recorder": {
        "orchestrator.events",
        "orchestrator.store",
        "orchestrator.tracking.tracker",
    },
    "orchestrator.tracking.tracker": {
        "orchestrator.store",
        "orchestrator.tracking.projection",
    },
    "orchestrator.publishing": {
        "orchestrator.cells",
        "orchestrator.figures",
        "orchestrator.report",
        "orchestrator.spec",
        "orchestrator.specfile",
        "orchestrator.store",
        "orchestrator.tracking",
    },
    "orchestrator.cells": {"orchestrator.spec", "orchestrator.store"},
    "orchestrator.verdicts": {
        "orchestrator.cells",
        "orchestrator.numbers",
        "orchestrator.spec",
    },
    "orchestrator.grid": set(),
    "orchestrator.numbers": set(),
    "orchestrator.report": {
        "aol.aside",
        "orchestrator.cells",
        "orchestrator.invariants",
        "orchestrator.latex",
        "orchestrator.markdown",
        "orchestrator.numbers",
        "orchestrator.spec",
        "orchestrator.store",
        "orchestrator.verdicts",
    },
    "orchestrator.explaining": {
        "orchestrator.cells",
        "orchestrator.margins",
        "orchestrator.report",
        "orchestrator.spec",
        "orchestrator.store",
        "orchestrator.verdicts",
    },
    "orchestrator.telling": {
        "aol.config",
        "orchestrator.explaining",
        "orchestrator.invariants",
        "orchestrator.numbers",
        "orchestrator.provenance",
        "orchestrator.spec",
        "orchestrator.store",
    },
    "orchestrator.querying": {"orchestrator.grid", "orchestrator.numbers"},
    "orchestrator.needs": {
        "aol.config",
        "orchestrator.cells",
        "orchestrator.plan",
        "orchestrator.report",
        "orchestrator.resources",
        "orchestrator.spec",
        "orchestrator.store",
        "orchestrator.verdicts",
    },
    "orchestrator.budget": {
        "orchestrator.needs",
        "orchestrator.spec",
        "orchestrator.verdicts",
    },
    "orchestrator.costing": {
        "orchestrator.budget",
        "orchestrator.grid",
        "orchestrator.needs",
        "orchestrator.numbers",
        "orchestrator.resources",
        "orchestrator.spec",
        "orchestrator.verdicts",
    },
    "orchestrator.latex": {
        "orchestrator.cells",
        "orchestrator.numbers",
        "orchestrator.report",
    },
    "orchestrator.page": {
        "orchestrator.cells",
        "orchestrator.figures",
        "orchestrator.markdown",
        "orchestrator.numbers",
        "orchestrator.report",
        "orchestrator.store",
        "orchestrator.verdicts",
    },
    "orchestrator.markdown": {
        "orchestrator.cells",
        "orchestrator.grid",
        "orchestrator.numbers",
        "orchestrator.report",
        "orchestrator.verdicts",
    },
    "orchestrator.status": {"orchestrator.grid", "orchestrator.numbers", "orchestrator.store"},
    "orchestrator.images": {"aol.data", "orchestrator.spec"},
    "orchestrator.worker": {
        "aol.config",
        "aol.data",
        "aol.result",
        "aol.train",
        "orchestrator.numbers",
    },
    "orchestrator.schedule": {
        "orchestrator.schedule.machines",
        "orchestrator.schedule.trials",
    },
    "orchestrator.schedule.board": {"orchestrator.store"},
    "orchestrator.schedule.machines": {
        "aol.data",
        "orchestrator.environment",
        "orchestrator.location",
        "orchestrator.resources",
    },
    "orchestrator.schedule.trial_events": {
        "orchestrator.events",
        "orchestrator.location",
        "orchestrator.schedule.board",
        "orchestrator.spec",
        "orchestrator.store",
    },
    "orchestrator.schedule.trials": {
        "orchestrator.events",
        "orchestrator.resources",
        "orchestrator.schedule.board",
        "orchestrator.schedule.machines",
        "orchestrator.schedule.trial_events",
        "orchestrator.spec",
        "orchestrator.store",
        "orchestrator.worker",
    },
}
INTRODUCERS = {  # they know everybody
    "orchestrator.invocation",
    "orchestrator.training",
    "orchestrator.commands",
    "orchestrator.commands.asking",
    "orchestrator.commands.bundling",
    "orchestrator.commands.exporting",
    "orchestrator.commands.options",
    "orchestrator.commands.training",
    "orchestrator.commands.viewing",
    "orchestrator.__main__",
}

# Who alone may speak to a library.
SPEAKERS = {
    "ray": {"orchestrator.schedule"},
    "sqlalchemy": {"orchestrator.store"},
    "mlflow": {"orchestrator.tracking"},
    "pydantic": {
        "orchestrator.archive",
        "orchestrator.folders",
        "orchestrator.sections",
        "orchestrator.spec",
        "orchestrator.validation",
    },
    "ruamel": {"orchestrator.document"},
    "typer": INTRODUCERS,
}
AOL_LIBRARIES = {"torch", "numpy", "filelock"}  # filelock is torch's own requirement
KERNELS = {"aol.kernels": {"triton"}}  # imported by `aol.fused` alone, when it is asked on a GPU
BESIDES = {  # and what else a module may ask for, inside the function that needs it
    "aol.export": {"safetensors"},
    "aol.network": {"safetensors"},
    "aol.pictures": {"PIL"},
    "aol.sources": {"PIL", "sklearn", "torchvision"},
}


def modules():
    return list(_modules())


def _modules():
    for package in ("aol", "orchestrator"):
        for path in sorted((PROJECT / package).rglob("*.py")):
            parts = path.relative_to(PROJECT).with_suffix("").parts
            if "migrations" not in parts:
                yield ".".join(part for part in parts if part != "__init__"), path


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        yield from _imported(node)


def _imported(node):
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"relative import of {node.module}"
        yield node.module
        if node.module in ("aol", "orchestrator"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(("name", "path"), modules())
def test_modules_use_only_their_doors(name, path):
    ours = {item for item in imports(path) if item.split(".")[0] in ("aol", "orchestrator")}
    ours -= {"orchestrator", "aol"}

    if name not in INTRODUCERS:
        assert ours <= DOORS[name]


@pytest.mark.parametrize(("name", "path"), modules())
def test_each_library_has_one_speaker(name, path):
    for library in {item.split(".")[0] for item in imports(path)} & set(SPEAKERS):
        speakers = SPEAKERS[library]
        assert any(name == speaker or name.startswith(f"{speaker}.") for speaker in speakers)


CORE = [item for item in modules() if item[0].split(".")[0] == "aol"]


@pytest.mark.parametrize(("name", "path"), CORE)
def test_the_core_needs_torch_and_the_standard_library_only(name, path):
    """
    Only where images come from and networks go may other libraries be asked.
    """
    foreign = {item.split(".")[0] for item in imports(path)} - set(sys.stdlib_module_names)

    assert foreign - {"aol"} <= AOL_LIBRARIES | (BESIDES | KERNELS).get(name, set())


@pytest.mark.parametrize(("name", "path"), CORE)
def test_the_core_is_imported_without_the_libraries_that_few_need(name, path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = [function for function in ast.walk(tree) if isinstance(function, ast.FunctionDef)]
    lazily = {id(node) for function in inside for node in ast.walk(function)}
    at_once = {
        item for node in ast.walk(tree) if id(node) not in lazily for item in _imported(node)
    }
    libraries = {item.split(".")[0] for item in at_once} - KERNELS.get(name, set())

    assert "aol.kernels" not in at_once
    assert not libraries & set().union(*(BESIDES | KERNELS).values())


def test_no_module_is_a_drawer_without_a_name():
    names = {path.stem for _, path in modules()}

    assert not names & {"util", "utils", "helper", "helpers", "common", "misc", "manager"}


def test_no_module_is_two():
    lengths = {path.name: len(path.read_text().splitlines()) for _, path in modules()}

    assert {name: length for name, length in lengths.items() if length > 350} == {}


@pytest.mark.parametrize("part", ["aol", "orchestrator"])
def test_the_architecture_page_names_every_package(part):
    page = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    _, section = re.split(rf"^## `{part}`.*$", page, flags=re.MULTILINE)
    named = re.findall(r"^\| `(\w+)/` ", section.partition("\n## ")[0], re.MULTILINE)
    found = {path.parent.name for path in (PROJECT / part).glob("*/__init__.py")}

    assert set(named) == found
