import numpy as np
import pytest
import torch

from orchestrator.scheduling import faults
from orchestrator.scheduling.faults import FaultKind, find_fault, find_gpu_problem
from tests.support.faulty import CUDA_MEMORY

ECC = "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be ..."


def raised(action):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        action()
    return caught.value


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.AcceleratorError(ECC), FaultKind.GPU),
        (RuntimeError("Found no NVIDIA driver on your system."), FaultKind.GPU),
        (RuntimeError("No CUDA GPUs are available"), FaultKind.GPU),
        (AssertionError("Torch not compiled with CUDA enabled"), FaultKind.GPU),
        (torch.OutOfMemoryError(CUDA_MEMORY), FaultKind.MEMORY),
        (RuntimeError("CUDA error: out of memory"), FaultKind.MEMORY),
        (MemoryError(), FaultKind.MEMORY),
        (OSError(12, "Cannot allocate memory"), FaultKind.MEMORY),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), None),
        (RuntimeError("shapes cannot be multiplied"), None),
        (KeyError("width"), None),
    ],
)
def test_faults_of_machines_are_told_apart_from_errors_of_runs(error, kind):
    fault = find_fault(error)

    assert (fault and fault.kind) == kind


def test_the_amounts_of_memory_are_those_of_the_allocators():
    assert (
        "20.00 GiB needed, 1.50 GiB of the GPU free"
        in find_fault(torch.OutOfMemoryError(CUDA_MEMORY)).text
    )
    host = find_fault(raised(lambda: torch.empty(10**14))).text
    assert "400000000000000 bytes needed" in host
    assert host.endswith("GiB of the host free")
    assert "728. TiB needed" in find_fault(raised(lambda: np.empty(10**14))).text


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("print(2)", None),
        ("print(1)", "Ray was started with 2 GPUs, but torch finds 1"),
        ("raise RuntimeError('CUDA error: ECC')", "its GPUs do not work: RuntimeError: CUDA error"),
        ("import os; os.kill(os.getpid(), 9)", "its GPUs do not work: exit code -9"),
        ("import time; time.sleep(60)", "its GPUs did not multiply within"),
    ],
)
def test_gpus_that_do_not_work_are_a_problem_of_the_machine(monkeypatch, script, problem):
    monkeypatch.setattr(faults, "SMOKE_TEST", script)
    monkeypatch.setattr(faults, "SMOKE_TIMEOUT_S", 60.0 if "sleep" not in script else 0.1)

    found = find_gpu_problem(2.0)

    assert found == problem if problem is None else found.startswith(problem)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_gpus_does_not_train_on_any():
    assert find_gpu_problem(1.0) == "Ray was started with 1 GPU, but torch finds 0"
