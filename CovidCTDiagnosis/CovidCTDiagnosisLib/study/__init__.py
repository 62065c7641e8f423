"""The result of an analysis on disk: a study folder, described in `study.py` and analysis.schema.json."""

from CovidCTDiagnosisLib.study.study import IMAGES, Study, check_output, read_study, write_study

__all__ = ["IMAGES", "Study", "check_output", "read_study", "write_study"]
