"""Machines, calibrations and their sources, as data files."""
