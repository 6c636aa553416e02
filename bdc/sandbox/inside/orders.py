"""The messages between the host and a fork server, and the descriptors that a child begins with."""

from __future__ import annotations

import struct

STDIN, STDOUT, CONTROL, CALLS, SLOTS = 0, 1, 3, 4, 5
ROLES = ("", "guest", "referee")
ORDER = struct.Struct("=BBIQ")  # role, mask of the slots whose descriptors come along, CPU seconds, bytes of memory
PID = struct.Struct("=i")
EXIT = struct.Struct("=iid")  # process id, wait status, CPU seconds
