"""CIFAR-10, CIFAR-100 and two embedded digit datasets, verified and loaded as tensors.

`prepare` gets a dataset from the first source that has it, checks its fingerprint and stores it
as one file that can be memory-mapped; `load` makes tensors of it. A fingerprint does not depend
on the order of the images: it is the sum modulo 2**64 of the 8-byte little-endian blake2b of
each image's bytes (rows, columns, RGB) followed by its label byte.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor

from aol.atomic import atomic_path
from aol.catalog import DATASETS, Part
from aol.config import DataConfig
from aol.data.sources import SOURCES, Arrays, Pixels, SourceError
from aol.errors import DataError

Progress = Callable[[str, float], None]  # the current step, and the fraction of it that is done
Records = npt.NDArray[np.void]

RECORD = np.dtype([("image", np.uint8, (32, 32, 3)), ("label", np.uint8)])
SUBSET_SEED = 1111  # fixes which images a limit keeps
BY_HAND = """\
Supply the images by hand in one of two ways, then run the command again:
  1. {root}/{name}.npz with uint8 arrays x_train (50000, 32, 32, 3), y_train, x_test, y_test
  2. torchvision's own folder ({folder}) in {root}
For another folder, set AOL_DATA, or `data_root:` in the YAML file."""


@dataclass(frozen=True)
class Images:
    """Images (N, 3, 32, 32) uint8, channels-last in memory, and labels (N,) int64."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def default_root() -> Path:
    """Return `$AOL_DATA`, or `aol` in the platform's cache directory."""
    if chosen := os.environ.get("AOL_DATA"):
        return Path(chosen).expanduser()
    return _cache_folder()


def _cache_folder() -> Path:
    caches = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA", "~")}
    cache = os.environ.get("XDG_CACHE_HOME") or caches.get(sys.platform, "~/.cache")
    return Path(cache).expanduser() / "aol"


def load(config: DataConfig, root: Path, device: torch.device) -> tuple[Images, Images]:
    """Return the training and the test images of `config` on `device`; prepare them if needed.

    Raises: DataError.
    """
    records = prepare(config.name, root)
    train = _limited(records["train"], config.train_limit)
    test = _limited(records["test"], config.test_limit)
    return _images(train, device), _images(test, device)


def _limited(records: Records, limit: int | None) -> Records:
    if limit is None or limit >= len(records):
        return records
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(SUBSET_SEED))
    kept: Records = records[order[:limit].numpy()]
    return kept


def _images(records: Records, device: torch.device) -> Images:
    pixels = torch.from_numpy(np.array(records["image"])).permute(0, 3, 1, 2)
    labels = torch.from_numpy(records["label"].astype(np.int64))
    return Images(pixels.to(device), labels.to(device))


def verified_file(name: str, root: Path) -> Path:
    """Return the file of `prepare`, which may not exist: in the root, or in the cache."""
    file, writable = _file_in(root, name), _writable_file(name, root)
    if file == writable or _load_verified(name, file, _ignore_progress) is not None:
        return file
    return writable


def describe_fallback(name: str, root: Path) -> str | None:
    """Return a line about images that are kept outside their root, None if they are in it."""
    file = verified_file(name, root)
    if file == _file_in(root, name):
        return None
    return f"{root} is read-only and has no intact images of {name}: they are kept in {file.parent}"


def _writable_file(name: str, root: Path) -> Path:
    file = _file_in(root, name)
    existing = next(folder for folder in file.parents if folder.exists())
    return file if os.access(existing, os.W_OK) else _file_in(_cache_folder(), name)


def _ignore_progress(stage: str, share: float) -> None:
    """Ignore the progress."""


def _file_in(root: Path, name: str) -> Path:
    return root / "verified" / f"{name}.npy"


def prepare(name: str, root: Path, progress: Progress = _ignore_progress) -> dict[str, Records]:
    """Return the verified records of a dataset, memory-mapped, as {"train": ..., "test": ...}.

    The first call on a machine gets the images and stores them in `root`, under a lock, or in the
    platform's cache if `root` is read-only. Every call checks the fingerprints and replaces a file
    with others.

    Raises: DataError if no source has the right images or they cannot be stored.
    """
    if (records := _load_verified(name, _file_in(root, name), progress)) is not None:
        return records
    file = _writable_file(name, root)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if (records := _load_verified(name, file, progress)) is not None:
                return records
            _save_records(_fetch(name, dict.fromkeys((root, file.parents[1])), progress), file)
            records = _load_verified(name, file, progress)
    except OSError as error:
        raise DataError(f"cannot store {name} in {file.parent}: {error}") from error
    if records is None:
        raise DataError(f"{file}: is damaged right after it was written; check the disk")
    return records


def _load_verified(name: str, path: Path, progress: Progress) -> dict[str, Records] | None:
    """Return the records of a file, None if it is missing, damaged or has other fingerprints."""
    try:
        records = np.load(path, mmap_mode="r")
    except Exception:  # numpy raises a dozen types on a damaged file
        return None
    if not isinstance(records, np.memmap) or records.dtype != RECORD:
        return None
    train, test = np.split(records, [DATASETS[name].train_images])
    problem = _find_mismatch(
        name, Arrays(train["image"], train["label"], test["image"], test["label"]), progress
    )
    return None if problem else {"train": train, "test": test}


def _save_records(arrays: Arrays, path: Path) -> None:
    """Write both parts atomically as one file of records."""
    records = np.empty(len(arrays.y_train) + len(arrays.y_test), RECORD)
    records["image"] = np.concatenate([arrays.x_train, arrays.x_test])
    records["label"] = np.concatenate([arrays.y_train, arrays.y_test])
    header = np.lib.format.header_data_from_array_1_0(records)
    with atomic_path(path) as part, part.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(records.data)  # np.save hides the reason if the disk is full


def _fetch(name: str, roots: Iterable[Path], progress: Progress) -> Arrays:
    """Return the images from the first source that has them in a root. Raises: DataError."""
    failures = []
    for root, (title, source) in product(roots, SOURCES[name]):
        progress(f"{name} from {title}", 0.0)
        try:
            arrays = source(name, root)
        except SourceError as error:
            failures.append(f"  {title}: {error}")
            continue
        if problem := _find_mismatch(name, arrays, progress):
            failures.append(f"  {title}: rejected, {problem}")
            continue
        return arrays
    lines = [f"no source has {name}. Tried, in this order:", *failures]
    if folder := DATASETS[name].torchvision_folder:
        lines.append(BY_HAND.format(name=name, root=root, folder=folder))
    raise DataError("\n".join(lines))


def _find_mismatch(name: str, arrays: Arrays, progress: Progress) -> str | None:
    """Return why these are not the images of the dataset, or None if they are."""
    parts: dict[Part, tuple[Pixels, Pixels]] = {
        "train": (arrays.x_train, arrays.y_train),
        "test": (arrays.x_test, arrays.y_test),
    }
    for part, (images, labels) in parts.items():
        if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
            return f"{part} images are {images.dtype} {images.shape}, not uint8 (N, 32, 32, 3)"
        if labels.shape != images.shape[:1]:
            return f"{part} has {len(images)} images and labels of shape {labels.shape}"
        if not (np.issubdtype(labels.dtype, np.integer) and _are_bytes(labels)):
            return f"labels of {part} are {labels.dtype} and not all whole numbers from 0 to 255"
        found = fingerprint(images, labels, partial(progress, f"checking {name} {part}"))
        expected = DATASETS[name].fingerprints[part]
        if found != expected:
            return f"fingerprint of {part} is {found}, expected {expected}"
    return None


def _are_bytes(labels: Pixels) -> bool:
    return not len(labels) or bool(labels.min() >= 0 and labels.max() <= 255)


def fingerprint(
    images: Pixels, labels: Pixels, progress: Callable[[float], None] = lambda share: None
) -> str:
    """Return sixteen hexadecimal digits that identify labelled images, in any order."""
    total = 0
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        digest = hashlib.blake2b(image.tobytes() + bytes([label]), digest_size=8).digest()
        total += int.from_bytes(digest, "little")
        if index % 2000 == 0:
            progress(index / len(images))
    return f"{total % 2**64:016x}"
