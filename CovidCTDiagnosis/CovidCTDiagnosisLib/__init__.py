"""CovidCTDiagnosis: explainable COVID-19 diagnosis from chest CT.

The core turns a chest CT into lungs, lesions, a probability and relevance heatmaps; the doors (Slicer
panel, command line) only call it. Importing this package loads nothing heavy.
"""

__version__ = "0.15.0"
