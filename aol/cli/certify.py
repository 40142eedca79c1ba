"""`python -m aol certify`: the class of each image and its certified radius."""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from aol.certification.certificate import parse_radius
from aol.certification.radius import DECIMALS, Proof, floor_radius, make_certifier
from aol.cli.paths import parse_path
from aol.data.image_files import ImageFiles, read_images
from aol.errors import CheckpointError, ImageFileError, ModelError, RadiusError, first_line
from aol.export.formats import ExportedModel, export_network, read_model
from aol.export.trained_network import load_network_from_folder
from aol.text import printable, printable_lines
from aol.training.run_folder import RunFolder


@dataclass(frozen=True)
class CertifiedImage:
    """An image's class and its certified L2 radius, in units of pixels in [0, 1].

    `certified` is whether the radius exceeds the requested one, None without one.
    """

    image: str
    label: int
    name: str
    radius: float
    certified: bool | None = None

    @property
    def class_name(self) -> str:
        """The class's index and name."""
        return f"{self.label} {self.name}"


def main(arguments: list[str] | None = None) -> int:
    """Certify images; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        images = read_images(options.images)
        model = load_model(options.model)
        proof, found = certify_images(model, images, radius=options.radius, device=options.device)
    except (ModelError, ImageFileError, CheckpointError) as error:
        print(printable_lines(str(error)), file=sys.stderr)
        return error.exit_code
    if options.json:
        print(format_json(options, proof, found))
    else:
        print("\n".join(format_lines(found, options.radius)))
    return 0


def load_model(path: Path) -> ExportedModel:
    """Return an exported model, or the newest network of a folder of `python -m aol`.

    Raises: ModelError, CheckpointError.
    """
    if not RunFolder(path).run_file.exists():
        return read_model(path)
    run, trained = load_network_from_folder(path)
    return export_network(trained, run)


def certify_images(
    model: ExportedModel, images: ImageFiles, *, radius: float | None, device: str
) -> tuple[Proof, list[CertifiedImage]]:
    """Return the proof for the network, and the result of each image. Raises: ModelError."""
    try:
        certifier = make_certifier(model.network, model.divisors, torch.device(device))
        pixels = torch.from_numpy(images.pixels).permute(0, 3, 1, 2)
        labels, radii = certifier(pixels)
        names = [model.classes[label] for label in labels]
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"the model cannot certify these images: {first_line(error)}") from error
    found = [
        CertifiedImage(image, label, name, bound, None if radius is None else bound > radius)
        for image, label, name, bound in zip(
            images.names, labels.tolist(), names, radii.tolist(), strict=True
        )
    ]
    return certifier.proof, found


def format_json(options: argparse.Namespace, proof: Proof, found: list[CertifiedImage]) -> str:
    """Return all results as one JSON object."""
    content = {
        "model": str(options.model),
        **asdict(proof),
        "asked": options.radius,
        "images": [asdict(one) for one in found],
    }
    return json.dumps(content, indent=2)


def format_lines(found: list[CertifiedImage], radius: float | None) -> list[str]:
    """Return a line per image, radii rounded down, and a count if a radius was requested."""
    images = [printable(one.image) for one in found]
    classes = [printable(one.class_name) for one in found]
    marks = {None: "", True: "  certified", False: "  not certified"}
    image = max(map(len, ["image", *images]))
    name = max(map(len, ["class", *classes]))
    lines = [f"{'image':{image}}  {'class':{name}}  radius"]
    for one, file, label in zip(found, images, classes, strict=True):
        radius_text = f"{floor_radius(one.radius):.{DECIMALS}f}"
        lines.append(f"{file:{image}}  {label:{name}}  {radius_text}{marks[one.certified]}")
    if radius is not None:
        count = sum(bool(one.certified) for one in found)
        lines.append(f"{count} of {len(found)} are certified at {radius:.{DECIMALS}f}")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m aol certify",
        description="Print the class of each image and its certified radius: no change of the "
        "image of a smaller L2 norm (pixels in [0, 1]) changes the class.",
    )
    add = parser.add_argument
    add(
        "model",
        type=parse_path,
        help="an exported .safetensors file, a folder with one, or a run's folder",
    )
    add(
        "images",
        type=parse_path,
        nargs="+",
        help="32 x 32 images, folders of them, .npy or .npz arrays",
    )
    add("--radius", type=_radius, help="mark the images certified at this radius: 0.5 or 36/255")
    add("--json", action="store_true", help="print JSON only")
    cuda = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=cuda, help="cuda or cpu (default: %(default)s)")
    return parser


def _radius(text: str) -> float:
    try:
        return parse_radius(text)
    except RadiusError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
