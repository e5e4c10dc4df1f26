"""A machine's calibration fitted to measured collectives and kernels."""
