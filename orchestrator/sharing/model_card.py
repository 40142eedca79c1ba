"""The model card of an exported network: results, certificate, use and origin."""

import math
from collections.abc import Iterable, Mapping

from aol.catalog import DATASETS
from aol.certification.certificate import LipschitzCertificate
from aol.export.formats import ExportedModel, Format
from orchestrator.analysis.invariants import certificate_violations
from orchestrator.analysis.report import Report
from orchestrator.formatting import format_percent, pluralize
from orchestrator.reporting.markdown import escape
from orchestrator.sharing.export import FinishedRun

METRICS = {
    "accuracy": "Standard accuracy",
    "cra_36": "CRA 36/255",
    "cra_72": "CRA 72/255",
    "cra_108": "CRA 108/255",
    "cra_1": "CRA 1",
}
WITH_SAFETENSORS = """\
import numpy
import torch
from network import load  # the file beside the weights
from PIL import Image

network, facts = load("network.safetensors")

pixels = torch.from_numpy(numpy.array(Image.open("image.png").convert("RGB")))  # 32 x 32
with torch.no_grad():
    scores = network.double()(pixels.permute(2, 0, 1)[None].double() / 255)[0]
(first, second), classes = scores.topk(2)
gap = float(first - second) - 2**0.5 * facts["score_error"]
radius = max(0.0, gap / (2**0.5 * facts["lipschitz"]))
print(facts["classes"][classes[0]], radius)
"""
WITH_ONNX = """\
import json

import numpy
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("network.onnx", providers=["CPUExecutionProvider"])
facts = json.loads(session.get_modelmeta().custom_metadata_map["aol"])
pixels = numpy.array(Image.open("image.png").convert("RGB"), numpy.float32)  # 32 x 32
(scores,) = session.run(None, {"pixels": pixels.transpose(2, 0, 1)[None] / 255})[0]
second, first = numpy.sort(scores)[-2:].astype(float)
radius = max(0.0, (first - second - 4 * facts["float32_error"]) / 2**0.5)
print(facts["classes"][scores.argmax()], radius)
"""
SNIPPETS: dict[Format, str] = {"safetensors": WITH_SAFETENSORS, "onnx": WITH_ONNX}
NEEDS: dict[Format, str] = {
    "safetensors": "`network.safetensors` needs torch, safetensors, numpy and Pillow; `network.py` "
    "beside it builds the network.",
    "onnx": "`network.onnx` needs onnxruntime, numpy and Pillow. It computes in float32, whose "
    "error was measured on random images and multiplied by ten (`float32_error`), not proven.",
}


def render_card(
    finished: FinishedRun,
    model: ExportedModel,
    forms: Iterable[Format],
    digests: Mapping[str, str],
    report: Report | None,
) -> str:
    """Return the card in markdown; `report` has the published values, None without a store.

    `digests` are the SHA-256 of the files by name.
    """
    lines = [
        *_introduction(finished, model, report),
        *_measured(finished),
        *(_compared(finished.run.id, report) if report else []),
        *_certificate(finished, model),
        *["## Use", ""],
        *(
            line
            for form in forms
            for line in (NEEDS[form], "", f"```python\n{SNIPPETS[form]}```", "")
        ),
        *_origin(finished, digests),
        *["## Licence", ""],
        "MIT, as aol-orchestrator. The images it was trained on are not part of it and have terms "
        "of their own.",
        "",
    ]
    return "\n".join(lines)


def _introduction(finished: FinishedRun, model: ExportedModel, report: Report | None) -> list[str]:
    """Return the lines that name the run, the input and the output."""
    run, data = finished.run, finished.run.train.data
    numbers = sum(item.numel() for item in model.network.state_dict().values())
    note = report.experiment.note if report else ""
    return [
        f"# {escape(run.name)} on {data.name}",
        "",
        "A classifier of 32 x 32 RGB images whose answers carry a certified radius: run "
        f"{run.id} of the profile `{run.profile}`, seed {run.train.seed}, trained for "
        f"{pluralize(run.train.epochs, 'epoch')} by aol-orchestrator, which reproduces "
        "*Almost-Orthogonal Layers for Efficient General-Purpose Lipschitz Networks* (B. Prach, "
        "C. H. Lampert, ECCV 2022, arXiv:2208.03160).",
        "",
        *([f"> **{escape(note)}**", ""] if note else []),
        f"The rescaled weights are folded in: {len(model.divisors)} plain convolutions and dense "
        f"layers in float32, {numbers:,} numbers. Pixels in [0, 1] as (N, 3, 32, 32) give "
        f"{data.classes} scores per image; a change of the image of L2 norm r moves the gap "
        "between two scores by √2 · r at most.",
        "",
    ]


def _measured(finished: FinishedRun) -> list[str]:
    """Return the table of this network's own metrics."""
    data = finished.run.train.data
    return [
        "## Measured",
        "",
        f"Percent of {data.test_images:,} test images. CRA ε: certified robust accuracy, the share "
        "of images that no change of L2 norm ε can turn wrong.",
        "",
        "| | this network |",
        "|:--|--:|",
        *(
            f"| {title} | {format_percent(100 * finished.values[name])} |"
            for name, title in METRICS.items()
            if name in finished.values
        ),
        "",
    ]


def _compared(run_id: int, report: Report) -> list[str]:
    """Return the run's cells in the paper's tables with their verdicts, over all finished seeds.

    There are none if the profile is not comparable with the paper.
    """
    judged = [report.verdicts[cell] for cell in report.cells if cell.run == run_id]
    if not judged or not report.experiment.comparable:
        return []
    lines = [
        "## Beside the published values",
        "",
        "Over all finished seeds of the run, differences in percentage points with their 95 % "
        "interval.",
        "",
        "| table | row | column | published | measured | seeds | difference | verdict |",
        "|:--|:--|:--|--:|--:|--:|--:|:--|",
    ]
    for one in judged:
        cell = one.cell
        difference = format_percent(cell.difference, signed=True)
        if one.interval:
            low, high = (format_percent(end, signed=True) for end in one.interval)
            difference += f" [{low}, {high}]"
        lines.append(
            f"| {cell.table} | {escape(cell.row)} | {escape(cell.column)} | "
            f"{format_percent(cell.published)} | {format_percent(cell.measured)} | {cell.seeds} | "
            f"{difference} | {one.verdict} |"
        )
    return [*lines, ""]


def _certificate(finished: FinishedRun, model: ExportedModel) -> list[str]:
    """Return the certificate of the run and the bounds proven for the weights in the file."""
    facts = model.facts
    return [
        *["## Certificate", ""],
        *[_certified_pass(finished), ""],
        "The folded weights were rounded to float32. For them as they are in the file, a Lipschitz "
        f"bound of {facts['lipschitz']:.12g} is proven, and that scores computed in float64 are "
        f"within {facts['score_error']:.2g} (L2) of the exact ones:",
        "",
        "    radius = (top score - second score - √2 · score_error) / (√2 · lipschitz)",
        "",
    ]


def _certified_pass(finished: FinishedRun) -> str:
    """Return the recorded certificate in a sentence, its violations derived anew."""
    record = finished.certificate
    if not record:
        return "There is no record of the certified pass after training."
    found = "; ".join(certificate_violations(record, finished.run.train.model)) or "none"
    try:
        certificate = LipschitzCertificate.from_dict(record)
    except ValueError:
        return f"The record of the certified pass after training is damaged. Violations: {found}."
    arithmetic = escape(str(record.get("arithmetic", "unknown arithmetic")))
    highest = max((layer.upper for layer in certificate.layers), default=math.nan)
    return (
        f"After training, the certified pass in {arithmetic}. "
        f"Proven: no layer stretches a difference by more than {highest:.9g}, the network by no "
        f"more than {certificate.upper:.9g}. The largest stretch that a search found: "
        f"{certificate.ratio:.6g}. Violations: {found}."
    )


def _origin(finished: FinishedRun, digests: Mapping[str, str]) -> list[str]:
    """Return the table of the network's origin and of its files."""
    run, parts = finished.run, DATASETS[finished.run.train.data.name].fingerprints
    packages = ", ".join(f"{name} {version}" for name, version in finished.packages.items())
    facts = {
        "run": f"`{run.key}`",
        "data": f"{run.train.data.name}, fingerprints {parts['train']} and {parts['test']}",
        "commit": escape(finished.commit or "unknown"),
        "packages": escape(packages or "unknown"),
        "device": escape(finished.device or "unknown"),
        "finished": escape(finished.finished_at or "unknown"),
        **{f"`{name}`": f"SHA-256 {digest}" for name, digest in digests.items()},
    }
    rows = [f"| {name} | {value} |" for name, value in facts.items()]
    return ["## Origin", "", "| | |", "|:--|:--|", *rows, ""]
