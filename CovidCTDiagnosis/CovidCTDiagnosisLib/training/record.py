"""Words by which a bundle records how a network was trained; what reads them needs none of the training packages."""

OWN_SOURCES = "own data"
PHOTOGRAPHS = "; first weights of the contracting path from photographs (ImageNet)"
"""Added to the sources of a network that began so."""
PAPER = "paper"
"""The recipe for CVAE and classifier that follows the paper."""
