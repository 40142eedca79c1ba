"""CIFAR-10, CIFAR-100 and two embedded digit datasets, verified and ready as tensors.

`prepare` takes a dataset from the first source that has it, checks its fingerprint and keeps
it as one file that can be memory-mapped; `load` makes tensors of it. A fingerprint does not
depend on the order of the images: it is the sum modulo 2**64 of the 8-byte little-endian
blake2b of each image's bytes (rows, columns, RGB) followed by its label byte.
"""

import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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

Progress = Callable[[str, float], None]  # what is being done, and how much of it (0 to 1)
Records = npt.NDArray[np.void]

RECORD = np.dtype([("image", np.uint8, (32, 32, 3)), ("label", np.uint8)])
SUBSET_SEED = 1111  # fixes which images a limit keeps
BY_HAND = """\
Supply the images by hand in one of two ways, then run the command again:
  1. {root}/{name}.npz with uint8 arrays x_train (50000, 32, 32, 3), y_train, x_test, y_test
  2. torchvision's own folder ({folder}) in {root}
Another folder: set AOL_DATA, or `data_root:` in the YAML file."""


@dataclass(frozen=True)
class Images:
    """Images (N, 3, 32, 32) uint8, channels-last in memory, and labels (N,) int64."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def default_root() -> Path:
    """`$AOL_DATA`, or `aol` in the platform's cache directory."""
    if chosen := os.environ.get("AOL_DATA"):
        return Path(chosen).expanduser()
    return _cache()


def _cache() -> Path:
    caches = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA", "~")}
    cache = os.environ.get("XDG_CACHE_HOME") or caches.get(sys.platform, "~/.cache")
    return Path(cache).expanduser() / "aol"


def load(config: DataConfig, root: Path, device: torch.device) -> tuple[Images, Images]:
    """The training and the test images of `config` on `device`; prepares them if needed.

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


def kept_file(name: str, root: Path) -> Path:
    """Where `prepare` keeps a dataset's records, or would: in the root, or in the cache."""
    kept = _kept(name, root)
    return kept if kept.exists() or not _is_read_only(root) else _kept(name, _cache())


def _kept(name: str, root: Path) -> Path:
    return root / "verified" / f"{name}.npy"


def prepare(
    name: str, root: Path, progress: Progress = lambda stage, share: None
) -> dict[str, Records]:
    """The verified records of a dataset, memory-mapped, as {"train": ..., "test": ...}.

    The first call on a machine finds the images and keeps them in `root`, under a lock, or in the
    platform's cache if `root` is read-only; every call checks the fingerprints and replaces a file
    that does not have them.

    Raises: DataError if no source has the right images or they cannot be kept.
    """
    if (records := _open_kept(name, _kept(name, root), progress)) is not None:
        return records
    kept = kept_file(name, root)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(kept.with_suffix(".lock")):
            if (records := _open_kept(name, kept, progress)) is not None:
                return records
            _keep(_find(name, root, progress), kept)
            records = _open_kept(name, kept, progress)
    except OSError as error:
        raise DataError(f"cannot keep {name} in {kept.parent}: {error}") from error
    if records is None:
        raise DataError(f"{kept} is damaged as soon as it is written: is the disk sound?")
    return records


def _is_read_only(root: Path) -> bool:
    return root.is_dir() and not os.access(root, os.W_OK)


def _open_kept(name: str, path: Path, progress: Progress) -> dict[str, Records] | None:
    """The kept records if they are whole and the right ones, else None."""
    try:
        records = np.load(path, mmap_mode="r")
    except Exception:  # numpy raises a dozen types on a damaged file
        return None
    if not isinstance(records, np.memmap) or records.dtype != RECORD:
        return None
    train, test = np.split(records, [DATASETS[name].train_images])
    wrong = _wrong_fingerprint(
        name, Arrays(train["image"], train["label"], test["image"], test["label"]), progress
    )
    return None if wrong else {"train": train, "test": test}


def _keep(arrays: Arrays, path: Path) -> None:
    """Write both parts as one file of records, aside and then renamed."""
    records = np.empty(len(arrays.y_train) + len(arrays.y_test), RECORD)
    records["image"] = np.concatenate([arrays.x_train, arrays.x_test])
    records["label"] = np.concatenate([arrays.y_train, arrays.y_test])
    with atomic_path(path) as part:
        np.save(part, records)


def _find(name: str, root: Path, progress: Progress) -> Arrays:
    """The images from the first source that has them. Raises: DataError."""
    failures = []
    for title, source in SOURCES[name]:
        progress(f"{name} from {title}", 0.0)
        try:
            arrays = source(name, root)
        except SourceError as error:
            failures.append(f"  {title}: {error}")
            continue
        if wrong := _wrong_fingerprint(name, arrays, progress):
            failures.append(f"  {title}: refused, {wrong}")
            continue
        return arrays
    lines = [f"no source has {name}. Tried, in this order:", *failures]
    if folder := DATASETS[name].torchvision_folder:
        lines.append(BY_HAND.format(name=name, root=root, folder=folder))
    raise DataError("\n".join(lines))


def _wrong_fingerprint(name: str, arrays: Arrays, progress: Progress) -> str | None:
    """What is wrong with the images, or None if they are the dataset's."""
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
    """Sixteen hexadecimal digits that name a set of labelled images, whatever their order."""
    total = 0
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        digest = hashlib.blake2b(image.tobytes() + bytes([label]), digest_size=8).digest()
        total += int.from_bytes(digest, "little")
        if index % 2000 == 0:
            progress(index / len(images))
    return f"{total % 2**64:016x}"
