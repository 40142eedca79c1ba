"""`python -m aol certify`: the class of each image and the radius within which it is certain."""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from aol.certification.certificate import parse_radius
from aol.certification.radius import DECIMALS, Proof, floor_radius, make_certifier
from aol.data.image_files import ImageFiles, read_images
from aol.errors import CheckpointError, ImageFileError, ModelError, RadiusError, first_line
from aol.export.checkpoint import load_network_from_folder
from aol.export.formats import Exported, export_network, read_model


@dataclass(frozen=True)
class Answer:
    """What can be said of an image; `radius` in units of pixels in [0, 1], L2.

    `certified` says whether the class is certain within the radius asked for, None without one.
    """

    image: str
    label: int
    name: str
    radius: float
    certified: bool | None = None

    @property
    def called(self) -> str:
        """The class's index and name."""
        return f"{self.label} {self.name}"


def main(arguments: list[str] | None = None) -> int:
    """Certify images; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        pictures = read_images(options.images)
        model = opened(options.model)
        proof, answers = answer(model, pictures, radius=options.radius, device=options.device)
    except (ModelError, ImageFileError, CheckpointError) as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.json:
        print(as_json(options, proof, answers))
    else:
        print("\n".join(as_lines(answers, options.radius)))
    return 0


def opened(place: Path) -> Exported:
    """An exported model, or the newest network of a folder in which `python -m aol` trains.

    Raises: ModelError, CheckpointError.
    """
    if not (place / "run.json").exists():
        return read_model(place)
    run, trained = load_network_from_folder(place)
    return export_network(trained, run)


def answer(
    model: Exported, pictures: ImageFiles, *, radius: float | None, device: str
) -> tuple[Proof, list[Answer]]:
    """The proof of the network, and an answer per image. Raises: ModelError."""
    try:
        certifier = make_certifier(model.network, model.divisors, torch.device(device))
        pixels = torch.from_numpy(pictures.pixels).permute(0, 3, 1, 2)
        labels, radii = certifier(pixels)
        names = [model.classes[label] for label in labels]
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"the model cannot certify these images: {first_line(error)}") from error
    answers = [
        Answer(image, label, name, found, None if radius is None else found > radius)
        for image, label, name, found in zip(
            pictures.names, labels.tolist(), names, radii.tolist(), strict=True
        )
    ]
    return certifier.proof, answers


def as_json(options: argparse.Namespace, proof: Proof, answers: list[Answer]) -> str:
    """All answers as one JSON object."""
    found = {
        "model": str(options.model),
        **asdict(proof),
        "asked": options.radius,
        "images": [asdict(one) for one in answers],
    }
    return json.dumps(found, indent=2)


def as_lines(answers: list[Answer], radius: float | None) -> list[str]:
    """A line per image, radii rounded down, and how many are certified at the radius asked for."""
    marks = {None: "", True: "  certified", False: "  not certified"}
    image = max(len("image"), *(len(one.image) for one in answers))
    name = max(len("class"), *(len(one.called) for one in answers))
    lines = [f"{'image':{image}}  {'class':{name}}  radius"]
    for one in answers:
        radius_text = f"{floor_radius(one.radius):.{DECIMALS}f}"
        lines.append(
            f"{one.image:{image}}  {one.called:{name}}  {radius_text}{marks[one.certified]}"
        )
    if radius is not None:
        count = sum(bool(one.certified) for one in answers)
        lines.append(f"{count} of {len(answers)} are certified at {radius:.{DECIMALS}f}")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m aol certify",
        description="The class of each image, and the L2 radius (pixels in [0, 1]) within which no "
        "change of the image can make another class win.",
    )
    add = parser.add_argument
    add("model", type=Path, help="an exported .pt file or folder, or a folder of `python -m aol`")
    add("images", type=Path, nargs="+", help="32 x 32 images, folders of them, .npy or .npz arrays")
    add("--radius", type=_radius, help="say which are certified at this one, like 0.5 or 36/255")
    add("--json", action="store_true", help="print JSON only")
    cuda = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=cuda, help="cuda or cpu (default: %(default)s)")
    return parser


def _radius(text: str) -> float:
    try:
        return parse_radius(text)
    except RadiusError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
