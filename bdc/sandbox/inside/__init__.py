"""Code of the sandbox's own processes: standard library only, Python 3.10 or newer, nothing of the rest of bdc."""
