import gc
import logging
import os
import sqlite3
import textwrap

import hypothesis
import pytest

from orchestrator import environment
from orchestrator.errors import SpecError
from orchestrator.spec.loader import SpecFile
from tests.support import postgresql as server_programs
from tests.support.figures import sketched
from tests.support.specs import GOOD
from tests.support.trained import train_once

environment.prepare()
environment.prepare_ray(environment.LOCAL)  # before the first module of the tests imports Ray
os.environ["TRITON_INTERPRET"] = "1"  # kernels for GPUs run on the CPU
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes: threads would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile("fixed")


LONG = (
    "system/test_fuzz",
    "system/test_demo",
    "cli/test_run",
    "scheduling/test_tuner",
    "system/test_signals",
    "scheduling/test_cluster",
    "system/test_faults",
    "benchmarks/test_benchmarks",
    "training/test_trainer",
    "figures/test_draw",
    "tracking/test_tracker",
    "sharing/test_export",
    "store/test_engine",
    "training/test_step",
    "models/test_architectures",
    "certification/test_lipschitz",
    "ops/test_rescale",
    "sharing/test_bundle",
    "scheduling/test_worker",
    "ops/test_triton_kernels",
)


def _name(item):
    return f"{item.path.parent.name}/{item.path.stem}"


def pytest_collection_modifyitems(items):
    """
    Run the modules that take minutes first, so that parallel processes end together.
    """
    items.sort(key=lambda item: (*LONG, name := _name(item)).index(name))


def pytest_collection_finish():
    """
    Exclude modules and tests, which live to the end, from garbage collection to speed it up.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def one_thread():
    """
    Use one thread. With two, tiny products are slower, by far on a busy machine, and sums differ.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def two_layers():
    """
    Train a network of two layers in every run, for tests of the code around the training.
    """
    from aol.models import architectures

    def small(config, classes):
        return architectures.patchwise(2, classes, channels=8, convolutions=0, dense_layers=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architectures, "architecture", on_meta(small))
        yield


def on_meta(build):
    """
    Return the function, building on the meta device.
    """
    import torch

    def built(*arguments):
        with torch.device("meta"):
            return build(*arguments)

    return built


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """
    Return a folder that the parallel processes of one call of pytest share.
    """
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def data_root(shared_folder):
    """
    Return a separate data root, in which the digits are built once and CIFAR is missing.
    """
    folder = shared_folder / "data"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def trained(shared_folder, data_root):
    """
    Return the tiny experiment, trained by `run`, to read and to copy.
    """
    return train_once(shared_folder / "trained", data_root)


@pytest.fixture(scope="session")
def make_run():
    """
    Return a function that makes a run of a tiny model on the digits with the given settings.
    """
    from aol.config import DataConfig, LossConfig, ModelConfig, TrainConfig
    from orchestrator.spec.experiment import Resources, RunSpec

    def make(run_id=0, *, name="AOL-Small", profile="demo", cpus=None, gpus=None, **train):
        settings = {
            "model": ModelConfig(kind="patchwise", width=0.0625),
            "data": DataConfig(name="digits", train_limit=100, test_limit=100, augment=False),
            "loss": LossConfig(offset=2**0.5, temperature=0.25),
            "epochs": 3,
            "batch_size": 50,
            "seed": run_id,
        }
        return RunSpec(
            id=run_id,
            name=name,
            profile=profile,
            resources=Resources(cpus=cpus, gpus=gpus),
            train=TrainConfig(**(settings | train)),
        )

    return make


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory):
    """
    Return a new MLflow database. Creating one takes seconds, copying it does not.
    """
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    MlflowClient(f"sqlite:///{path}").search_experiments()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return path


@pytest.fixture
def sketched_figures():
    """
    Replace the figures by files of the right names that take no time to draw.
    """
    with sketched():
        yield


@pytest.fixture
def spec_file(tmp_path):
    """
    Return a function that writes the valid file with replacements (old, new) and opens it.
    """

    def make(*replacements, text=GOOD):
        for old, new in replacements:
            assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the file"
            text = text.replace(old, new)
        path = tmp_path / "x.yaml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return SpecFile(path)

    return make


@pytest.fixture
def problems_in(spec_file, tmp_path):
    """
    Return a function that returns the problems of the valid file with replacements, without its
    folder.
    """

    def find(*replacements, text=GOOD):
        with pytest.raises(SpecError) as caught:
            spec_file(*replacements, text=text)
        return [line.replace(f"{tmp_path}/", "") for line in caught.value.problems]

    return find


@pytest.fixture
def problems_of_set(spec_file, tmp_path):
    """
    Return a function that returns the problems of --set texts for the valid file.
    """

    def find(*texts):
        with pytest.raises(SpecError) as caught:
            spec_file().experiment("quick", texts)
        return [line.replace(f"{tmp_path}/", "") for line in caught.value.problems]

    return find


@pytest.fixture(scope="session")
def postgresql():
    """
    Yield a PostgreSQL server of these tests.
    """
    if not server_programs.INSTALLED:
        pytest.skip(server_programs.REASON)
    with server_programs.postgres_server() as server:
        yield server


@pytest.fixture
def schema(postgresql):
    """
    Yield the URL of an empty schema on the PostgreSQL server.
    """
    with postgresql.schema() as url:
        yield url


@pytest.fixture
def store(tmp_path):
    """
    Yield an empty result store.
    """
    from orchestrator.store import Store

    opened = Store(tmp_path / "store.db")
    yield opened
    opened.close()


@pytest.fixture
def reported(make_run, tmp_path):
    """
    Return an experiment of two runs in two tables, one of them an ablation, with a note.
    """
    from orchestrator.spec.experiment import Experiment
    from orchestrator.spec.fields import RADII
    from orchestrator.spec.schema import Column, Row, Table

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
