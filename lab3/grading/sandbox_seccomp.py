"""The system calls that a student's script is refused, as a program for the kernel, written by libseccomp.

The namespaces do not cover all: a virtual machine's AF_VSOCK leads to its host whatever the network namespace, and
memory behind a memfd or System V's shared memory belongs to no process, so that no limit of a process holds it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import Any

from lab3.errors import InfraError

_REFUSED = (
    # Memory that no process is charged with.
    *("memfd_create", "memfd_secret", "shmget", "msgget", "semget"),
    # Other processes.
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp"),
    # Namespaces and mounts.
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "mount_setattr"),
    *("fsopen", "fsmount", "fsconfig", "fspick", "name_to_handle_at", "open_by_handle_at"),
    # The machine: needs capabilities anyway.
    *("settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "reboot", "swapon", "swapoff", "acct"),
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "syslog", "quotactl"),
    # Large parts of the kernel that no script of this lab needs.
    *("bpf", "perf_event_open", "userfaultfd", "keyctl", "add_key", "request_key", "fanotify_init"),
)
_UNKNOWN = ("io_uring_setup", "io_uring_enter", "io_uring_register", "clone3")  # callers have another way
_FAMILIES = (0, 1, 2, 10, 16)  # AF_UNSPEC, AF_UNIX, AF_INET, AF_INET6, AF_NETLINK (getaddrinfo)
_CLONE_NEWUSER = 0x10000000  # <linux/sched.h>
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # <seccomp.h>
_EQ, _GT, _MASKED_EQ = 4, 6, 7
_NO_SYSCALL = -1


class _Comparison(ctypes.Structure):
    """scmp_arg_cmp of <seccomp.h>."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


@cache
def program() -> bytes:
    """The filter, for `bwrap --seccomp`. Raises InfraError where libseccomp is missing."""
    lib = _library()
    context = lib.seccomp_init(_ALLOW)
    try:
        for name in _REFUSED:
            _refuse(lib, context, name, errno.EPERM)
        for name in _UNKNOWN:
            _refuse(lib, context, name, errno.ENOSYS)
        _refuse(lib, context, "clone", errno.EPERM, _Comparison(0, _MASKED_EQ, _CLONE_NEWUSER, _CLONE_NEWUSER))
        for family in range(max(_FAMILIES)):
            if family not in _FAMILIES:
                _refuse(lib, context, "socket", errno.EAFNOSUPPORT, _Comparison(0, _EQ, family, 0))
        _refuse(lib, context, "socket", errno.EAFNOSUPPORT, _Comparison(0, _GT, max(_FAMILIES), 0))
        return _exported(lib, context)
    finally:
        lib.seccomp_release(context)


def _library() -> Any:
    try:
        lib = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise InfraError(
            "libseccomp is missing, without which student code is not run.",
            why=str(error),
            todo="apt-get install libseccomp2",
            kind="sandbox",
        ) from error
    lib.seccomp_init.restype = ctypes.c_void_p
    lib.seccomp_init.argtypes = [ctypes.c_uint32]
    lib.seccomp_release.argtypes = [ctypes.c_void_p]
    lib.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    lib.seccomp_rule_add_array.argtypes = [
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint),
        ctypes.POINTER(_Comparison),
    ]
    return lib


def _refuse(lib: Any, context: Any, name: str, number: int, *when: _Comparison) -> None:
    syscall = lib.seccomp_syscall_resolve_name(name.encode())
    if syscall == _NO_SYSCALL:  # newer than this libseccomp, or not on this processor
        return
    _must(lib.seccomp_rule_add_array(context, _ERRNO | number, syscall, len(when), (_Comparison * len(when))(*when)))


def _exported(lib: Any, context: Any) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        _must(lib.seccomp_export_bpf(context, fd))
        file.seek(0)
        return file.read()


def _must(result: int) -> None:
    if result != 0:
        raise InfraError(f"libseccomp refuses the filter: {os.strerror(-result)}", kind="sandbox")
