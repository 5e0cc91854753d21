"""Runs a command so that it cannot outlive us, for root as somebody else.

Usage: `child.py [--drop UID] PARENT SIGNAL COMMAND…`, PARENT being the pid of the process that starts it.

Executed as a plain file by a bare interpreter, so that nothing happens between fork and exec in a threaded parent. The
kernel sends SIGNAL to the command when the thread that started it dies, also by `kill -9`: start it from a thread that
lives as long as the stack. PostgreSQL refuses to run as root; with `--drop` it gets another user, who keeps one
capability, to look through folders: a clone below `/root` is closed to everybody else. That is CAP_DAC_READ_SEARCH, or
where root lacks it (a container's root often does) CAP_DAC_OVERRIDE, which can do more.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION_3 = 0x20080522
_CAPSET = {"x86_64": 126, "aarch64": 91}


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def drop_root(uid: int) -> None:
    """Become `uid`, keeping the right to look through folders where the kernel grants it."""
    libc = ctypes.CDLL(None, use_errno=True)
    kept = platform.machine() in _CAPSET and libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0
    if kept:
        # Without it access(2) answers as if there were no capability, and PostgreSQL asks that of its own programs.
        libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if not kept:
        return
    header = _Header(_CAPABILITY_VERSION_3, 0)
    for capability in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE):
        mask = 1 << capability
        data = (_Data * 2)(_Data(mask, mask, mask), _Data(0, 0, 0))
        if libc.syscall(_CAPSET[platform.machine()], ctypes.byref(header), ctypes.byref(data)) == 0:
            libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)
            return


def main() -> None:
    """Prepare, then become the command."""
    arguments = sys.argv[1:]
    if arguments[0] == "--drop":
        drop_root(int(arguments[1]))
        arguments = arguments[2:]
    parent, signal_number, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    if sys.platform == "linux":
        # After the change of user: that change clears the setting.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit(1)  # PARENT died before the kernel knew whom to tell
    os.execvp(command[0], command)  # noqa: S606 - the purpose of this file


if __name__ == "__main__":
    main()
