"""The panel in its host, with a phantom in the scene."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from CovidCTDiagnosisLib.ct import Volume

HERE = Path(__file__).parent
MODULE = HERE.parents[1] / "CovidCTDiagnosis" / "CovidCTDiagnosis.py"


def _load_host() -> Any:
    """A module beside this file: the folder is no package, so that Slicer cannot import it."""
    spec = importlib.util.spec_from_file_location("slicer_host", HERE / "slicer_host.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["slicer_host"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where pictures of the panel go: COVID_CT_PICTURES, as for those in the README, or nowhere in particular."""
    return Path(os.environ.get("COVID_CT_PICTURES", tmp_path))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Any]:
    """Slicer with an empty scene; its Python has what the analysis needs."""
    hook = sys.excepthook
    made = _load_host().Host(MODULE, tmp_path / "settings.ini")
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
