"""Two ends of a network with a shaped link between them, in network namespaces of their own.

The near end is this process: it has to run in a network namespace made for it (`alone`). The far
end lives as long as this process. Links are made of two TUN devices and examples/wan_link.rs, since
not every kernel has netem.
"""

import fcntl
import os
import signal
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
LINK_SECONDS = 3600


@dataclass(frozen=True)
class Line:
    """What a link does to packets; no line is loopback."""

    mbit: float
    round_trip_ms: float = 0
    loss: float = 0

    @property
    def bytes_per_second(self):
        return self.mbit * 125_000


LINES = {
    "loopback": None,
    "100M": Line(100),
    "100M 50ms": Line(100, 50),
    "100M 50ms loss": Line(100, 50, 0.001),
}


def alone(command):
    """The command in namespaces of its own: whatever it starts or mounts is gone when it ends.

    It ends with the thread that starts it.
    """
    last = ["setpriv", "--pdeathsig", "KILL"]
    own = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    # The shell is the first process there, and collects the daemons that have ended.
    return [*last, "unshare", *own, "sh", "-c", '"$@"; exit $?', "sh", *command]


def run(*command):
    subprocess.run(command, check=True, timeout=30)


class Wan:
    """Both ends and the link. On loopback both are the same namespace."""

    def __init__(self, line, program, seed=1):
        self.line, self.program, self.seed = line, program, seed
        self.link = self.holder = None
        run("ip", "link", "set", "lo", "up")
        if line is None:
            self.device, self.near, self._far = "lo", "127.0.0.100", "127.0.0.{}"
        else:
            self.device, self.near, self._far = "wan0", "198.51.100.100", "198.51.100.{}"
            self._join()

    def _join(self):
        self.holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
        here = os.readlink("/proc/self/ns/net")
        there = f"/proc/{self.holder.pid}/ns/net"
        deadline = time.monotonic() + 10
        while os.readlink(there) == here and time.monotonic() < deadline:
            time.sleep(0.005)
        ends = [tun("wan0"), tun("wan1")]
        # A device that has moved still belongs to its descriptor.
        run("ip", "link", "set", "wan1", "netns", str(self.holder.pid))
        run("ip", "addr", "add", f"{self.near}/24", "dev", "wan0")
        run("ip", "link", "set", "wan0", "txqueuelen", "2000", "up")
        run(*self.there("ip", "link", "set", "lo", "up"))
        run(*self.there("ip", "link", "set", "wan1", "txqueuelen", "2000", "up"))
        for number in range(1, 10):
            run(*self.there("ip", "addr", "add", f"{self.far(number)}/24", "dev", "wan1"))
        line = self.line
        command = [self.program, "--rate", str(line.mbit), "--delay", str(line.round_trip_ms / 2)]
        command += ["--loss", str(line.loss), "--seed", str(self.seed)]
        command += ["--seconds", str(LINK_SECONDS)]
        self.link = subprocess.Popen(
            command, stdin=ends[0], stdout=ends[1], stderr=subprocess.PIPE, text=True
        )
        for end in ends:
            os.close(end)
        # A link that waits for a core would delay packets more than it should.
        os.sched_setscheduler(self.link.pid, os.SCHED_RR, os.sched_param(10))

    def far(self, number):
        """The address of one of the hosts on the far side, 1 to 9."""
        return self._far.format(number)

    def there(self, *command):
        """The command that runs this one at the far end."""
        if self.holder is None:
            return list(command)
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", *command]

    def received(self):
        """Bytes of IP packets that came in at the near end so far; on loopback, of all packets."""
        for line in Path("/proc/net/dev").read_text().splitlines():
            name, _, counters = line.partition(":")
            if name.strip() == self.device:
                return int(counters.split()[0])
        raise LookupError(self.device)

    def close(self):
        """What the link says that it carried, lost and dropped."""
        if self.link is None:
            return ""
        self.link.send_signal(signal.SIGTERM)
        _, said = self.link.communicate(timeout=10)
        self.holder.stdin.close()
        self.holder.wait(10)
        return said


def tun(name):
    """A new TUN device, and the descriptor at which its packets are read and written."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI)
    fcntl.ioctl(descriptor, TUNSETIFF, request)
    return descriptor
