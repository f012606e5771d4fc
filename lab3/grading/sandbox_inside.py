"""The first process inside the sandbox: `python -I -S sandbox_inside.py CONTROL_FD`. It runs with nothing but the
standard library, opens the doors' ports, starts the student's script under its limits and tells how that ended.

It is process 1 of the sandbox, so no signal from inside reaches it, and its end takes everything else along. The ports
are opened here, because only here they are in the sandbox's network; who answers on them is outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import random
import resource
import signal
import socket
import struct
import sys
from typing import Any, NoReturn

READY, GO, FAILED = b"ready", b"go", b"failed: "
ENDED = struct.Struct("=idq")  # wait status, CPU seconds of all, KiB of the largest
MOST_BYTES = 1 << 17  # of a message
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 4, 24  # <linux/prctl.h>
_SIOCSIFADDR = 0x8916  # <linux/sockios.h>
_CAPABILITIES_V3, _MOST_CAPABILITIES = 0x20080522, 64  # <linux/capability.h>


def main(control: socket.socket) -> None:
    """Serve the one who holds the other end of `control`; return when the script has ended."""
    # Otherwise the script, which has the same uid, could attach to this process or read its memory.
    _libc("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python's own handler would let the script interrupt us
    task = json.loads(control.recv(MOST_BYTES))
    try:
        for address in task["addresses"]:
            _add_address(address, name=f"lo:{task['addresses'].index(address) + 1}")
        listeners = [_listen(port) for port in task["ports"]]
        _drop_capabilities()
    except OSError as error:
        control.send(FAILED + str(error).encode())
        return
    if listeners:
        socket.send_fds(control, [READY], [listener.fileno() for listener in listeners])
    else:
        control.send(READY)
    for listener in listeners:
        listener.close()
    if control.recv(len(GO)) != GO:
        return
    script = os.fork()
    if script == 0:
        _become(task)
    status = _reap(script)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    control.send(ENDED.pack(status, used.ru_utime + used.ru_stime, used.ru_maxrss))


def _listen(port: int) -> socket.socket:
    """On every address of the sandbox, of both families if the kernel has them."""
    if socket.has_ipv6:
        try:
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
    return socket.create_server(("0.0.0.0", port), backlog=64)


def _add_address(address: str, *, name: str) -> None:
    """Have the loopback interface answer for one more IPv4 address."""
    request = struct.pack("16sH2s4s8x", name.encode(), socket.AF_INET, b"", socket.inet_aton(address))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFADDR, request)


def _drop_capabilities() -> None:
    """Those that opening the doors may have needed; the script starts without any, and can get none."""
    for capability in range(_MOST_CAPABILITIES):
        with contextlib.suppress(OSError):  # there are not so many, or it was given none to begin with
            _libc("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = struct.pack("Ii", _CAPABILITIES_V3, 0)
    _libc("capset", header, bytes(24))


def _become(task: dict[str, Any]) -> NoReturn:
    """Turn this process into the student's script. Limits are hard ones: who has no capability cannot raise them."""
    try:
        _libc("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)
        for signum in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(signum, signal.SIG_DFL)
        with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
            file.write("1000")  # if the machine runs out of memory, it is the script that goes
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, random.sample(cpus, min(task["cpus"], len(cpus))))
        for name, soft, hard in task["rlimits"]:
            kind = getattr(resource, name)
            ceiling = resource.getrlimit(kind)[1]
            if ceiling != resource.RLIM_INFINITY:
                soft, hard = min(soft, ceiling), min(hard, ceiling)
            resource.setrlimit(kind, (soft, hard))
        os.closerange(3, 4096)
        os.chdir(task["folder"])
        os.execve(task["command"][0], task["command"], task["environ"])
    except BaseException as error:
        os.write(2, f"lab3: the script cannot be started: {error}\n".encode())
    os._exit(127)


def _reap(script: int) -> int:
    """Wait for the script and for whatever else ends meanwhile; return the script's wait status."""
    while True:
        pid, status = os.wait()
        if pid == script:
            return status


def _libc(function: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{function}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
