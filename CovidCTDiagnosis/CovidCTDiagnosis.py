"""CovidCTDiagnosis in 3D Slicer: open a chest CT, click Analyze, see why. The work is done in CovidCTDiagnosisLib."""

from __future__ import annotations

import time
from pathlib import Path

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

RESOURCES = Path(__file__).parent / "Resources"
TERMS = RESOURCES / "Models" / "covid-ct" / "LICENSE"
REQUIREMENTS = RESOURCES / "requirements.txt"


class CovidCTDiagnosis(ScriptedLoadableModule):
    """What Slicer knows of the module before it is opened."""

    def __init__(self, parent):
        super().__init__(parent)
        self.parent.title = _("COVID CT Diagnosis")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Quantification")]
        self.parent.dependencies = []
        self.parent.contributors = ["CovidCTDiagnosis developers"]
        self.parent.helpText = _(
            "Finds lungs and lesions in a chest CT, gives a probability of COVID-19, and shows which voxels made the "
            "network say so. For research, not for diagnosis."
        )
        self.parent.acknowledgementText = _(
            "The weights learned from public image sets whose terms allow research only; see the model card."
        )
        slicer.app.connect("startupCompleted()", register_sample_data)


SAMPLE, PHANTOM = "CTChest", "ChestPhantom"


def register_sample_data():
    """Slicer's public chest CT and a phantom made on the spot, in a category of our own."""
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="CovidCTDiagnosis",
        sampleName=PHANTOM,
        uris="phantom:",  # Slicer wants one for every sample
        fileNames=f"{PHANTOM}.nrrd",
        nodeNames=PHANTOM,
        customDownloader=make_phantom,
    )
    digest = "4507b664690840abb6cb9af2d919377ffc4ef75b167cb6fd0f747befdb12e38e"
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="CovidCTDiagnosis",
        sampleName=SAMPLE,
        uris=f"https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/{digest}",
        fileNames="CT-chest.nrrd",
        checksums=f"SHA256:{digest}",
        nodeNames=SAMPLE,
    )


def make_phantom(source=None):
    """A chest of two lungs, spine and airways in the scene; returns its node. It has no lesions."""
    from CovidCTDiagnosisLib.ct.phantom import make_chest
    from CovidCTDiagnosisLib.scene.nodes import add_ct

    return add_ct(slicer.mrmlScene, make_chest(), PHANTOM)


class CovidCTDiagnosisWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: loads the .ui file, keeps the parameter node, and hands the rest to ``Panel``."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.panel = None
        self._parameters = None
        self._binding = None
        self._watched = self._watch_tag = None
        self._scene_is_new = False
        self._layouts = None

    def setup(self):
        """Called when the module is opened for the first time."""
        super().setup()
        from CovidCTDiagnosisLib.panel.panel import Panel
        from CovidCTDiagnosisLib.panel.slicer_application import launch, load_terminology, slice_logics

        widget = slicer.util.loadUI(self.resourcePath("UI/CovidCTDiagnosis.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        load_terminology(RESOURCES / "Terminologies" / "CovidCTDiagnosis.term.json")
        self.logic = CovidCTDiagnosisLogic()
        self.panel = Panel(
            self.ui,
            lambda: self._parameters,
            launch=self._launch,
            check=launch,
            remove=self.logic.removeDownloads,
            logics=slice_logics,
        )
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self._on_scene_closes)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self._on_scene_closed)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartImportEvent, self._on_scene_import_starts)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self._on_scene_imported)
        self._layouts = slicer.app.layoutManager()
        if self._layouts is not None:  # else there is no main window
            self._layouts.connect("layoutChanged(int)", self._on_layout_change)
        self.enter()

    def cleanup(self):
        """Called when Slicer closes: whatever runs ends."""
        if self.panel is not None:  # else setup failed
            self.panel.close()
            self._bind(None)
            self._watch(None)
        if self._layouts is not None:
            self._layouts.disconnect("layoutChanged(int)", self._on_layout_change)
            self._layouts = None
        self.removeObservers()

    def enter(self):
        """Called when the module is shown."""
        self._bind(self.logic.getParameterNode())

    def exit(self):
        """Called when another module is shown."""
        self._bind(None)

    def _launch(self, arguments):
        """Start the command line; packages come from where the user said."""
        from CovidCTDiagnosisLib.panel.parameters import chosen_path

        return self.logic.launch(arguments, wheels=chosen_path(self._parameters.wheels))

    def _on_scene_closes(self, caller, event):
        self.panel.forget_scene()
        self._bind(None)
        self._watch(None)

    def _on_scene_closed(self, caller, event):
        self._scene_is_new = True
        if self.parent.isEntered:
            self.enter()
        else:
            # Now: a scene that is read next may bring its own choices.
            self._recall(self.logic.getParameterNode())

    def _on_scene_import_starts(self, caller, event):
        # Selectors choose something else while they are filled anew.
        self._bind(None)

    def _on_scene_imported(self, caller, event):
        if self.parent.isEntered:
            self.enter()

    def _bind(self, parameters):
        """Show and observe the parameter node of the scene, or none."""
        if self._parameters is not None:
            self._parameters.disconnectGui(self._binding)
            self.removeObserver(self._parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self._on_change)
        self._parameters = parameters
        if parameters is not None:
            if self._scene_is_new:
                self._recall(parameters)
            if parameters.inputVolume is None:
                from CovidCTDiagnosisLib.scene.nodes import first_scan

                parameters.inputVolume = first_scan(slicer.mrmlScene)
            self._binding = parameters.connectGui(self.ui)
            # Of the node: the wrapper is another one each time, and would be kept.
            self.addObserver(parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self._on_change)
            self._watch(parameters.inputVolume)
        self.panel.enter()

    def _recall(self, parameters):
        """Take the user's last choices: Slicer keeps the node through the end of a scene, and up to 5.10 an old
        binding fills it anew."""
        from CovidCTDiagnosisLib.panel.parameters import recall_choices

        recall_choices(parameters, slicer.app.userSettings())
        self._scene_is_new = False

    def _watch(self, ct):
        """Observe the chosen CT, also while another module is open: it may be moved or changed, or be analyzed."""
        if ct is self._watched:
            return
        # Not by the mixin, which keeps what it has observed, and so all CTs with their voxels.
        if self._watched is not None:
            self._watched.RemoveObserver(self._watch_tag)
        self._watched = ct
        if ct is not None:
            self._watch_tag = ct.AddObserver(vtk.vtkCommand.ModifiedEvent, self._on_ct_change)

    def _on_change(self, caller=None, event=None):
        self._watch(self._parameters.inputVolume if self._parameters is not None else None)
        self.panel.on_change()

    def _on_ct_change(self, caller=None, event=None):
        if self._parameters is None:
            self.panel.keep_true(self._watched)
        else:
            self.panel.update(views=False)

    def _on_layout_change(self, layout):
        self.panel.update(views=False)


class CovidCTDiagnosisLogic(ScriptedLoadableModuleLogic):
    """For programs: analyzes a CT of the scene without the panel."""

    def getParameterNode(self):
        """The user's choices, wrapped."""
        from CovidCTDiagnosisLib.panel.parameters import PanelParameters, recall_choices

        node = super().getParameterNode()
        is_new = node.GetParameterCount() == 0
        parameters = PanelParameters(node)
        if is_new:
            recall_choices(parameters, slicer.app.userSettings())
        return parameters

    def launch(self, arguments, user=None, wheels=None):
        """Start the command line; what it needs is installed and its terms are accepted first.

        Args:
            arguments: of ``covid-ct``.
            user: who agrees to that; by default whoever sits before Slicer's window.
            wheels: folder (pathlib.Path) with the packages, for a computer without internet.

        Raises:
            UsageError: the user does not agree.
        """
        from CovidCTDiagnosisLib.panel.requirements import ensure_packages, ensure_terms
        from CovidCTDiagnosisLib.panel.slicer_application import SlicerInstaller, SlicerUser, launch

        user = user or SlicerUser()
        settings = slicer.app.userSettings()
        ensure_terms(TERMS, settings, user)
        ensure_packages(REQUIREMENTS, settings, user, SlicerInstaller(wheels))
        return launch(arguments)

    def removeDownloads(self, user=None):
        """Remove the packages that were installed for this module, and its cache; returns what was done."""
        from CovidCTDiagnosisLib.panel.requirements import remove_downloads
        from CovidCTDiagnosisLib.panel.slicer_application import SlicerInstaller, SlicerUser

        return remove_downloads(slicer.app.userSettings(), user or SlicerUser(), SlicerInstaller())

    def analyze(self, volumeNode, progress=None, acceptTerms=False, options=(), wheels=None, lungs=None):
        """Analyze a CT and put what is found into its scene; returns when that is done.

        Args:
            volumeNode: the CT (vtkMRMLScalarVolumeNode).
            progress: called with a share of the work done, 0 to 1, and a message.
            acceptTerms: accepts the terms of the weights, and installing packages, where nobody can be asked: without
                a window, and in Slicer's self-tests.
            options: further arguments of ``covid-ct analyze``.
            wheels: folder (pathlib.Path) with Python packages, for a computer without internet.
            lungs: segmentation or label map of the lungs to use in place of the network's.

        Returns:
            The content of analysis.json.

        Raises:
            UsageError: terms or packages are refused.
            CovidCTError: the analysis failed; the message says why and what to do.
        """
        from CovidCTDiagnosisLib.errors import CovidCTError
        from CovidCTDiagnosisLib.panel.analysis_job import DONE, RUNNING, AnalysisJob
        from CovidCTDiagnosisLib.panel.slicer_application import SlicerUser
        from CovidCTDiagnosisLib.scene.report import kept_analysis
        from CovidCTDiagnosisLib.scene.study_nodes import put_study

        user = SlicerUser(acceptTerms)
        job = AnalysisJob(volumeNode, lambda arguments: self.launch(arguments, user, wheels), tuple(options), lungs)
        try:
            while job.poll().state == RUNNING:
                if progress is not None:
                    progress(job.progress.share, job.progress.message)
                slicer.app.processEvents()
                time.sleep(0.05)
            if job.progress.state != DONE:
                raise CovidCTError(job.progress.error, job.progress.remedy)
            put_study(job.study, volumeNode, job.analyzed)
        finally:
            job.close()
        return kept_analysis(volumeNode)


class CovidCTDiagnosisTest(ScriptedLoadableModuleTest):
    """Analyzes a phantom and the sample CT for real; where a package is missing it fails and says which."""

    def setUp(self):
        """A new scene."""
        slicer.mrmlScene.Clear()

    def runTest(self):
        """All tests."""
        for test in (self.test_analysis_of_a_phantom, self.test_analysis_of_the_sample):
            self.setUp()
            test()

    def test_analysis_of_a_phantom(self):
        """Lungs are found where they are, and every node lies on the CT's grid."""
        self._analyze(make_phantom())

    def test_analysis_of_the_sample(self):
        """The same on a real CT, which is downloaded unless Slicer has it already."""
        import SampleData

        self._analyze(SampleData.downloadSample(SAMPLE))

    def _analyze(self, ct):
        from CovidCTDiagnosisLib.scene.nodes import find_study_nodes

        analysis = CovidCTDiagnosisLogic().analyze(ct, acceptTerms=True)
        self.assertTrue(0 <= analysis["diagnosis"]["probability"] <= 1)
        nodes = find_study_nodes(ct)
        self.assertIsNotNone(nodes)
        hu, lungs, relevance = (slicer.util.arrayFromVolume(n) for n in (ct, nodes.lungs, nodes.relevance_ct))
        self.assertEqual(lungs.shape, hu.shape)
        self.assertEqual(set(lungs.ravel().tolist()), {0, 1, 2})
        self.assertLess(hu[lungs > 0].mean(), -700)
        voxel_ml = ct.GetSpacing()[0] * ct.GetSpacing()[1] * ct.GetSpacing()[2] / 1000
        self.assertGreater((lungs > 0).sum() * voxel_ml, 2000)
        self.assertTrue((relevance[lungs == 0] == 0).all())
        self.assertAlmostEqual(float(relevance.sum()), analysis["relevance"]["total_ct"], places=3)
        self.delayDisplay(f"{ct.GetName()} passed")
