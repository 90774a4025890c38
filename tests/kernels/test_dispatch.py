"""Which path is taken, and that the package stands without triton."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from ostlight_kernels import dispatch, explain_dispatch


def test_a_cpu_tensor_takes_the_reference() -> None:
    path = explain_dispatch(torch.zeros(1))
    assert path.name == "reference"
    assert str(path) == "reference: the tensors are on cpu"


def test_float64_takes_the_reference() -> None:
    assert explain_dispatch(torch.zeros(1, dtype=torch.float64)).reason.startswith("the kernels accumulate in fp32")


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.SWITCH, "reference")
    assert explain_dispatch(torch.zeros(1)).reason == "OSTLIGHT_KERNELS=reference"
    monkeypatch.setenv(dispatch.SWITCH, "triton")
    with pytest.raises(ValueError, match="OSTLIGHT_KERNELS: got 'triton', takes 'reference' or nothing"):
        explain_dispatch(torch.zeros(1))


def run(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_triton_the_reference_works() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from ostlight_kernels import explain_dispatch, grad_dots\n"
        "print(explain_dispatch(torch.zeros(1)))\n"
        "print(grad_dots(*(torch.ones(1, 2, 3),) * 2, torch.ones(1, 3, 3)).item())"
    )
    assert run(program).splitlines() == ["reference: triton is not installed", "18.0"]


def test_the_interpreter_is_taken_where_it_can_count() -> None:
    program = (
        "import torch; from ostlight_kernels import explain_dispatch, grad_dots\n"
        "print(explain_dispatch(torch.zeros(1)).name, explain_dispatch(torch.zeros(1).bfloat16()).name)\n"
        "print(grad_dots(*(torch.ones(1, 2, 3),) * 2, torch.ones(1, 3, 3)).item())"
    )
    assert run(program, TRITON_INTERPRET="1").splitlines() == ["triton reference", "18.0"]


def test_only_torch_and_triton_are_imported() -> None:
    program = (
        "import torch, triton, sys; before = {m.split('.')[0] for m in sys.modules}\n"
        "import ostlight_kernels; after = {m.split('.')[0] for m in sys.modules}\n"
        "print(*sorted(after - before - set(sys.stdlib_module_names)))"
    )
    assert run(program) == "ostlight_kernels"
