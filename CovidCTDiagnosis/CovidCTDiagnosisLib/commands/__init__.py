"""The commands of ``covid-ct``, a file for each kind; all import what they need when they run."""
