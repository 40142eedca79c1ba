"""Networks as files that need nothing of this program, and such files read back.

    network.safetensors   weights; with a copy of `aol/layers/plain.py` beside it as network.py
    network.onnx          for any ONNX runtime; batches of any size

Each carries facts about the network as JSON: see `export_network`.
"""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aol.atomic import atomic_path
from aol.catalog import DATASETS
from aol.certification.radius import prove_bound
from aol.errors import ModelError, first_line
from aol.export.folding import describe_layers, fold_network, network_divisors
from aol.export.trained_network import TrainedNetwork, describe_run
from aol.layers import plain as network
from aol.training.records import Run

Format = Literal["safetensors", "onnx"]
FILES: dict[Format, str] = {"safetensors": "network.safetensors", "onnx": "network.onnx"}
PACKAGES: dict[Format, tuple[str, ...]] = {
    "safetensors": ("safetensors",),
    "onnx": ("onnx", "onnxscript"),
}
SCHEMA = 1  # of the facts; a change that breaks readers gets another number
PROBES, SAFETY = 16, 10  # images, and the factor that their largest error is multiplied by


@dataclass(frozen=True)
class ExportedModel:
    """A plain float32 network and facts about it, as plain values."""

    network: nn.Sequential
    facts: dict[str, Any]

    @property
    def divisors(self) -> list[Tensor]:
        """Numbers that make the bound of each layer with weights tight; they prove nothing."""
        return [torch.tensor(one, dtype=torch.float64) for one in self.facts["divisors"]]

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the scores."""
        return [str(name) for name in self.facts["classes"]]


def export_network(trained: TrainedNetwork, run: Run) -> ExportedModel:
    """Return a run's network, folded, with its facts.

    `lipschitz` and `score_error` are proven for the folded weights in float64; `float32_error` is
    measured: how far a single score in float32 is from the trained network's, with a safety factor.
    """
    plain = fold_network(trained.model)
    divisors = [_round_to_9_digits(one) for one in network_divisors(trained.model)]
    proof = prove_bound(deepcopy(plain).double(), divisors)
    data = run.config.data.name
    facts = {
        "schema": SCHEMA,
        "run": describe_run(run, trained.epoch),
        "dataset": data,
        "classes": list(DATASETS[data].classes),
        "lipschitz": proof.lipschitz,
        "score_error": proof.score_error,
        "float32_error": _float32_error(plain, trained.model),
        "layers": describe_layers(plain),
        "divisors": [one.tolist() for one in divisors],
    }
    return ExportedModel(plain, facts)


def _round_to_9_digits(values: Tensor) -> Tensor:
    """Shorten numbers for the file; the bound hardly changes."""
    short = [float(f"{value:.9g}") for value in values.tolist()]
    return torch.tensor(short, dtype=torch.float64)


def _float32_error(plain: nn.Sequential, model: nn.Sequential) -> float:
    probe, exact = _probe_images(), fold_network(model, torch.float64)
    with torch.no_grad():
        return SAFETY * float((plain(probe).double() - exact(probe.double())).abs().max())


def _probe_images() -> Tensor:
    """Return the same random images each time."""
    seeded = torch.Generator().manual_seed(0)
    return torch.randint(256, (PROBES, 3, 32, 32), generator=seeded).float() / 255


def require_packages(form: Format) -> None:
    """Check that the packages that write a format are installed. Raises: ModelError."""
    if missing := _missing_packages(form):
        raise ModelError(
            f"format {form}: needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )


def _missing_packages(form: Format) -> list[str]:
    return [name for name in PACKAGES[form] if find_spec(name) is None]


def write_model_file(model: ExportedModel, form: Format, folder: Path) -> list[Path]:
    """Write a network into an existing folder atomically; return the files.

    Raises: OSError, ModelError if a package is missing.
    """
    require_packages(form)
    file = folder / FILES[form]
    with atomic_path(file) as part:
        WRITERS[form](model, part)
    if form != "safetensors":
        return [file]
    code = folder / "network.py"
    with atomic_path(code) as part:
        shutil.copyfile(network.__file__, part)
    return [file, code]


def _write_safetensors(model: ExportedModel, file: Path) -> None:
    from safetensors.torch import save  # its save_file makes files that only their owner can read

    facts = {network.FACTS: json.dumps(model.facts)}
    file.write_bytes(save(model.network.state_dict(), metadata=facts))


def _write_onnx(model: ExportedModel, file: Path) -> None:
    """Write with the exporter based on `torch.export`; the weights are in the file."""
    program = torch.onnx.export(
        model.network,
        (_probe_images(),),
        dynamo=True,
        input_names=["pixels"],
        output_names=["scores"],
        dynamic_shapes=({0: torch.export.Dim("images")},),
        verbose=False,
    )
    assert program is not None  # noqa: S101 - it is with dynamo=True
    program.model.metadata_props[network.FACTS] = json.dumps(model.facts)
    program.save(file, external_data=False)


WRITERS: dict[Format, Callable[[ExportedModel, Path], None]] = {
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
}


def _enlarges(layer: nn.Module) -> bool:
    """Return whether a convolution enlarges its images.

    A chain of such layers could exhaust any memory.
    """
    if not isinstance(layer, nn.Conv2d) or isinstance(layer.padding, str):
        return False
    return any(
        padding > size // 2 for padding, size in zip(layer.padding, layer.kernel_size, strict=True)
    )


def read_model(path: Path) -> ExportedModel:
    """Return the network of an exported safetensors file, or of a folder with one.

    Raises: ModelError.
    """
    file = path / FILES["safetensors"] if path.is_dir() else path
    if not file.is_file():
        raise ModelError(f"{file}: no such file; `python -m orchestrator export` writes it")
    if file.suffix == ".pt":
        raise ModelError(f"{file}: TorchScript files are not read; export again as safetensors")
    if file.suffix != ".safetensors":
        raise ModelError(f"{file}: is not a .safetensors file; no other format is read")
    if _missing_packages("safetensors"):
        raise ModelError(f"{file}: reading it needs safetensors: pip install safetensors")
    try:
        found = ExportedModel(*network.load(file))
        if len(found.classes) < 2 or not found.divisors:
            raise ModelError(f"{file}: has no classes or no divisors")
        if any(map(_enlarges, found.network)):
            raise ModelError(f"{file}: a convolution pads by more than half its kernel's size")
        return found
    except ModelError:
        raise
    except Exception as error:  # a damaged file raises anything
        reason = first_line(error)
        raise ModelError(f"{file}: is damaged, or `export` did not write it: {reason}") from error
