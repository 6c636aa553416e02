"""Code that runs inside the sandbox's processes: the standard library only, Python 3.9 or newer, nothing of the rest of bdc."""
