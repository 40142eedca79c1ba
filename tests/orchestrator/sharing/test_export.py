"""
Exported networks: by run ID and from a folder, in two formats, with a card whose code runs.
"""

import copy
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from aol.cli.certify import certify_images
from aol.cli.train import main
from aol.data.image_files import read_images
from aol.errors import CheckpointError, ModelError
from aol.export.formats import FILES, read_model
from aol.export.trained_network import load_network_from_folder
from aol.layers.modules import rescaled_once
from aol.provenance import file_sha256
from aol.training.checkpoints import save_checkpoint
from orchestrator.analysis.report import make_report
from orchestrator.driver.run import _delete_runs
from orchestrator.errors import OutputError, RecordError, RequestError, SpecError
from orchestrator.planning.plan import as_rows, make_plan
from orchestrator.sharing.export import (
    fold_run,
    from_folder,
    from_store,
    write_card,
    write_model,
)
from orchestrator.sharing.merge import ingest_run
from orchestrator.sharing.model_card import SNIPPETS, render_card
from orchestrator.sharing.run_folder import find_run_folders
from orchestrator.sharing.run_folder import read_run_folder as read_folder
from orchestrator.spec.loader import SpecFile
from orchestrator.store import Checkpoint, Store
from tests.support.shell import TINY, Shell

FORMATS = tuple(FILES)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def box(tmp_path_factory, data_root):
    """
    Return a folder with the tiny experiment and run 0 trained by `python -m aol`.
    """
    folder = tmp_path_factory.mktemp("box")
    (folder / "experiments.yaml").write_text(TINY, encoding="utf-8")
    experiment = SpecFile(folder / "experiments.yaml").experiment("demo")
    (folder / "plan.json").write_text(json.dumps(as_rows(make_plan(experiment, []))))
    arguments = ["--config", folder / "plan.json", "--run", "0", "--out", folder / "out"]
    assert main([*map(str, arguments), "--data", str(data_root), "--device", "cpu"]) == 0
    return folder


@pytest.fixture(scope="module")
def experiment(box):
    return SpecFile(box / "experiments.yaml").experiment("demo")


@pytest.fixture
def folder(box, tmp_path):
    """
    Return a copy of the run's folder that a test may damage.
    """
    (only,) = find_run_folders(box / "out")
    return shutil.copytree(only, tmp_path / only.name)


@pytest.fixture(scope="module")
def finished(box):
    return from_folder(find_run_folders(box / "out")[0])


@pytest.fixture(scope="module")
def models(finished, experiment, box, tmp_path_factory):
    """
    Return a folder with the run in every format, its card and an image.
    """
    place = tmp_path_factory.mktemp("models")
    store = Store(tmp_path_factory.mktemp("store") / "store.db")
    ingest_run(read_folder(find_run_folders(box / "out")[0]), store)
    model = fold_run(finished, FORMATS)
    files = write_model(model, FORMATS, place)
    report = make_report(experiment, store)
    digests = {file.name: file_sha256(file) for file in files}
    write_card(render_card(finished, model, FORMATS, digests, report), place)
    pixels = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(place / "image.png")
    store.close()
    return place


@pytest.fixture(scope="module")
def images():
    return torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trained_scores(box, images):
    """
    Return the scores of the trained network with its raw weights.
    """
    _, trained = load_network_from_folder(find_run_folders(box / "out")[0])
    with rescaled_once(trained.model), torch.no_grad():
        return trained.model(images)


# --- the files ---


def test_safetensors_have_the_trained_networks_scores(models, images, trained_scores):
    assert (read_model(models).network(images) - trained_scores).abs().max() < 1e-5


@pytest.mark.parametrize("count", [1, 7])
def test_onnx_has_the_trained_networks_scores_in_batches_of_any_size(
    models, images, trained_scores, count
):
    session = onnxruntime.InferenceSession(
        models / "network.onnx", providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"pixels": images[:count].numpy()})

    assert np.abs(found - trained_scores[:count].numpy()).max() < 1e-5


def test_files_can_be_read_by_others_and_no_other_files_remain(models):
    names = {file.name for file in models.iterdir()} - {"image.png"}

    assert names == {*FILES.values(), "network.py", "README.md"}
    assert {oct((models / name).stat().st_mode)[-2:] for name in names} == {
        oct((models / "image.png").stat().st_mode)[-2:]
    }


def test_each_file_names_its_run(models, finished):
    facts = read_model(models).facts
    session = onnxruntime.InferenceSession(models / "network.onnx")

    assert facts["run"]["key"] == finished.run.key
    assert facts["run"]["epoch"] == 3
    assert json.loads(session.get_modelmeta().custom_metadata_map["aol"]) == facts


# --- the card ---


def output_without_this_program(code, folder):
    """
    Return the output of a script that can import installed packages but not this program.
    """
    blocked = "import sys\nsys.modules['aol'] = sys.modules['orchestrator'] = None\n"
    command = [sys.executable, "-c", blocked + code]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_card_has_a_script_per_format(models):
    text = (models / "README.md").read_text(encoding="utf-8")

    assert re.findall(r"```python\n(.*?)```", text, re.DOTALL) == [
        SNIPPETS[form] for form in FORMATS
    ]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_the_cards_script_certifies_an_image_without_this_program(models, form):
    name, radius = output_without_this_program(SNIPPETS[form], models)
    (one,) = certify_images(
        read_model(models), read_images([models / "image.png"]), radius=None, device="cpu"
    )[1]

    assert name == one.name
    if form == "onnx":
        assert one.radius - 1e-3 < float(radius) <= one.radius
    else:
        assert float(radius) == pytest.approx(one.radius, rel=1e-6)


def test_the_card_has_measured_published_and_proven_values(models, finished):
    text = (models / "README.md").read_text(encoding="utf-8")
    accuracy = 100 * finished.values["accuracy"]

    assert text.startswith("# AOL-Small on digits\n")
    assert "> **demo: not comparable**" in text
    assert f"| Standard accuracy | {accuracy:.1f} |" in text
    assert f"| only | AOL-Small | Std Acc | 70.3 | {accuracy:.1f} | 1 | " in text
    assert "| differs |" in text
    assert "the certified pass in float64" in text
    assert "Violations: none." in text
    assert "| run | `0-s0-" in text
    assert "digits, fingerprints ddda0fbdddb6cd56 and b0b8e1d499dc517d" in text
    assert f"torch {torch.__version__}" in text
    assert str(finished.commit) in text


def certificate_section(finished, record):
    """
    Return the card's paragraph about a run with this record of a certificate.
    """
    text = render_card(replace(finished, certificate=record), fold_run(finished, []), [], {}, None)
    return text.partition("## Certificate\n\n")[2].partition("\n")[0]


def test_the_card_recomputes_the_conclusions_from_the_certificate(finished):
    forged = copy.deepcopy(dict(finished.certificate))
    forged["layers"][0]["upper"] = 5.0
    forged |= {"upper": 1.0, "violations": [], "tolerance": 10.0}
    name = forged["layers"][0]["name"]

    text = certificate_section(finished, forged)

    assert "by more than 5, the network by no more than " in text
    assert text.endswith(f"Violations: {name}: its bound is 5, above 1.000001.")


@pytest.mark.parametrize("lost", ["layers", "ratio", "score_error", "tolerance"])
def test_the_card_reports_a_damaged_certificate(finished, lost):
    record = {name: one for name, one in finished.certificate.items() if name != lost}

    assert certificate_section(finished, record) == (
        "The record of the certified pass after training is damaged. Violations: its record is "
        f"not a certificate: KeyError('{lost}')."
    )


def test_the_card_needs_neither_conclusions_nor_a_certificate(finished):
    measured = {name: finished.certificate[name] for name in ("layers", "ratio")}
    measured |= {"score_error": 1e-12, "tolerance": 1e-6}

    assert "in unknown arithmetic. Proven: " in certificate_section(finished, measured)
    assert "Violations: none." in certificate_section(finished, measured)
    assert "Violations: 0 layers are" in certificate_section(finished, measured | {"layers": []})
    assert certificate_section(finished, {}) == (
        "There is no record of the certified pass after training."
    )


def test_the_card_has_the_digest_of_each_file(models):
    text = (models / "README.md").read_text(encoding="utf-8")

    for name in [*FILES.values(), "network.py"]:
        digest = hashlib.sha256((models / name).read_bytes()).hexdigest()
        assert f"| `{name}` | SHA-256 {digest} |" in text


def test_without_a_store_the_card_has_no_published_values(finished):
    text = render_card(finished, fold_run(finished, FORMATS), FORMATS, {}, None)

    assert "Beside the published values" not in text
    assert "| Standard accuracy | " in text


def test_a_profile_that_is_not_comparable_has_no_published_values_on_its_card(
    finished, ray_store, experiment
):
    for comparable in (True, False):
        report = make_report(replace(experiment, comparable=comparable), ray_store)
        text = render_card(finished, fold_run(finished, []), [], {}, report)
        assert ("Beside the published values" in text) == comparable


# --- by run ID, from the store ---


@pytest.fixture
def ray_store(store, folder):
    """
    Return the store with run 0, whose checkpoint is a folder as Ray writes it.
    """
    ingest_run(read_folder(folder), store)
    (run,) = store.runs()
    place = folder.parent / "storage" / "20260101-000000-7" / run.key / "checkpoint_000002"
    place.mkdir(parents=True)
    shutil.copy(folder / "state-3.pt", place / "state.pt")
    store.add_checkpoint(run.key, Checkpoint(3, str(place)))
    store.keep_checkpoints(run.key, 1)
    return store


def checkpoint_file(store):
    return Path(store.runs()[0].checkpoints[0].path) / "state.pt"


def same_weights(first, second):
    states = [one.network.model.state_dict() for one in (first, second)]
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_run_of_the_store_is_exported_from_its_newest_checkpoint(ray_store, experiment, finished):
    found = from_store(experiment, ray_store, 0)

    assert same_weights(found, finished)
    assert found.values == finished.values
    assert found.certificate == finished.certificate
    assert (found.commit, found.finished_at) == (finished.commit, finished.finished_at)


def test_a_checkpoint_may_be_a_uri(ray_store, experiment, finished):
    (run,) = ray_store.runs()
    ray_store.add_checkpoint(run.key, Checkpoint(3, f"file://{run.checkpoints[0].path}"))

    assert same_weights(from_store(experiment, ray_store, 0), finished)


def test_a_uri_that_cannot_be_opened_is_an_error(ray_store, experiment):
    (run,) = ray_store.runs()
    ray_store.add_checkpoint(run.key, Checkpoint(3, "nothing://there/checkpoint"))

    with pytest.raises(CheckpointError, match="nothing://there/checkpoint: cannot be opened: "):
        from_store(experiment, ray_store, 0)


def test_a_missing_checkpoint_is_an_error(ray_store, experiment):
    checkpoint_file(ray_store).unlink()

    with pytest.raises(CheckpointError, match=r"state\.pt: cannot be read: No such file"):
        from_store(experiment, ray_store, 0)


def test_a_damaged_checkpoint_is_an_error(ray_store, experiment):
    checkpoint_file(ray_store).write_bytes(b"torn")

    with pytest.raises(CheckpointError, match="is damaged or not a checkpoint: "):
        from_store(experiment, ray_store, 0)


def test_a_checkpoint_of_an_earlier_epoch_is_an_error(ray_store, experiment):
    state = torch.load(checkpoint_file(ray_store), weights_only=True)
    torch.save(state | {"epoch": 2}, checkpoint_file(ray_store))

    with pytest.raises(CheckpointError, match="is from after epoch 2 of 3, not the network whose"):
        from_store(experiment, ray_store, 0)


def test_a_run_without_a_checkpoint_is_an_error(store, folder, experiment):
    (folder / "state-3.pt").unlink()
    ingest_run(read_folder(folder), store)

    with pytest.raises(RequestError, match="run 0 with seed 0: the store has no checkpoint"):
        from_store(experiment, store, 0)


def test_an_unknown_run_is_an_error(ray_store, experiment):
    with pytest.raises(SpecError, match="export: there is no run 7; the runs are 0, 11"):
        from_store(experiment, ray_store, 7)


@pytest.mark.parametrize(("run", "replicate", "seed"), [(11, 0, 11), (0, 1, 1000)])
def test_an_unfinished_run_of_the_store_is_an_error(ray_store, experiment, run, replicate, seed):
    with pytest.raises(RequestError, match=f"run {run} with seed {seed} of the profile `demo` is"):
        from_store(experiment, ray_store, run, replicate)


# --- from a folder ---


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(RequestError, match=r"is neither a run ID nor a folder with a run\.json"):
        from_folder(tmp_path)


def test_an_unfinished_run_is_not_exported(folder):
    (folder / "end.json").unlink()

    with pytest.raises(RequestError, match="the run is interrupted; only finished runs"):
        from_folder(folder)


def test_a_run_without_its_last_checkpoint_is_not_exported(folder):
    (folder / "state-3.pt").unlink()

    with pytest.raises(RequestError, match=r"no state-3\.pt there, the finished network"):
        from_folder(folder)


def test_a_damaged_folder_is_not_exported(folder):
    (folder / "margins.f32").write_bytes(b"")

    with pytest.raises(RecordError, match=r"margins\.f32 does not have a finite margin for every"):
        from_folder(folder)


# --- errors before and while writing ---


@pytest.mark.parametrize(
    ("form", "packages"), [("safetensors", "safetensors"), ("onnx", "onnx and onnxscript")]
)
def test_a_missing_package_is_an_error_before_anything_is_written(
    finished, monkeypatch, form, packages
):
    monkeypatch.setattr("aol.export.formats.find_spec", lambda name: None)

    with pytest.raises(ModelError, match=f"format {form}: needs {packages}: pip install "):
        fold_run(finished, [form])


def test_a_file_in_place_of_the_folder_is_an_error(finished, tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(OutputError, match=r"cannot be written to: .*; choose another --out"):
        write_model(fold_run(finished, FORMATS), FORMATS, tmp_path / "file" / "below")


@pytest.mark.parametrize(
    "form",
    [form if form != "onnx" else pytest.param(form, marks=pytest.mark.slow) for form in FORMATS],
)
def test_a_file_that_cannot_be_replaced_is_an_error_without_leftovers(finished, tmp_path, form):
    (tmp_path / FILES[form]).mkdir()

    with pytest.raises(OutputError, match="cannot be written to: "):
        write_model(fold_run(finished, [form]), [form], tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [FILES[form]]


def test_a_card_that_cannot_be_replaced_is_an_error(tmp_path):
    (tmp_path / "README.md").mkdir()

    with pytest.raises(OutputError, match="cannot be written to: "):
        write_card("text", tmp_path)


def test_a_checkpoint_that_lacks_a_parameter_is_an_error(folder):
    state = torch.load(folder / "state-3.pt", weights_only=True)
    state["model"].pop(next(iter(state["model"])))
    save_checkpoint(state, folder / "state-3.pt")

    with pytest.raises(CheckpointError, match="is not a checkpoint of this network: Error"):
        from_folder(folder)


# --- runs trained elsewhere ---


def test_an_ingested_run_is_exported_from_its_folder(store, folder, experiment, finished):
    ingest_run(read_folder(folder), store)
    (run,) = store.runs()

    assert run.checkpoints == (Checkpoint(3, str(folder / "state-3.pt")),)
    assert same_weights(from_store(experiment, store, 0), finished)


def test_ingesting_a_moved_folder_updates_its_location(store, folder):
    ingest_run(read_folder(folder), store)
    moved = folder.rename(folder.parent / "moved")

    assert ingest_run(read_folder(moved), store) is False
    assert [one.path for one in store.runs()[0].checkpoints] == [str(moved / "state-3.pt")]


def test_ingesting_a_run_keeps_its_ray_checkpoint(ray_store, folder):
    before = ray_store.runs()
    ingest_run(read_folder(folder), ray_store)

    assert ray_store.runs() == before


def test_a_rerun_keeps_the_ingested_folder(store, folder, experiment):
    """
    A rerun deletes the checkpoints that Ray wrote and no other files.
    """
    ingest_run(read_folder(folder), store)
    files = sorted(folder.iterdir())
    again = SimpleNamespace(storage=str(folder.parent / "storage"), rerun=lambda: {0})
    _delete_runs(again, store, make_plan(experiment, store.runs(), rerun=[0]))

    assert store.runs() == []
    assert sorted(folder.iterdir()) == files


@pytest.mark.parametrize(("storage", "kept"), [("storage", False), ("another", True)])
def test_a_rerun_deletes_checkpoints_of_its_own_storage_only(
    ray_store, folder, experiment, storage, kept
):
    file = checkpoint_file(ray_store)
    again = SimpleNamespace(storage=str(folder.parent / storage), rerun=lambda: {0})
    _delete_runs(again, ray_store, make_plan(experiment, [], rerun=[0]))

    assert file.exists() == kept


def test_the_folder_of_an_unfinished_run_has_no_final_checkpoint(folder, store):
    (folder / "end.json").unlink()
    found = read_folder(folder)

    assert found.state is None
    assert found.status == "interrupted"


# --- the command ---


@pytest.fixture(scope="module")
def shell(trained, tmp_path_factory):
    return trained.copy(tmp_path_factory.mktemp("shell"))


@pytest.mark.slow
def test_the_command_exports_a_trained_run(shell):
    done = shell("export", "0", "--format", "all")
    (place,) = (shell.folder / "results" / "demo" / "models").iterdir()
    files = ["network.safetensors", "network.py", "network.onnx", "README.md"]

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [f"results/demo/models/{place.name}/{name}" for name in files]
    assert "| differs |" in (place / "README.md").read_text(encoding="utf-8")


def test_a_moved_project_exports_from_its_own_checkpoints(trained, tmp_path):
    first = trained.copy(tmp_path / "first")
    shutil.copytree(first.folder, tmp_path / "second")
    for state in first.folder.rglob("state.pt"):
        state.write_bytes(b"of the original")
    second = Shell(tmp_path / "second", trained.data_root)

    assert second("export", "0").returncode == 0
    assert first("export", "0").returncode == 1


@pytest.mark.slow
def test_the_command_exports_a_folder_without_a_store(shell, folder, tmp_path):
    arguments = ["--format", "onnx", "--out", tmp_path / "out"]
    done = shell("export", folder, *arguments, "--spec", "none.yaml")

    assert (done.returncode, done.stderr) == (0, "")
    written = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert written == ["README.md", "network.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["7"], "export: there is no run 7"),
        (
            ["11", "--profile", "paper"],
            "run 11 with seed 11 of the profile `paper` is not finished",
        ),
        (["nowhere"], "nowhere: is neither a run ID nor a folder with a run.json"),
        (["0", "--set", "epochs=9"], "run 0 with seed 0 of the profile `custom` is not finished"),
    ],
)
def test_a_usage_error_is_one_line_with_exit_code_2(shell, arguments, message):
    done = shell("export", *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
