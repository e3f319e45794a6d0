"""Processes that do not outlive the one that started them, whatever ended it (Linux).

`python -m cli.leash PARENT_PID COMMAND...` becomes COMMAND, with SIGTERM sent to it when the parent
dies. Elsewhere than on Linux the command just runs.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def follow_parent(parent_pid: int) -> None:
    """Have SIGTERM sent to this process when `parent_pid` dies; raise `SystemExit` if it has."""
    if not sys.platform.startswith("linux"):
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died before the line above; then no signal ever comes.
    if os.getppid() != parent_pid:
        raise SystemExit("the process that started this one is gone")


if __name__ == "__main__":
    follow_parent(int(sys.argv[1]))
    # The command is the caller's own: this module only adds the leash.
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606
