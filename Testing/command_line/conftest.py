"""Scans for the command line, and the command line itself in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from CovidCTDiagnosisLib.ct import Volume, write_image

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def scan(chest_phantom: Callable[..., Volume], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small chest CT."""
    path = tmp_path_factory.mktemp("scan") / "chest.nii.gz"
    write_image(chest_phantom(spacing=(5.0, 5.0, 5.0)), path)
    return path


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head: brain, skull, air-filled sinuses, room air."""
    k, j, i = np.meshgrid(*(np.linspace(-100, 100, 50),) * 3, indexing="ij")
    radius = np.sqrt((i / 75) ** 2 + (j / 90) ** 2 + (k / 95) ** 2)
    hu = np.where(radius < 1, 1000.0, -1000.0)
    hu[radius < 0.92] = 35
    hu[(i / 15) ** 2 + ((j + 60) / 12) ** 2 + ((k + 40) / 15) ** 2 < 1] = -1000
    hu += np.random.default_rng(0).normal(0, 8, hu.shape)
    path = tmp_path_factory.mktemp("head") / "head.nii.gz"
    write_image(Volume(np.rint(hu).astype(np.int16), (4.0, 4.0, 4.0)), path)
    return path


@pytest.fixture(scope="session")
def start() -> Start:
    """Start `python -m CovidCTDiagnosisLib …`; output is text."""

    def begin(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "CovidCTDiagnosisLib", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        # A process that a shell started in the background ignores Ctrl-C, and so would its children.
        return subprocess.Popen(
            [sys.executable, "-c", _LISTEN_TO_CTRL_C, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=environment,
        )

    return begin


_LISTEN_TO_CTRL_C = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)
