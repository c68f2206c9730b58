#!/usr/bin/python3
"""Many mounts of one daemon with nothing to do: what they cost.

    idle.py P2PFS [--mounts N] [--seconds S] [--case NAME]…

Mounts torrents that are complete, and others that nobody has, with and without the DHT, waits until
what begins with a mount is over, and then watches the daemon: its processor time, how often one of
its threads woke up, its memory. It fails when they take more than 1 % of one core, or more than 64 MiB
and 2 MiB for each mount.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab import free_port, p2pfs_status, unmount, wait_until

MIB = 1 << 20
SIZE = 4 * MIB
PIECE = 16 << 10
# What begins with a mount (announces, searches, checks) is over by then.
SETTLE_S = 20
MOST_CPU = 0.01
MOST_MIB, MOST_MIB_A_MOUNT = 64, 2
CASES = {
    "complete": (True, False),
    "complete, DHT": (True, True),
    "nobody has it": (False, False),
    "nobody has it, DHT": (False, True),
}


def options():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--mounts", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--case", action="append", choices=CASES, help="these only")
    return parser.parse_args()


def cpu(pid):
    """Seconds of processor time used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wakes(pid):
    """How often its threads have gone to sleep."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                total += int(line.split()[1])
    return total


def memory(pid):
    """Resident memory, and what of it is anonymous, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return [int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon")]


class Idle:
    def __init__(self, args, work):
        self.args, self.work = args, work
        self.torrents = [self.make(number) for number in range(args.mounts)]
        self.seeder = free_port()
        self.failed = False

    def make(self, number):
        data = self.work / f"data{number}"
        data.write_bytes(random.Random(number).randbytes(SIZE))
        torrent = self.work / f"{number}.torrent"
        piece = ["--piece-length", str(PIECE)]
        command = [self.args.program, "create", data, *piece, "-o", torrent]
        subprocess.run(command, check=True, capture_output=True)
        return torrent, data

    def p2pfs(self, name, verb, *arguments):
        command = [self.args.program, verb, "--socket", self.work / f"{name}.socket", *arguments]
        return subprocess.run(command, check=True, timeout=120, capture_output=True)

    def settings(self, name, *more):
        return ["--data-dir", self.work / name, "--listen", "127.0.0.1", "--no-lsd", *more]

    def pid(self, name):
        return p2pfs_status(self.args.program, self.work / f"{name}.socket")["pid"]

    def seed(self):
        """A daemon that has all of them, for as long as the others fetch them."""
        own = self.settings("seeder", "--no-dht", "--port", str(self.seeder))
        for torrent, data in self.torrents:
            self.p2pfs("seeder", "seed", *own, torrent, data)
        return self.pid("seeder")

    def run(self, name):
        complete, dht = CASES[name]
        short = name.replace(", ", "-").replace(" ", "-")
        node, seeder, mounts, pid = None, None, [], None
        try:
            how = ["--no-dht"]
            if dht:
                command = [self.args.program, "dht", "node", "--listen", "127.0.0.1", "--alone"]
                node = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                how = ["--dht-bootstrap", node.stdout.readline().strip()]
            if complete:
                seeder = self.seed()
                how += ["--peer", f"127.0.0.1:{self.seeder}"]
            for number, (torrent, _) in enumerate(self.torrents):
                mounts.append(self.work / f"{short}{number}")
                mounts[-1].mkdir()
                own = self.settings(short, *how)
                self.p2pfs(short, "mount", *own, torrent, mounts[-1])
            for mount in mounts if complete else []:
                self.p2pfs(short, "wait", mount)
            pid = self.pid(short)
            if seeder:
                end(seeder)
                seeder = None
            time.sleep(SETTLE_S)
            self.watch(name, pid)
        finally:
            for mount in mounts:
                unmount(mount)
            for one in filter(None, [seeder, pid]):
                end(one)
            if node:
                node.kill()

    def watch(self, name, pid):
        began, before, woken = time.monotonic(), cpu(pid), wakes(pid)
        time.sleep(self.args.seconds)
        took = time.monotonic() - began
        share, woken = (cpu(pid) - before) / took, (wakes(pid) - woken) / took
        resident, anonymous = memory(pid)
        most = MOST_MIB + MOST_MIB_A_MOUNT * self.args.mounts
        good = share <= MOST_CPU and resident <= most
        self.failed |= not good
        print(
            f"{name:20} {100 * share:6.2f} %  {woken:7.1f}/s  {resident:7.1f} MiB  "
            f"{anonymous:7.1f} MiB  {'' if good else 'too much'}",
            flush=True,
        )


def end(pid):
    os.kill(pid, signal.SIGTERM)
    wait_until("the daemon has ended", 10, lambda: not Path(f"/proc/{pid}").exists())


def main():
    args = options()
    args.program = os.path.abspath(args.program)
    work = Path(tempfile.mkdtemp(prefix="p2pfs-idle-"))
    try:
        idle = Idle(args, work)
        most = MOST_MIB + MOST_MIB_A_MOUNT * args.mounts
        print(f"{args.mounts} mounts of {SIZE // PIECE} pieces, {args.seconds:.0f} s each; "
              f"allowed: {100 * MOST_CPU:.0f} % of a core, {most} MiB")
        print(f"{'':20} {'CPU':>8}  {'wakes':>9}  {'resident':>11}  {'anonymous':>11}")
        for name in args.case or CASES:
            idle.run(name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if idle.failed:
        sys.exit("failed")


if __name__ == "__main__":
    main()
