"""The stages in order: lungs, lesions, diagnosis, relevance, measurements."""

from .analyze import Analysis, analyze
from .monitor import Event, Monitor

__all__ = ["Analysis", "Event", "Monitor", "analyze"]
