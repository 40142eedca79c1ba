"""Whether a stored run is what its key says: a store that came from elsewhere may hold anything."""

from collections.abc import Iterator

from aol.config import FINGERPRINTS, from_dict
from orchestrator.numbers import number_of
from orchestrator.spec import RunSpec
from orchestrator.store import Status, StoredRun

# What damaged or made-up records raise wherever they are evaluated.
HOSTILE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def incoherences(run: StoredRun) -> Iterator[str]:
    """What contradicts what in the record of a run."""
    try:
        config = from_dict(dict(run.config))
        spec = RunSpec(id=run.run_id, name=run.name, profile=run.profile, train=config)
    except HOSTILE as error:
        yield f"its settings are damaged: {error!r}"
        return
    if (spec.key, config.digest(), config.seed) != (run.key, run.digest, run.seed):
        yield f"its settings make it {spec.key}"
    if run.epochs != config.epochs:
        epochs = number_of(run.epochs, "epoch")
        yield f"has {epochs}, its settings say {config.epochs}"
    if run.status is Status.DONE:
        if run.recorded != config.epochs:
            epochs = number_of(config.epochs, "epoch")
            yield f"is done with {run.recorded} of {epochs} recorded"
        if run.data_fingerprint != "{train}-{test}".format(**FINGERPRINTS[config.data.name]):
            yield f"was trained on other images than {config.data.name}"
