"""The shell command `perfmodel`."""
