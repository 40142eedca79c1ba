"""Finished runs for the tests of the report."""

import sqlite3
from dataclasses import replace

import numpy as np

from aol.certification.certificate import TOLERANCE, LayerBound, LipschitzCertificate
from aol.certification.singular_values import BINS, Spectrum
from aol.models.flops import layers_of
from orchestrator.analysis.margins import certified_share
from orchestrator.spec.fields import RADII
from orchestrator.store import Status
from tests.support.stores import ORIGIN

PATCH = """\
diff --git a/aol/x.py b/aol/x.py
--- a/aol/x.py
+++ b/aol/x.py
@@ -1 +1,2 @@
-old
+new
+more
"""


def certificate(run, *, spectra=False):
    """
    Return the certificate of a sound run as it is stored, with singular values or without.
    """
    layers = [LayerBound(f"layer {n}", 1.0, 0.9) for n, _ in enumerate(layers_of(run.train.model))]
    found = LipschitzCertificate(tuple(layers), ratio=0.5, score_error=1e-12, tolerance=TOLERANCE)
    record = {"arithmetic": "float64", **found.as_dict()}
    if spectra:
        shares = (0.0,) * (BINS - 1) + (1.0,)
        values = [Spectrum(layer.name, 8, exact=True, shares=shares).as_dict() for layer in layers]
        record["singular_values"] = {"start": values, "trained": values, "jacobian": values[0]}
    return record


def damage_margins(store, length):
    """
    Truncate the margins of every run to so many bytes.
    """
    with sqlite3.connect(store.url.database) as connection:
        sql = 'UPDATE margins SET "values" = substr("values", 1, ?)'
        assert connection.execute(sql, [length]).rowcount
    connection.close()


def finish(store, run, shift, origin=ORIGIN, *, spectra=False):
    margins = np.linspace(-1, 3, 100, dtype="<f4") + np.float32(shift)
    store.queue([run])
    store.start(run, origin)
    for epoch in range(1, run.train.epochs + 1):
        rate = 0.1 if epoch < run.train.epochs else 0.01
        values = {name: certified_share(margins, radius) for name, radius in RADII.items()}
        store.record(run.key, epoch, values | {"train_loss": 1 / epoch, "learning_rate": rate})
    found = certificate(run, spectra=spectra)
    store.finish(run.key, Status.DONE, margins=margins.tobytes(), certificate=found)


def finish_with_margins(store, run, margins, status=Status.DONE):
    store.queue([run])
    store.start(run, ORIGIN)
    store.finish(run.key, status, margins=np.asarray(margins, "<f4").tobytes())


def replicate_of(run, number):
    """
    Return the replicate of a run with this number.
    """
    return run.model_copy(update={"train": replace(run.train, seed=run.replicate_seed(number))})
