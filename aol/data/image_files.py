"""Images from files: PNG, WEBP and JPEG, folders of them, and NumPy arrays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

from aol.errors import ImageFileError

Pixels = npt.NDArray[np.uint8]

SHAPE = (32, 32, 3)
FORMATS = ("PNG", "WEBP", "JPEG")  # Pillow guesses by the content, not by the name
MAX_IMAGE_BYTES = 2**20  # of 32 x 32 pixels
MAX_UNPACKED_BYTES = 2**30  # of an .npz file
MAX_ARRAYS = 1000  # in an .npz file
MAX_IMAGES = 100_000
IMAGE_SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")
MODES = ("RGB", "L", "P")  # colour, greyscale, palette
ARRAY = "uint8 (N, 32, 32, 3)"


@dataclass(frozen=True)
class ImageFiles:
    """Images (N, 32, 32, 3) uint8 and their names."""

    names: tuple[str, ...]
    pixels: Pixels


def read_images(paths: Sequence[Path]) -> ImageFiles:
    """Return the images of files, folders and arrays, in their order.

    Raises: ImageFileError with a line per path that has none.
    """
    names: list[str] = []
    parts: list[Pixels] = []
    problems: list[str] = []
    for path in paths:
        for file in _files(path, problems):
            try:
                found = _images(file)
            except ImageFileError as error:
                problems.append(str(error))
                continue
            for name, pixels in found.items():
                rows = [f"{name}[{row}]" for row in range(len(pixels))]
                names += rows if file.suffix.lower() in ARRAY_READERS else [name]
                parts.append(pixels)
                if len(names) > MAX_IMAGES:
                    raise ImageFileError(f"there are more than {MAX_IMAGES} images")
    if problems:
        raise ImageFileError("\n".join(problems))
    if not names:
        raise ImageFileError("there are no images in these files")
    return ImageFiles(tuple(names), np.concatenate(parts))


def _files(path: Path, problems: list[str]) -> list[Path]:
    """Return the file itself, or the image files in a folder."""
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        problems.append(f"{path}: a folder without {', '.join(IMAGE_SUFFIXES)} files")
    return found


def _images(file: Path) -> dict[str, Pixels]:
    """Return the images of one file by name. Raises: ImageFileError."""
    suffix = file.suffix.lower()
    reader = _read_image if suffix in IMAGE_SUFFIXES else ARRAY_READERS.get(suffix, _reject)
    try:
        return reader(file)
    except ImageFileError as error:
        raise ImageFileError(f"{file}: {error}") from None
    except FileNotFoundError:
        raise ImageFileError(f"{file}: no such file") from None
    except Exception as error:  # Pillow and numpy raise a dozen types on a damaged file
        raise ImageFileError(f"{file}: cannot be read: {error}") from error


def _read_image(file: Path) -> dict[str, Pixels]:
    from PIL import Image

    _require_size(file, MAX_IMAGE_BYTES)
    with Image.open(file, formats=FORMATS) as image:
        if image.size != SHAPE[:2]:
            raise ImageFileError("{} x {} pixels, allowed: 32 x 32".format(*image.size))
        if image.mode not in MODES or "transparency" in image.info:
            raise ImageFileError(f"its mode is {image.mode}, allowed: RGB without transparency")
        return {str(file): np.asarray(image.convert("RGB"), np.uint8)[None]}


def _read_npy(file: Path) -> dict[str, Pixels]:
    # Mapped, so a false size in the header takes no memory
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    return {str(file): _checked("", array)}


def _read_npz(file: Path) -> dict[str, Pixels]:
    """Read every array of more than two dimensions; the others are labels and the like."""
    with ZipFile(file) as archive:
        infos = archive.infolist()
    if len(infos) > MAX_ARRAYS or sum(info.file_size for info in infos) > MAX_UNPACKED_BYTES:
        raise ImageFileError(f"has more than {MAX_ARRAYS} arrays or unpacks to over 1 GiB")
    with np.load(file, allow_pickle=False) as arrays:
        found = {
            f"{file}:{name}": _checked(f"{name}: ", array)
            for name, array in arrays.items()
            if array.ndim > 2
        }
    if not found:
        raise ImageFileError(f"no images in it, allowed: {ARRAY}")
    return found


def _require_size(file: Path, limit: int) -> None:
    """Raise ImageFileError if a file has more than `limit` bytes."""
    if (size := file.stat().st_size) > limit:
        raise ImageFileError(f"has {size} bytes, allowed: {limit}")


def _checked(where: str, array: npt.NDArray[np.generic]) -> Pixels:
    if array.ndim and len(array) > MAX_IMAGES:
        raise ImageFileError(f"{where}{len(array)} images, allowed: {MAX_IMAGES}")
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != SHAPE:
        raise ImageFileError(f"{where}{array.dtype} {array.shape}, allowed: {ARRAY}")
    return np.array(array, np.uint8)


def _reject(file: Path) -> dict[str, Pixels]:
    raise ImageFileError(
        f"allowed: folders and {', '.join([*IMAGE_SUFFIXES, *ARRAY_READERS])} files"
    )


ARRAY_READERS: dict[str, Callable[[Path], dict[str, Pixels]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
}
