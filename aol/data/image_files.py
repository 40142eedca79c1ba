"""Images from files: PNG, WEBP and JPEG, folders of them, and arrays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aol.errors import ImageFileError

Pixels = npt.NDArray[np.uint8]

SHAPE = (32, 32, 3)
PICTURES = (".png", ".webp", ".jpg", ".jpeg")
MODES = ("RGB", "L", "P")  # colours, greys, colours of a palette
ARRAY = "uint8 (N, 32, 32, 3)"


@dataclass(frozen=True)
class ImageFiles:
    """Images (N, 32, 32, 3) uint8 and what each is called."""

    names: tuple[str, ...]
    pixels: Pixels


def read_images(places: Sequence[Path]) -> ImageFiles:
    """The images of files, of folders and of arrays, in their order.

    Raises: ImageFileError with every place that has none.
    """
    names: list[str] = []
    parts: list[Pixels] = []
    problems: list[str] = []
    for place in places:
        for file in _files(place, problems):
            try:
                found = _images(file)
            except ImageFileError as error:
                problems.append(str(error))
                continue
            for name, pixels in found.items():
                rows = [f"{name}[{row}]" for row in range(len(pixels))]
                names += rows if file.suffix.lower() in ARRAYS else [name]
                parts.append(pixels)
    if problems:
        raise ImageFileError("\n".join(problems))
    if not names:
        raise ImageFileError("there are no images in what was named")
    return ImageFiles(tuple(names), np.concatenate(parts))


def _files(place: Path, problems: list[str]) -> list[Path]:
    """The file itself, or the pictures in a folder."""
    if not place.is_dir():
        return [place]
    found = sorted(file for file in place.iterdir() if file.suffix.lower() in PICTURES)
    if not found:
        problems.append(f"{place}: a folder without {', '.join(PICTURES)} files")
    return found


def _images(file: Path) -> dict[str, Pixels]:
    """The images of one file by name. Raises: ImageFileError."""
    suffix = file.suffix.lower()
    reader = _picture if suffix in PICTURES else ARRAYS.get(suffix, _unknown)
    try:
        return reader(file)
    except ImageFileError as error:
        raise ImageFileError(f"{file}: {error}") from None
    except FileNotFoundError:
        raise ImageFileError(f"{file}: no such file") from None
    except Exception as error:  # Pillow and numpy raise a dozen types on a damaged file
        raise ImageFileError(f"{file}: cannot be read: {error}") from error


def _picture(file: Path) -> dict[str, Pixels]:
    from PIL import Image

    with Image.open(file) as picture:
        if picture.size != SHAPE[:2]:
            raise ImageFileError("{} x {} pixels, allowed: 32 x 32".format(*picture.size))
        if picture.mode not in MODES or "transparency" in picture.info:
            raise ImageFileError(f"its mode is {picture.mode}, allowed: RGB without transparency")
        return {str(file): np.asarray(picture.convert("RGB"), np.uint8)[None]}


def _array(file: Path) -> dict[str, Pixels]:
    return {str(file): _checked("", np.load(file, allow_pickle=False))}


def _archive(file: Path) -> dict[str, Pixels]:
    """Every array of images in it; labels and the like, of less than three dimensions, are not."""
    with np.load(file, allow_pickle=False) as arrays:
        found = {
            f"{file}:{name}": _checked(f"{name}: ", array)
            for name, array in arrays.items()
            if array.ndim > 2
        }
    if not found:
        raise ImageFileError(f"no images in it, allowed: {ARRAY}")
    return found


def _checked(where: str, array: npt.NDArray[np.generic]) -> Pixels:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != SHAPE:
        raise ImageFileError(f"{where}{array.dtype} {array.shape}, allowed: {ARRAY}")
    return array.astype(np.uint8, copy=False)


def _unknown(file: Path) -> dict[str, Pixels]:
    raise ImageFileError(f"allowed: folders and {', '.join([*PICTURES, *ARRAYS])} files")


ARRAYS: dict[str, Callable[[Path], dict[str, Pixels]]] = {".npy": _array, ".npz": _archive}
