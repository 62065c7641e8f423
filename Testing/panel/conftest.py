"""The panel in its host, with a phantom in the scene."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from CovidCTDiagnosisLib.ct import Volume
from slicer_host import Host

MODULE = Path(__file__).parents[2] / "CovidCTDiagnosis" / "CovidCTDiagnosis.py"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where pictures of the panel go: COVID_CT_PICTURES, as for those in the README, or nowhere in particular."""
    return Path(os.environ.get("COVID_CT_PICTURES", tmp_path))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Any]:
    """Slicer with an empty scene; its Python has what the analysis needs."""
    hook = sys.excepthook
    made = Host(MODULE, tmp_path / "settings.ini")
    yield made
    sys.excepthook = hook
    assert not made.failures
    for name in [n for n in sys.modules if n.startswith("CovidCTDiagnosisLib.panel")]:
        del sys.modules[name]  # they hold this host's qt


@pytest.fixture
def opened(host: Any, chest_phantom: Callable[..., Volume], tiny_bundle: Path) -> Iterator[Any]:
    """The panel, open on a phantom, with weights that are quick."""
    import slicer
    from CovidCTDiagnosisLib.scene.nodes import add_ct

    host.ct = add_ct(slicer.mrmlScene, chest_phantom(spacing=(4.0, 4.0, 8.0)), "Phantom")
    widget = host.open()
    widget.logic.getParameterNode().bundle = tiny_bundle
    yield host
    host.close()
