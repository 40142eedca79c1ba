"""The figure of a run's singular values: layer by layer at the start and after training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aol.certification.singular_values import BINS, NEARLY, Spectrum, share_nearly_orthogonal
from orchestrator.reporting.figures.style import GREY, SMALL_FONT, plain_text
from orchestrator.store import StoredRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def singular_values(run: StoredRun, note: str) -> "Figure | None":
    """Return the distribution per layer, and that of the network's Jacobian.

    None if they were not measured, or their record is damaged.
    """
    try:
        record = (run.certificate or {})["singular_values"]
        start, trained = (
            [Spectrum.from_dict(one) for one in record[when]] for when in ("start", "trained")
        )
        jacobian = Spectrum.from_dict(record["jacobian"])
    except (KeyError, TypeError, ValueError):
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 1.8 + 0.12 * len(trained)), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    title = f"Singular values: run {run.run_id} {run.name}, seed {run.seed}"
    lines = [title, note] if note else [title]
    figure.suptitle("\n".join(map(plain_text, lines)), fontsize=9)
    for panel, spectra, when in zip(
        axes, (start, trained), ("at the start", "trained"), strict=False
    ):
        share = 100 * share_nearly_orthogonal(spectra)
        _draw_layers(panel, spectra, f"layers {when}: {share:.0f} % above {NEARLY:g}")
    _draw_jacobian(axes[2], jacobian)
    return figure


def _draw_layers(axes: "Axes", spectra: Sequence[Spectrum], title: str) -> None:
    axes.imshow(
        [one.shares for one in spectra],
        extent=(0, 1, len(spectra), 0),
        aspect="auto",
        cmap="Blues",
        vmin=0,
        vmax=0.5,
        interpolation="nearest",
    )
    axes.axvline(NEARLY, color=GREY, linestyle=":", linewidth=1)
    axes.set_title(title, fontsize=8)
    axes.set_yticks(
        [row + 0.5 for row in range(len(spectra))],
        [plain_text(one.name) for one in spectra],
        fontsize=SMALL_FONT - 2,
    )
    axes.set(xlabel="singular value")
    axes.grid(visible=False)


def _draw_jacobian(axes: "Axes", jacobian: Spectrum) -> None:
    lefts = [place / BINS for place in range(BINS)]
    axes.bar(lefts, [100 * share for share in jacobian.shares], width=1 / BINS, align="edge")
    axes.axvline(NEARLY, color=GREY, linestyle=":", linewidth=1)
    share = 100 * jacobian.nearly_orthogonal
    axes.set_title(f"Jacobian at test images: {share:.0f} % above {NEARLY:g}", fontsize=8)
    axes.set(xlabel="singular value", ylabel="share (%)", xlim=(0, 1))
