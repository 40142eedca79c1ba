"""
`python -m aol certify` on a run trained here: its output and its errors.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from aol.__main__ import main
from aol.catalog import DATASETS
from aol.cli.certify import CertifiedImage, certify_images, format_lines, load_model
from aol.config import DataConfig
from aol.data.datasets import load
from aol.data.image_files import ImageFiles, read_images
from aol.errors import CheckpointError, ImageFileError, ModelError
from aol.export.formats import export_network, read_model, write_model_file
from aol.export.trained_network import load_network_from_folder
from aol.training.checkpoints import load_checkpoint
from orchestrator.analysis.margins import margins_agree
from orchestrator.planning.plan import as_rows, make_plan
from orchestrator.spec.loader import SpecFile
from tests.support.shell import PROJECT, TINY
from tests.system.test_attacks import pgd

CPU = torch.device("cpu")
FEW = 30  # images that are attacked
LONGER = TINY.replace("train_limit: 150", "train_limit: 600").replace(
    "batch_size: 50", "batch_size: 20\n  optimizer: {learning_rate: 3e-3}"
)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_root):
    """
    Return the folder of run 0 of the tiny experiment, trained by `python -m aol`.
    """
    folder = tmp_path_factory.mktemp("trained")
    (folder / "experiments.yaml").write_text(LONGER, encoding="utf-8")
    experiment = SpecFile(folder / "experiments.yaml").experiment("demo")
    (folder / "plan.json").write_text(json.dumps(as_rows(make_plan(experiment, []))))
    arguments = ["--config", folder / "plan.json", "--run", "0", "--out", folder / "out"]
    assert main([*map(str, arguments), "--data", str(data_root), "--device", "cpu"]) == 0
    (found,) = (folder / "out").iterdir()
    return found


@pytest.fixture(scope="module")
def models(trained, tmp_path_factory):
    """
    Return a folder with the run exported as safetensors.
    """
    folder = tmp_path_factory.mktemp("models")
    run, network = load_network_from_folder(trained)
    write_model_file(export_network(network, run), "safetensors", folder)
    return folder


@pytest.fixture(scope="module")
def images(data_root):
    """
    Return the test images of the tiny experiment.
    """
    config = DataConfig(name="digits", train_limit=600, test_limit=100)
    return load(config, data_root, CPU)[1]


@pytest.fixture(scope="module")
def pictures(images):
    pixels = images.pixels.permute(0, 2, 3, 1).numpy()
    return ImageFiles(tuple(map(str, range(len(pixels)))), pixels)


@pytest.fixture
def files(pictures, tmp_path):
    """
    Return a folder with five test images as PNG and lossless WEBP; five.npy beside it has the same.
    """
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(pictures.pixels[number]).save(folder / f"{number}.png")
    Image.fromarray(pictures.pixels[4]).save(folder / "4.webp", lossless=True)
    np.save(tmp_path / "five.npy", pictures.pixels[:5])
    return folder


@pytest.fixture
def certify(capsys):
    """
    Return a function that runs the command and returns its exit code and its output.
    """

    def call(*arguments):
        code = main(["certify", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return call


def radii_of(model, pictures):
    return [one.radius for one in certify_images(model, pictures, radius=None, device="cpu")[1]]


# --- radii ---


@pytest.mark.parametrize("radius", [0.0, 36 / 255, 72 / 255, 1.0])
def test_the_certified_share_is_the_cra_of_the_stored_margins(trained, images, pictures, radius):
    """
    At any radius, with only correctly classified images counted as certified.
    """
    margins = np.fromfile(trained / "margins.f32", "<f4")
    _, answers = certify_images(load_model(trained), pictures, radius=radius, device="cpu")
    right = torch.tensor([one.label for one in answers]) == images.labels
    share = float((right & torch.tensor([one.certified for one in answers])).double().mean())

    assert 0.1 < share < 1 or radius == 1
    assert margins_agree(margins, radius, share)


def test_radii_are_the_margins_over_the_square_root_of_2(trained, images, pictures):
    margins = torch.from_numpy(np.fromfile(trained / "margins.f32", "<f4")).double()
    right = margins > 1e-4
    found = torch.tensor(radii_of(load_model(trained), pictures), dtype=torch.float64)

    assert (found[right] - margins[right] / math.sqrt(2)).abs().max() < 1e-5


@pytest.mark.slow
def test_an_attack_flips_images_beyond_their_radius_only(trained, images, pictures):
    model = load_model(trained)
    few = ImageFiles(pictures.names[:FEW], pictures.pixels[:FEW])
    _, answers = certify_images(model, few, radius=None, device="cpu")
    network = model.network.double()
    labels = torch.tensor([one.label for one in answers])
    pixels = images.pixels[:FEW].double() / 255
    target = SimpleNamespace(
        model=network,
        images=pixels,
        labels=labels,
        flipped=lambda change: network(pixels + change).argmax(1) != labels,
    )
    radii = torch.tensor([one.radius for one in answers], dtype=torch.float64)

    assert not pgd(target, radii).any()
    assert pgd(target, 20 * radii).any()


def test_every_form_of_the_model_has_the_same_radii(trained, models, pictures):
    forms = [trained, models, models / "network.safetensors"]
    found = [radii_of(load_model(form), pictures) for form in forms]

    assert found[0] == found[1] == found[2]


def test_radii_are_divided_by_the_bound_of_the_network(models, pictures):
    model = read_model(models)
    before = radii_of(model, pictures)
    last = [layer for layer in model.network if hasattr(layer, "weight")][-1]
    last.weight.data *= 2
    last.bias.data *= 2
    proof, _ = certify_images(model, pictures, radius=None, device="cpu")

    assert proof.lipschitz > 1.9
    assert radii_of(model, pictures) == pytest.approx(
        [one * 2 / proof.lipschitz for one in before], rel=1e-5
    )


# --- output ---


def test_the_output_has_a_line_per_image_and_a_count_at_the_radius(models, files, certify):
    code, out, _ = certify(models / "network.safetensors", files, "--radius", "36/255")
    lines = out.splitlines()

    assert code == 0
    assert lines[0].split() == ["image", "class", "radius"]
    assert len(lines) == 7
    assert lines[1].startswith(str(files / "0.png"))
    assert lines[-1].endswith(" of 5 are certified at 0.141176")
    assert all(line.endswith("certified") for line in lines[1:-1])


def test_json_has_the_proof_and_the_unrounded_radii(models, files, certify, pictures):
    code, out, _ = certify(models, files, "--json")
    found = json.loads(out)
    first = found["images"][0]

    assert code == 0
    assert 1 <= found["lipschitz"] < 1.00001
    assert 0 < found["score_error"] < 1e-8
    assert first["image"] == str(files / "0.png")
    assert first["name"] == DATASETS["digits"].classes[first["label"]]
    assert first["certified"] is None
    assert len(found["images"]) == 5


def test_files_and_arrays_have_the_same_radii(models, files, certify, tmp_path):
    np.savez(tmp_path / "data.npz", x_test=np.load(tmp_path / "five.npy"), y_test=np.arange(5))
    radii = [
        [one["radius"] for one in json.loads(certify(models, place, "--json")[1])["images"]]
        for place in (files, tmp_path / "five.npy", tmp_path / "data.npz")
    ]

    assert radii[0] == radii[1] == radii[2]


def test_no_printed_radius_is_above_the_proven_one(models, files, certify):
    printed = [float(line.split()[-1]) for line in certify(models, files)[1].splitlines()[1:]]
    proven = [one["radius"] for one in json.loads(certify(models, files, "--json")[1])["images"]]

    assert all(low <= high < low + 1.1e-6 for low, high in zip(printed, proven, strict=True))


@pytest.mark.slow
def test_the_command_runs_in_a_separate_process(models, files):
    command = [sys.executable, "-W", "error", "-m", "aol"]
    settings = {"env": os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), *sys.path])}}
    settings |= {"capture_output": True, "text": True}
    arguments = [str(models / "network.safetensors"), str(files), "--device", "cpu"]
    done = subprocess.run([*command, "certify", *arguments], check=False, **settings)
    usage = subprocess.run([*command, "--help"], check=False, **settings)

    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 6
    assert "python -m aol certify --help" in usage.stdout


# --- invalid images ---


def test_all_invalid_images_are_reported_at_once(models, files, certify, tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "large.png")
    Image.new("RGBA", (32, 32)).save(tmp_path / "clear.png")
    (tmp_path / "torn.jpg").write_bytes((files / "0.png").read_bytes()[:60])
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "floats.npy", np.zeros((2, 32, 32, 3)))
    np.savez(tmp_path / "labels.npz", y=np.arange(3))
    names = ["large.png", "clear.png", "torn.jpg", "notes.txt", "empty", "floats.npy", "labels.npz"]
    code, out, error = certify(
        models, files, *(tmp_path / name for name in names), tmp_path / "x.png"
    )

    assert (code, out) == (2, "")
    lines = error.splitlines()
    assert lines[0] == f"{tmp_path / 'large.png'}: 64 x 48 pixels, allowed: 32 x 32"
    assert "its mode is RGBA, allowed: RGB" in lines[1]
    assert lines[2].startswith(f"{tmp_path / 'torn.jpg'}: cannot be read: ")
    assert "notes.txt: allowed: folders and .png, " in lines[3]
    assert "empty: a folder without .png, " in lines[4]
    assert "floats.npy: float64 (2, 32, 32, 3), allowed: uint8 (N, 32, 32, 3)" in lines[5]
    assert "labels.npz: no images in it, allowed: uint8 (N, 32, 32, 3)" in lines[6]
    assert lines[7] == f"{tmp_path / 'x.png'}: no such file"
    assert len(lines) == 8


def test_pickled_arrays_are_not_loaded(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)

    with pytest.raises(ImageFileError, match=r"objects\.npy: cannot be read: .*objects"):
        read_images([tmp_path / "objects.npy"])


def test_grey_and_palette_images_are_accepted(tmp_path):
    grey = Image.new("L", (32, 32), 7)
    grey.save(tmp_path / "grey.png")
    grey.convert("P").save(tmp_path / "palette.PNG")
    found = read_images([tmp_path])

    assert found.pixels.shape == (2, 32, 32, 3)
    assert (found.pixels == 7).all()


def test_an_array_without_images_is_an_error(tmp_path):
    np.save(tmp_path / "none.npy", np.zeros((0, 32, 32, 3), np.uint8))

    with pytest.raises(ImageFileError, match="there are no images"):
        read_images([tmp_path / "none.npy"])


def with_a_large_header(file):
    array = np.zeros((1, 32, 32, 3), np.uint8)
    np.save(file, array)
    header = file.read_bytes().replace(
        b"(1, 32, 32, 3), }            ", b"(10000000000, 32, 32, 3), }  "
    )
    assert b"10000000000" in header
    file.write_bytes(header)


def with_many_zeros(file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "ab":
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                for _ in range(9):
                    member.write(bytes(2**26))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.npy", with_a_large_header, "cannot be read: "),
        ("x.npz", with_many_zeros, "has more than 1000 arrays or unpacks to over 1 GiB"),
        ("x.png", lambda file: file.write_bytes(bytes(2**20 + 1)), "has 1048577 bytes, allowed: "),
        ("x.png", lambda file: Image.new("L", (20000, 9)).save(file), "20000 x 9 pixels, allowed"),
        ("x.png", lambda file: Image.new("L", (32, 32)).save(file, "BMP"), "cannot be read: "),
    ],
    ids=["header", "zeros", "bytes", "pixels", "format"],
)
def test_images_that_would_take_much_memory_are_refused(tmp_path, name, write, message):
    write(tmp_path / name)

    with pytest.raises(ImageFileError, match=message):
        read_images([tmp_path / name])


def test_the_number_of_images_is_limited(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.zeros((5, 32, 32, 3), np.uint8))
    monkeypatch.setattr("aol.data.image_files.MAX_IMAGES", 9)

    with pytest.raises(ImageFileError, match="there are more than 9 images"):
        read_images([tmp_path / "x.npy"] * 2)


# --- invalid models ---


@pytest.mark.parametrize(
    "layers",
    [
        [{"layer": "Linear", "in_features": 10**7, "out_features": 10**7}],
        [{"layer": "Flatten"}] * 1001,
    ],
    ids=["large", "many"],
)
def test_a_model_file_with_enormous_layers_is_refused_at_once(models, tmp_path, layers):
    model = read_model(models)
    model.facts["layers"] = layers
    write_model_file(model, "safetensors", tmp_path)

    with pytest.raises(ModelError, match="is damaged, or `export` did not write it"):
        read_model(tmp_path)


def test_a_model_file_whose_layers_enlarge_images_is_refused(models, tmp_path):
    model = read_model(models)
    convolution = next(one for one in model.facts["layers"] if one["layer"] == "Conv2d")
    convolution["padding"] = 10**6
    write_model_file(model, "safetensors", tmp_path)

    with pytest.raises(ModelError, match="pads by more than half its kernel's size"):
        read_model(tmp_path)


def test_a_compressed_checkpoint_is_refused(tmp_path):
    torch.save({"x": torch.zeros(10**6)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "state.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))

    with pytest.raises(CheckpointError, match=r"state\.pt: is damaged .*: it is compressed"):
        load_checkpoint(tmp_path / "state.pt")


def test_a_missing_safetensors_package_is_an_error_with_the_command_to_install_it(
    models, monkeypatch
):
    monkeypatch.setattr("aol.export.formats.find_spec", lambda name: None)

    with pytest.raises(ModelError, match="reading it needs safetensors: pip install safetensors"):
        read_model(models)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.safetensors", None, "none.safetensors: no such file"),
        ("x.onnx", b"", "x.onnx: is not a .safetensors file"),
        ("x.pt", b"PK\3\4", "x.pt: TorchScript files are not read; export again as safetensors"),
        ("torn.safetensors", b"torn", "torn.safetensors: is damaged, or `export` did not"),
    ],
)
def test_an_invalid_model_is_a_one_line_error_with_exit_code_2(
    certify, files, tmp_path, name, content, message
):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, out, error = certify(tmp_path / name, files)

    assert (code, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "change", [{"classes": []}, {"divisors": []}, {"layers": [{"layer": "X"}]}]
)
def test_facts_that_do_not_match_the_network_are_refused(models, tmp_path, change):
    model = read_model(models)
    model.facts.update(change)
    write_model_file(model, "safetensors", tmp_path)

    with pytest.raises(ModelError, match=r"network\.safetensors: "):
        read_model(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts["divisors"].pop(),
        lambda facts: facts["divisors"][0].__setitem__(0, -1.0),
        lambda facts: facts.update(classes=["a", "b"]),
    ],
    ids=["too few divisors", "a negative divisor", "too few classes"],
)
def test_a_model_without_a_valid_proof_is_an_error(models, pictures, change):
    model = read_model(models)
    change(model.facts)

    with pytest.raises(ModelError, match="the model cannot certify these images: "):
        certify_images(model, pictures, radius=None, device="cpu")


def test_layers_that_cannot_be_applied_are_an_error(models, pictures):
    model = read_model(models)
    model.network[0].rows = 0

    with pytest.raises(ModelError, match="cannot certify these images: integer division"):
        certify_images(model, pictures, radius=None, device="cpu")


def test_weights_that_are_not_finite_are_an_error(models, pictures):
    model = read_model(models)
    next(model.network.parameters()).data[0] = math.nan

    with pytest.raises(ModelError, match="its weights are not finite"):
        certify_images(model, pictures, radius=None, device="cpu")


def test_an_unknown_device_is_a_one_line_error(models, files, certify):
    code, _, error = certify(models, files, "--device", "abacus")

    assert code == 2
    assert error.count("\n") == 1
    assert "abacus" in error


def test_an_invalid_radius_is_refused(models, files, capsys):
    with pytest.raises(SystemExit):
        main(["certify", str(models), str(files), "--radius=-1"])

    assert "'-1' is not a radius; write a number" in capsys.readouterr().err


# --- folders of runs ---


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def test_a_folder_without_a_checkpoint_is_an_error(copied):
    for file in copied.glob("state-*.pt"):
        file.unlink()

    with pytest.raises(CheckpointError, match=r"no state-<n>\.pt there"):
        load_model(copied)


def test_a_damaged_checkpoint_is_an_error_and_no_older_one_is_used(copied, files, certify):
    (copied / "state-3.pt").write_bytes(b"torn")
    code, _, error = certify(copied, files)

    assert code == 1
    assert error.startswith(
        f"{copied / 'state-3.pt'}: is damaged: it differs from state-3.pt.sha256"
    )
    assert error.count("\n") == 1


def test_a_checkpoint_of_other_settings_is_an_error(copied):
    described = json.loads((copied / "run.json").read_text())
    described["settings"]["seed"] = 7
    (copied / "run.json").write_text(json.dumps(described))

    with pytest.raises(CheckpointError, match=r"with seed 0, the run has .* with seed 7"):
        load_model(copied)


def test_an_invalid_run_json_is_an_error(copied):
    (copied / "run.json").write_text("{}")

    with pytest.raises(CheckpointError, match=r"cannot be read: run\.json: key: is missing"):
        load_model(copied)


def test_an_unreadable_checkpoint_is_an_error(copied):
    (copied / "state-3.pt").unlink()
    (copied / "state-3.pt").mkdir()

    with pytest.raises(CheckpointError, match=r"state-3\.pt: cannot be read: Is a directory"):
        load_model(copied)


def test_every_class_has_a_unique_name():
    assert {name: len(set(data.classes)) for name, data in DATASETS.items()} == {
        "cifar10": 10,
        "cifar100": 100,
        "digits": 10,
        "digit-pairs": 100,
    }
    assert list(DATASETS["cifar100"].classes) == sorted(DATASETS["cifar100"].classes)


def test_names_of_images_and_classes_are_printed_in_one_line():
    found = CertifiedImage("a\nb\x1b[2J.png", 0, "cat\u202e", 0.5)

    (_, line) = format_lines([found], None)

    assert line.startswith(r"a\nb\x1b[2J.png  0 cat\u202e  0.49")
