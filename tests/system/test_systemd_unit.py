"""The shipped systemd unit: what it forbids must not end the node."""

from __future__ import annotations

import errno
import platform
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

UNIT = Path(__file__).parents[2] / "etc/systemd/p2psipd.service"

# systemd's set @resources: set_mempolicy, mbind, migrate_pages, move_pages, sched_setaffinity, sched_setattr,
# sched_setparam, sched_setscheduler, set_mempolicy_home_node, setpriority, setrlimit, ioprio_set.
RESOURCES = {
    "x86_64": (238, 237, 256, 279, 203, 314, 142, 144, 450, 141, 160, 251),
    "aarch64": (237, 235, 238, 239, 122, 274, 118, 119, 450, 140, 164, 30),
}[platform.machine()]

NODE_UNDER_FILTER = """
import ctypes, struct, sys
action, numbers = int(sys.argv[1]), [int(number) for number in sys.argv[2:]]
libc = ctypes.CDLL(None, use_errno=True)
steps = [(0x20, 0, 0, 0)]
for number in numbers:
    steps += [(0x15, 0, 1, number), (0x06, 0, 0, action)]
steps.append((0x06, 0, 0, 0x7FFF0000))
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
program = Program(len(steps), ctypes.cast(code, ctypes.c_void_p))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
assert libc.syscall(numbers[0], 0, 0, 0) == -1
import p2psipd.app, p2psipd.sip_parts
from cryptography.hazmat.primitives.asymmetric import ec
from p2psipd.proto.identity.p256 import SigningKey, VerifyingKey
key = ec.generate_private_key(ec.SECP256R1())
assert VerifyingKey(key.public_key()).verify(b"data", SigningKey(key).sign(b"data"))
"""


def test_a_forbidden_call_is_refused_and_does_not_kill() -> None:
    """Libraries try what the unit forbids (libnuma's set_mempolicy, where it is installed) and do without."""
    unit = ConfigParser(interpolation=None, strict=False)
    unit.read(UNIT)
    refused = unit["Service"].get("SystemCallErrorNumber", "")
    kill, refuse = 0x80000000, 0x00050000
    action = refuse | getattr(errno, refused) if refused else kill
    arguments = [str(number) for number in (action, *RESOURCES)]
    child = subprocess.run([sys.executable, "-c", NODE_UNDER_FILTER, *arguments], capture_output=True, timeout=60)
    assert child.returncode == 0, child.stderr.decode()[-500:]
