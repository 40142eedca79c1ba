import subprocess
import sys

import orchestrator
from aol.errors import AOLError, CheckpointError, DataError, ModelError
from orchestrator.errors import OrchestratorError


def test_one_public_base_catches_the_errors_of_both_packages():
    assert orchestrator.AOLError is AOLError
    for error in (OrchestratorError, CheckpointError, DataError, ModelError):
        assert issubclass(error, AOLError)


def test_every_public_name_can_be_imported():
    assert sorted(orchestrator.__all__) == orchestrator.__all__ == list(orchestrator._MODULES)
    done = subprocess.run([sys.executable, "-c", "from orchestrator import *"], check=False)

    assert done.returncode == 0
