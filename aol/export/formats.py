"""Networks as files that need nothing of this program, and such files read back.

    network.safetensors   weights; with a copy of `aol/network.py` beside it as network.py
    network.pt            TorchScript, for `torch.jit.load`
    network.onnx          for any ONNX runtime; batches of any size

Each carries, as JSON, what is known of the network: see `exported`.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from aol.export.checkpoint import TrainedNetwork, describe_run
from aol.export.folding import describe_layers, fold_network, network_divisors
from aol.layers import plain as network
from aol.training.run_folder import Run

Format = Literal["safetensors", "torchscript", "onnx"]
FILES: dict[Format, str] = {
    "safetensors": "network.safetensors",
    "torchscript": "network.pt",
    "onnx": "network.onnx",
}
PACKAGES: dict[Format, tuple[str, ...]] = {
    "safetensors": ("safetensors",),
    "torchscript": (),
    "onnx": ("onnx", "onnxscript"),
}
SCHEMA = 1  # of the facts; a change that a reader would stumble over is another number
FACTS_FILE = "aol.json"  # in a TorchScript archive
AGREE = 1e-9  # a TorchScript file's code and its description, in float64
PROBES, SAFETY = 16, 10  # images, and what their largest error is multiplied by


@dataclass(frozen=True)
class Exported:
    """A plain float32 network and what is known of it, as plain values."""

    network: nn.Sequential
    facts: dict[str, Any]

    @property
    def divisors(self) -> list[Tensor]:
        """Numbers that make the bound of each layer with weights tight; they prove nothing."""
        return [torch.tensor(one, dtype=torch.float64) for one in self.facts["divisors"]]

    @property
    def classes(self) -> list[str]:
        """What the classes are called, in the order of the scores."""
        return [str(name) for name in self.facts["classes"]]


def export_network(trained: TrainedNetwork, run: Run) -> Exported:
    """A run's network, folded, with its facts.

    `lipschitz` and `score_error` are proven for the folded weights in float64; `float32_error` is
    measured: how far a single score in float32 is from the trained network's, with a safety factor.
    """
    plain = fold_network(trained.model)
    hints = [_short(one) for one in network_divisors(trained.model)]
    proof = prove_bound(deepcopy(plain).double(), hints)
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
        "divisors": [one.tolist() for one in hints],
    }
    return Exported(plain, facts)


def _short(values: Tensor) -> Tensor:
    """With nine digits, which a bound hardly notices."""
    short = [float(f"{value:.9g}") for value in values.tolist()]
    return torch.tensor(short, dtype=torch.float64)


def _float32_error(plain: nn.Sequential, model: nn.Sequential) -> float:
    probe, exact = _probe(), fold_network(model, torch.float64)
    with torch.no_grad():
        return SAFETY * float((plain(probe).double() - exact(probe.double())).abs().max())


def _probe() -> Tensor:
    """The same random images each time."""
    seeded = torch.Generator().manual_seed(0)
    return torch.randint(256, (PROBES, 3, 32, 32), generator=seeded).float() / 255


def require_packages(form: Format) -> None:
    """Raises: ModelError if a package that writes this format is missing."""
    if missing := _missing_packages(form):
        raise ModelError(
            f"format {form}: needs {' and '.join(missing)}: pip install {' '.join(missing)}, "
            "or choose the format torchscript, which needs torch alone"
        )


def _missing_packages(form: Format) -> list[str]:
    return [name for name in PACKAGES[form] if find_spec(name) is None]


def write_model_file(model: Exported, form: Format, folder: Path) -> list[Path]:
    """Write a network into an existing folder, aside and then renamed; returns the files.

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


def _write_safetensors(model: Exported, file: Path) -> None:
    from safetensors.torch import save  # its save_file leaves files that their owner alone reads

    facts = {network.FACTS: json.dumps(model.facts)}
    file.write_bytes(save(model.network.state_dict(), metadata=facts))


def _write_torchscript(model: Exported, file: Path) -> None:
    with _torchscript():
        scripted = torch.jit.script(model.network)
        torch.jit.save(scripted, file, _extra_files={FACTS_FILE: json.dumps(model.facts)})


def _write_onnx(model: Exported, file: Path) -> None:
    """By the exporter that follows `torch.export`; weights are in the file."""
    program = torch.onnx.export(
        model.network,
        (_probe(),),
        dynamo=True,
        input_names=["pixels"],
        output_names=["scores"],
        dynamic_shapes=({0: torch.export.Dim("images")},),
        verbose=False,
    )
    assert program is not None  # noqa: S101 - it is with dynamo=True
    program.model.metadata_props[network.FACTS] = json.dumps(model.facts)
    program.save(file, external_data=False)


WRITERS: dict[Format, Callable[[Exported, Path], None]] = {
    "safetensors": _write_safetensors,
    "torchscript": _write_torchscript,
    "onnx": _write_onnx,
}


def read_model(path: Path) -> Exported:
    """The network of an exported TorchScript or safetensors file, or of a folder with the latter.

    Raises: ModelError.
    """
    file = path / FILES["safetensors"] if path.is_dir() else path
    if not file.is_file():
        raise ModelError(f"{file}: no such file; a model is what `export` wrote")
    if file.suffix not in (".pt", ".safetensors"):
        raise ModelError(f"{file}: is no .pt or .safetensors file, which alone can be read back")
    if file.suffix == ".safetensors" and _missing_packages("safetensors"):
        raise ModelError(f"{file}: reading it needs safetensors: pip install safetensors")
    try:
        read_it = _read_torchscript if file.suffix == ".pt" else network.load
        found = Exported(*read_it(file))
        if len(found.classes) < 2 or not found.divisors:
            raise ModelError(f"{file}: does not say its classes and divisors")
        return found
    except ModelError:
        raise
    except Exception as error:  # what is no such file raises anything
        reason = first_line(error)
        raise ModelError(f"{file}: is damaged, or `export` did not write it: {reason}") from error


def _read_torchscript(file: Path) -> tuple[nn.Sequential, dict[str, Any]]:
    """The described network with the file's weights, if the file's code computes the same."""
    extra = {FACTS_FILE: ""}
    with _torchscript():
        scripted = torch.jit.load(file, map_location="cpu", _extra_files=extra)
    facts = json.loads(extra[FACTS_FILE])
    described = network.build(facts["layers"])
    described.load_state_dict(scripted.state_dict())
    probe = _probe().double()
    with torch.no_grad():
        apart = described.double()(probe) - scripted.double()(probe)
    if not float(apart.abs().max()) <= AGREE:
        raise ModelError(f"{file}: its code does not compute the network that it describes")
    return described.float(), facts


@contextmanager
def _torchscript() -> Iterator[None]:
    """Without torch's word that TorchScript is deprecated.

    It is, and still the only format that torch itself opens without any code of ours:
    `torch.export` promises no more about its files than that the same version reads them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        yield
