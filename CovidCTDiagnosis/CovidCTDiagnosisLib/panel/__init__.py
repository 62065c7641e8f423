"""The panel in Slicer: what the user sees, and the child process that does the work. Knows Qt and MRML, never torch."""
