"""A small stand-in for Slicer around the real module: the real .ui file in PySide6, the real MRML scene.

Widgets behave as PythonQt shows them, so that what passes here passes in Slicer: a Qt property is an attribute and
cannot be called, everything else is a method, signals connect by signature, and an unknown attribute is an error.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import sys
import time
import typing
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "xcb;offscreen")

import numpy as np
import slicer
import vtk
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets
from slicer_views import DrawnSliceView, DrawnThreeDView

# Qt in PythonQt's manner


class Shown:
    """A Qt object as PythonQt shows it."""

    def __init__(self, wrapped: QtCore.QObject) -> None:
        object.__setattr__(self, "_wrapped", wrapped)

    def __getattr__(self, name: str) -> Any:
        wrapped = self._wrapped
        if name == "name":
            return wrapped.objectName()
        if wrapped.metaObject().indexOfProperty(name) >= 0:
            return wrapped.property(name)
        found = getattr(wrapped, name)  # AttributeError where Qt has no such name
        if isinstance(found, QtCore.SignalInstance):
            return found
        return lambda *arguments: show(found(*(hidden(argument) for argument in arguments)))

    def __setattr__(self, name: str, value: Any) -> None:
        if self._wrapped.metaObject().indexOfProperty(name) < 0:
            raise AttributeError(f"{type(self._wrapped).__name__} has no property {name}")
        self._wrapped.setProperty(name, value)

    def connect(self, signature: str, slot: Callable[..., Any]) -> bool:
        """As in ``button.connect("clicked(bool)", slot)``; the arguments named are those handed over."""
        name, _, rest = signature.partition("(")
        count = len([part for part in rest.rstrip(")").split(",") if part])
        getattr(self._wrapped, name).connect(lambda *arguments: slot(*arguments[:count]))
        return True

    def children(self) -> list[Any]:
        return [show(child) for child in self._wrapped.children()]


def show(value: Any) -> Any:
    return Shown(value) if isinstance(value, QtCore.QObject) else value


def hidden(value: Any) -> Any:
    return value._wrapped if isinstance(value, Shown) else value


class _Qt(ModuleType):
    """``import qt``: Qt's classes, made as PythonQt shows them."""

    def __getattr__(self, name: str) -> Any:
        for module in () if name.startswith("__") else (QtWidgets, QtCore):
            if hasattr(module, name):
                found = getattr(module, name)
                return lambda *arguments: show(found(*(hidden(argument) for argument in arguments)))
        raise AttributeError(name)


# Widgets of Slicer and CTK


class NodeFilter(QtCore.QObject):
    """Which of the nodes are not shown."""

    changed = QtCore.Signal()

    def __init__(self, parent: QtCore.QObject) -> None:
        super().__init__(parent)
        self._hidden: list[str] = []

    def _hide(self, ids: list[str]) -> None:
        if self._hidden != list(ids):
            self._hidden = list(ids)
            self.changed.emit()

    hiddenNodeIDs = QtCore.Property("QStringList", lambda self: self._hidden, _hide)


class NodeComboBox(QtWidgets.QComboBox):
    """The scene's nodes of some classes."""

    nodeChanged = QtCore.Signal()

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._types: list[str] = []
        self._none, self._scene = False, None
        self._filter = NodeFilter(self)
        self._filter.changed.connect(self._fill)
        self.currentIndexChanged.connect(lambda index: self.nodeChanged.emit())

    nodeTypes = QtCore.Property("QStringList", lambda self: self._types, lambda self, types: self._set_types(types))
    noneEnabled = QtCore.Property(bool, lambda self: self._none, lambda self, none: setattr(self, "_none", none))
    hideChildNodeTypes = QtCore.Property("QStringList", lambda self: [], lambda self, types: None)
    addEnabled = QtCore.Property(bool, lambda self: False, lambda self, enabled: None)
    removeEnabled = QtCore.Property(bool, lambda self: False, lambda self, enabled: None)

    def _set_types(self, types: list[str]) -> None:
        self._types = list(types)

    def sortFilterProxyModel(self) -> NodeFilter:
        return self._filter

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene
        for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent):
            scene.AddObserver(event, lambda *_: self._fill())
        scene.AddObserver(scene.EndImportEvent, lambda *_: self._fill_as_read())
        self._fill()

    def _fill_as_read(self) -> None:
        """As Slicer does after a scene was read: all rows go and come again, and the first one is chosen."""
        self._fill()
        self.setCurrentIndex(-1)
        self.setCurrentIndex(0 if self.count() else -1)

    def _fill(self) -> None:
        chosen = self.currentData()
        self.blockSignals(True)
        self.clear()
        if self._none:
            self.addItem("None", "")
        for index in range(self._scene.GetNumberOfNodes()):
            node = self._scene.GetNthNode(index)
            if node.GetClassName() in self._types and node.GetID() not in self._filter.hiddenNodeIDs:
                self.addItem(node.GetName(), node.GetID())
        self.setCurrentIndex(self.findData(chosen) if chosen else (0 if self._none else -1))
        self.blockSignals(False)
        if self.currentData() != chosen:
            self.nodeChanged.emit()

    def currentNode(self) -> Any:
        return self._scene.GetNodeByID(self.currentData()) if self.currentData() else None

    def setCurrentNode(self, node: Any) -> None:
        self.setCurrentIndex(-1 if node is None and not self._none else self.findData(node.GetID() if node else ""))


class SceneWidget(QtWidgets.QWidget):
    """Hands its scene to the widgets in it."""

    def setMRMLScene(self, scene: Any) -> None:
        for child in self.findChildren(NodeComboBox):
            child.setMRMLScene(scene)


class CollapsibleButton(QtWidgets.QGroupBox):
    text = QtCore.Property(str, QtWidgets.QGroupBox.title, QtWidgets.QGroupBox.setTitle)
    collapsed = QtCore.Property(bool, lambda self: self.isHidden(), lambda self, hide: None)


class SliderWidget(QtWidgets.QDoubleSpinBox):
    """A number; the slider is of no matter to the module."""


class PathLineEdit(QtWidgets.QLineEdit):
    currentPath = QtCore.Property(str, QtWidgets.QLineEdit.text, QtWidgets.QLineEdit.setText)


WIDGETS = {
    "qMRMLWidget": SceneWidget,
    "qMRMLNodeComboBox": NodeComboBox,
    "ctkCollapsibleButton": CollapsibleButton,
    "ctkSliderWidget": SliderWidget,
    "ctkPathLineEdit": PathLineEdit,
}


def load_ui(path: str) -> Shown:
    """The real .ui file; a widget class that is neither Qt's nor one of ``WIDGETS`` fails."""
    loader = QtUiTools.QUiLoader()
    for name, made in WIDGETS.items():
        made.__name__ = name
        loader.registerCustomWidget(made)
    widget = loader.load(path)
    if widget is None:
        raise RuntimeError(loader.errorString())
    return Shown(widget)


def child_widgets(widget: Shown) -> SimpleNamespace:
    found = widget._wrapped.findChildren(QtWidgets.QWidget)
    return SimpleNamespace(**{child.objectName(): Shown(child) for child in found if child.objectName()})


# Slicer's Python


class _Choice:
    def __init__(self, choices: list[str]) -> None:
        self.choices = choices


class _WithinRange:
    def __init__(self, minimum: float, maximum: float) -> None:
        self.minimum, self.maximum = minimum, maximum


def parameter_node_wrapper(made: type) -> type:
    """Attributes of the class become parameters of a MRML node, and connect to widgets by ``SlicerParameterName``."""
    hints = typing.get_type_hints(made, include_extras=True)

    class Wrapper:
        def __init__(self, node: Any) -> None:
            object.__setattr__(self, "parameterNode", node)
            for name, hint in hints.items():
                if not _node_classes(hint) and not node.GetParameter(name):
                    node.SetParameter(name, str(getattr(made, name)))

        def __getattr__(self, name: str) -> Any:
            if name not in hints:
                return getattr(self.parameterNode, name)
            kind, node = _plain_type(hints[name]), self.parameterNode
            if _node_classes(hints[name]):
                return node.GetNodeReference(name)
            text = node.GetParameter(name)
            return getattr(made, name) if not text else (text == "True" if kind is bool else kind(text))

        def __setattr__(self, name: str, value: Any) -> None:
            if name not in hints:
                raise AttributeError(name)
            _check(hints[name], value)
            if _node_classes(hints[name]):
                self.parameterNode.SetNodeReferenceID(name, value.GetID() if value else None)
                self.parameterNode.Modified()
            else:
                self.parameterNode.SetParameter(name, str(value))

        def connectGui(self, ui: SimpleNamespace) -> list[Any]:
            bound = {
                shown._wrapped.property("SlicerParameterName"): shown._wrapped
                for shown in vars(ui).values()
                if shown._wrapped.property("SlicerParameterName")
            }
            assert set(bound) == set(hints), set(bound) ^ set(hints)
            return [_bind(self, name, widget, hints[name]) for name, widget in bound.items()]

        def disconnectGui(self, bound: list[Any]) -> None:
            for disconnect in bound:
                disconnect()

    return Wrapper


def _plain_type(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def _node_classes(hint: Any) -> list[str]:
    """Names of a hint's node classes (one, or ``typing.Union`` of some and None), each of which Slicer makes."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) is typing.Union else (_plain_type(hint),)
    return [kind().GetClassName() for kind in kinds if kind.__name__.startswith("vtkMRML")]


def _check(hint: Any, value: Any) -> None:
    classes = _node_classes(hint)
    if classes and value is not None and not any(value.IsA(name) for name in classes):
        raise TypeError(value.GetClassName())
    for rule in getattr(hint, "__metadata__", ()):
        if isinstance(rule, _Choice) and value not in rule.choices:
            raise ValueError(value)
        if isinstance(rule, _WithinRange) and not rule.minimum <= value <= rule.maximum:
            raise ValueError(value)


def _bind(wrapper: Any, name: str, widget: Any, hint: Any) -> Callable[[], None]:
    """Both ways; returns what ends it."""
    signal, get, put = _ways(widget, hint)

    def to_node(*_: Any) -> None:
        setattr(wrapper, name, get())

    def to_widget(*_: Any) -> None:
        widget.blockSignals(True)
        put(getattr(wrapper, name))
        widget.blockSignals(False)

    to_widget()
    signal.connect(to_node)
    tag = wrapper.parameterNode.AddObserver("ModifiedEvent", to_widget)

    def disconnect() -> None:
        signal.disconnect(to_node)
        wrapper.parameterNode.RemoveObserver(tag)

    return disconnect


def _ways(widget: Any, hint: Any) -> tuple[Any, Callable[[], Any], Callable[[Any], None]]:
    if isinstance(widget, NodeComboBox):
        widget.nodeTypes = _node_classes(hint)
        return widget.nodeChanged, widget.currentNode, widget.setCurrentNode
    if isinstance(widget, QtWidgets.QCheckBox):
        return widget.toggled, widget.isChecked, widget.setChecked
    if isinstance(widget, SliderWidget):
        return widget.valueChanged, widget.value, widget.setValue
    if isinstance(widget, PathLineEdit):
        return widget.textChanged, lambda: pathlib.Path(widget.text()), lambda path: widget.setText(str(path))
    widget.addItems(next(rule.choices for rule in hint.__metadata__ if isinstance(rule, _Choice)))
    return widget.currentTextChanged, widget.currentText, widget.setCurrentText


class _Module:
    def __init__(self, parent: Any) -> None:
        self.parent = parent


class _Widget:
    def __init__(self, parent: Any) -> None:
        self.parent, self.layout = parent, parent.layout

    def setup(self) -> None:
        """Slicer puts its reload buttons here."""

    def resourcePath(self, name: str) -> str:
        return str(Host.current.module_path.parent / "Resources" / name)


class _Logic:
    def getParameterNode(self) -> Any:
        scene = slicer.mrmlScene
        node = scene.GetSingletonNode("CovidCTDiagnosis", "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.vtkMRMLScriptedModuleNode()
            node.SetSingletonTag("CovidCTDiagnosis")
            node = scene.AddNode(node)
        return node


class _Test:
    def delayDisplay(self, text: str) -> None:
        print(text)

    def __getattr__(self, name: str) -> Any:
        import unittest

        return getattr(unittest.TestCase(), name)


class _Observations:
    def __init__(self) -> None:
        self._observed: list[tuple[Any, Any, Any, int]] = []
        self._kept: set[Any] = set()
        """All that was ever observed: Slicer's keeps them too."""

    def addObserver(self, observed: Any, event: Any, slot: Callable[..., Any]) -> None:
        target = getattr(observed, "parameterNode", observed)
        self._kept.add(target)
        self._observed.append((target, event, slot, target.AddObserver(event, slot)))

    def removeObserver(self, observed: Any, event: Any, slot: Callable[..., Any]) -> None:
        target = getattr(observed, "parameterNode", observed)
        for entry in [e for e in self._observed if e[:3] == (target, event, slot)]:
            target.RemoveObserver(entry[3])
            self._observed.remove(entry)

    def removeObservers(self) -> None:
        for target, _, _, tag in self._observed:
            target.RemoveObserver(tag)
        self._observed.clear()


def _sample_data() -> ModuleType:
    """Slicer's module of that name; its chest CT is one that comes from the package index."""
    from CovidCTDiagnosisLib.ct import fetch_sample, read_scan
    from CovidCTDiagnosisLib.scene.nodes import add_ct

    module, registered = ModuleType("SampleData"), {}  # type: ignore[var-annotated]

    def register(category: str, sampleName: str, uris: str, fileNames: str, nodeNames: str, **more: Any) -> None:
        registered[sampleName] = {"uris": uris, **more}

    def download(name: str) -> Any:
        return add_ct(slicer.mrmlScene, read_scan(fetch_sample("chest-nifti")), name)

    vars(module).update(
        SampleDataLogic=SimpleNamespace(registerCustomSampleDataSource=register),
        downloadSample=download,
        registered=registered,
    )
    return module


class _LayoutManager:
    """Tells who listens that the layout has changed."""

    def __init__(self) -> None:
        self.slots: list[Callable[[int], None]] = []

    def connect(self, signature: str, slot: Callable[[int], None]) -> bool:
        assert signature == "layoutChanged(int)"
        self.slots.append(slot)
        return True

    def disconnect(self, signature: str, slot: Callable[[int], None]) -> bool:
        assert signature == "layoutChanged(int)"
        self.slots.remove(slot)
        return True


class Host:
    """Slicer with one module.

    Attributes:
        current: the one that runs.
        module: the module's file, imported.
        widget: its panel, after ``open``.
        answers: what dialogs answer; what they asked is in ``asked``.
        testing: whether Slicer runs its self-tests, where dialogs answer no.
        failures: what was raised where nobody could catch it, as in a slot or an observer.
    """

    current: Host

    def __init__(self, module_path: pathlib.Path, settings: pathlib.Path) -> None:
        Host.current = self
        self.qt = QtWidgets.QApplication.instance() or QtWidgets.QApplication([])
        self.module_path, self.answers, self.asked, self.testing = module_path, True, [], False
        self.failures: list[BaseException] = []
        sys.excepthook = lambda kind, error, traceback: self.failures.append(error)
        self.settings = QtCore.QSettings(str(settings), QtCore.QSettings.Format.IniFormat)
        self._fill_slicer(settings.parent)
        spec = importlib.util.spec_from_file_location(module_path.stem, module_path)
        assert spec is not None and spec.loader is not None
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)

    def _confirm(self, question: str, windowTitle: str) -> bool:
        self.asked.append(question)
        return self.answers and not self.testing

    def _fill_slicer(self, cache: pathlib.Path) -> None:
        slicer.mrmlScene = slicer.vtkMRMLScene()
        # Archived scenes are unpacked into the application's cache.
        self._cache = slicer.vtkCacheManager()
        self._cache.SetRemoteCacheDirectory(str(cache))
        self._files = slicer.vtkDataIOManager()
        self._files.SetCacheManager(self._cache)
        slicer.mrmlScene.SetCacheManager(self._cache)
        slicer.mrmlScene.SetDataIOManager(self._files)
        self.application_logic = slicer.vtkSlicerApplicationLogic()
        self.application_logic.SetMRMLScene(slicer.mrmlScene)
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(slicer.mrmlScene)
        # As Slicer's modules Colors and Segmentations do when they start.
        self._colors = slicer.vtkMRMLColorLogic()
        self._colors.SetMRMLScene(slicer.mrmlScene)
        slicer.mrmlScene.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())
        factory = slicer.vtkSegmentationConverterFactory.GetInstance()
        factory.RegisterConverterRule(slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule())
        self.slice_logics = vtk.vtkCollection()
        self.slice_views: list[DrawnSliceView] = []
        self.layout_manager = _LayoutManager()
        for name in ("Red", "Yellow", "Green"):
            self._add_view(name)
        self.application_logic.SetSliceLogics(self.slice_logics)
        slicer.app = SimpleNamespace(
            applicationLogic=lambda: self.application_logic,
            processEvents=self.qt.processEvents,
            userSettings=lambda: self.settings,
            clipboard=lambda: show(self.qt.clipboard()),
            connect=lambda signature, slot: None,
            testingEnabled=lambda: self.testing,
            layoutManager=lambda: self.layout_manager,
        )
        terminologies = slicer.vtkSlicerTerminologiesModuleLogic()
        slicer.modules = SimpleNamespace(terminologies=SimpleNamespace(logic=lambda: terminologies))
        slicer.util.loadUI, slicer.util.childWidgetVariables = load_ui, child_widgets
        slicer.util.mainWindow = lambda: object()
        slicer.util.confirmOkCancelDisplay = self._confirm
        slicer.util.VTKObservationMixin = _Observations
        sys.modules["qt"] = _Qt("qt")
        sys.modules["SampleData"] = _sample_data()
        for name, contents in {
            "i18n": {"tr": lambda text: text, "translate": lambda context, text: text},
            "ScriptedLoadableModule": {
                "ScriptedLoadableModule": _Module,
                "ScriptedLoadableModuleWidget": _Widget,
                "ScriptedLoadableModuleLogic": _Logic,
                "ScriptedLoadableModuleTest": _Test,
            },
            "parameterNodeWrapper": {
                "parameterNodeWrapper": parameter_node_wrapper,
                "Choice": _Choice,
                "WithinRange": _WithinRange,
            },
        }.items():
            module = ModuleType(f"slicer.{name}")
            vars(module).update(contents)
            sys.modules[f"slicer.{name}"] = module

    def open(self) -> Any:
        """Show the panel."""
        self.window = QtWidgets.QWidget()
        layout = QtWidgets.QVBoxLayout(self.window)
        parent = SimpleNamespace(
            isEntered=True, layout=SimpleNamespace(addWidget=lambda w: layout.addWidget(hidden(w)))
        )
        self.widget = self.module.CovidCTDiagnosisWidget(parent)
        self.widget.setup()
        self.window.resize(560, 1180)
        self.window.show()
        return self.widget

    def spin(self, until: Callable[[], bool], seconds: float) -> bool:
        """Let Qt work until something is so; whether it came to be."""
        end = time.monotonic() + seconds
        while not until() and time.monotonic() < end:
            self.qt.processEvents()
            time.sleep(0.01)
        return until()

    def show_views(self, side: int) -> None:
        """Draw three slice views and a 3-D view from now on; pixels of one view's side."""
        for logic, orientation in zip(self.slice_logics, ("Axial", "Sagittal", "Coronal"), strict=True):
            logic.GetSliceNode().SetOrientation(orientation)
            logic.GetSliceNode().SetDimensions(side, side, 1)
        self.slice_views = [DrawnSliceView(self.application_logic, logic) for logic in self.slice_logics]
        self.view_3d = DrawnThreeDView(self.application_logic, slicer.mrmlScene, side)

    def add_view(self, name: str) -> slicer.vtkMRMLSliceLogic:
        """As another layout does that has a view more."""
        logic = self._add_view(name)
        for slot in self.layout_manager.slots:
            slot(0)
        return logic

    def _add_view(self, name: str) -> slicer.vtkMRMLSliceLogic:
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLScene(slicer.mrmlScene)
        logic.AddSliceNode(name)
        self.slice_logics.AddItem(logic)
        return logic

    def fit_views(self) -> None:
        """As Slicer's button that fits slices to their window; Slicer does so too when a CT is loaded."""
        for logic in self.slice_logics:
            logic.FitSliceToAll()

    def shot(self, path: pathlib.Path) -> bool:
        """A picture of the panel, and of the views if they are drawn, in Slicer's layout; whether it was written."""
        self.qt.processEvents()
        panel = self.window.grab()
        if not self.slice_views:
            return bool(panel.save(str(path)))
        red, yellow, green = (view.picture() for view in self.slice_views)
        views = np.vstack([np.hstack([red, self.view_3d.picture()]), np.hstack([green, yellow])])
        height, width, _ = views.shape
        picture = QtGui.QPixmap(panel.width() + width, max(panel.height(), height))
        picture.fill(QtGui.QColor("black"))
        painter = QtGui.QPainter(picture)
        painter.drawPixmap(0, 0, panel)
        painter.drawImage(
            panel.width(), 0, QtGui.QImage(views.tobytes(), width, height, 3 * width, QtGui.QImage.Format.Format_RGB888)
        )
        painter.end()
        return bool(picture.save(str(path)))

    def close(self) -> None:
        """End the panel and whatever runs."""
        self.widget.cleanup()
        self.window.close()
        self.settings.sync()
