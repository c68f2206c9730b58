#!/usr/bin/python3
"""Kills the daemon at random moments, and worse, and checks that nothing wrong is ever read.

    crash.py P2PFS [--rounds 200] [--faults kill,full,eio,torn,readonly,power] [--seed N]

Each round begins with an empty cache. While a torrent is fetched and read at random, the daemon is
killed with SIGKILL; then the torrent is mounted again on the dead mount, everything is read and compared.
What was verified five seconds before must be there still, and after `kill` what the index listed just
before. The faults (most need root):

    kill      nothing but that, sometimes several times
    full      the cache is on a disk that is too small, which grows after the kill
    eio       one in fifty reads and writes of the cache fails (a library in front of libc)
    torn      after the kill the index is cut or garbled, and pages of the data are zeros
    readonly  the file system becomes read-only, as ext4 does after an error
    power     the file system stops at once and forgets what it has not written; then it is mounted again

It fails with a wrong byte, a loss beyond the bound, a mount that takes over five seconds, or an error of
more than one line.
"""

import argparse
import ctypes
import fcntl
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from lab import free_port, unmount, wait_until

MIB = 1 << 20
RATE = 10 * MIB
READERS = 3
MOUNT_WITHIN = 5.0
LOSS = 5.0
# What is fetched again though it is here: padding of the last pieces of files, blocks asked for twice.
SLACK = 2 * MIB
EXT4_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
FAILING = Path(__file__).parent / "failing_disk.c"


class Wrong(Exception):
    """What the test is about."""


class Disk:
    """Where the cache is: a folder, or a file system of its own on a loop device."""

    def __init__(self, work, size=None, kind="ext4"):
        self.work, self.image, self.kind = work, work / "disk.img", kind
        self.root = work / "disk"
        self.root.mkdir(exist_ok=True)
        self.mounted = size is not None
        if kind == "tmpfs" and self.mounted:
            run("mount", "-t", "tmpfs", "-o", f"size={size}", "none", self.root)
        elif self.mounted:
            with self.image.open("wb") as image:
                image.truncate(size)
            run("mkfs.ext4", "-q", "-F", self.image)
            self.attach()
        self.cache = self.root / "cache"

    def attach(self):
        run("mount", "-o", "loop,errors=remount-ro", self.image, self.root)

    def grow(self, size):
        if self.mounted:
            run("mount", "-o", f"remount,size={size}", self.root)

    def begin_anew(self):
        """As after a reboot. Another namespace may hold the mount that is gone, so this is a copy."""
        quiet("umount", "--lazy", self.root)
        copy = self.image.with_suffix(f".{time.monotonic_ns()}")
        run("cp", "--sparse=always", self.image, copy)
        self.image.unlink()
        self.image = copy
        subprocess.run(["e2fsck", "-p", self.image], check=False, capture_output=True)
        self.attach()

    def stop_at_once(self):
        """What is not written is lost, as when the power goes."""
        folder = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, EXT4_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(folder)

    def fail(self):
        """As an error that ext4 finds does: from now on it is read-only."""
        device = os.stat(self.root).st_dev
        name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("x")

    def close(self):
        if self.mounted:
            quiet("umount", "--lazy", self.root)
        shutil.rmtree(self.root, ignore_errors=True)
        self.image.unlink(missing_ok=True)


def run(*command):
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def quiet(*command):
    return subprocess.run(command, check=False, capture_output=True, timeout=120).returncode


def gone(pid):
    return not Path(f"/proc/{pid}").exists()


class Origin:
    """A torrent, its bytes, and a daemon that seeds it."""

    def __init__(self, program, work, chance):
        self.program, self.work = program, work
        self.port = free_port()
        self.kinds = []
        for kind, piece in [("--v1", 64), ("--hybrid", 128), ("--v2", 256)]:
            root = work / "origin" / kind[2:]
            root.mkdir(parents=True)
            lengths = [9 * MIB + 77, 5 * MIB, 3 * MIB + 1, *[chance.randrange(1, 60_000) for _ in range(60)]]
            for number, length in enumerate(lengths):
                (root / f"f{number:02}").write_bytes(chance.randbytes(length))
            torrent = work / f"{kind[2:]}.torrent"
            run(program, "create", root, kind, "--piece-length", str(piece << 10), "-o", torrent)
            settings = ["--data-dir", work / "seeds", "--port", str(self.port), "--listen", "127.0.0.1"]
            socket = ["--socket", work / "seeder.socket"]
            run(program, "seed", *socket, *settings, "--no-lsd", "--no-dht", torrent, root)
            files = {path.name: path.read_bytes() for path in sorted(root.iterdir())}
            self.kinds.append((torrent, files, piece << 10))

    def close(self):
        pid = status(self.program, self.work / "seeder.socket")["pid"]
        os.kill(pid, signal.SIGTERM)


def status(program, socket):
    command = [program, "status", "--json", "--socket", str(socket)]
    said = subprocess.run(command, check=True, capture_output=True, timeout=30).stdout
    return json.loads(said)[0]


class Round:
    """One life of a cache."""

    def __init__(self, args, work, origin, chance, fault, preload):
        self.args, self.work, self.origin = args, work, origin
        self.chance, self.fault, self.preload = chance, fault, preload
        self.torrent, self.files, self.piece_length = chance.choice(origin.kinds)
        self.total = sum(map(len, self.files.values()))
        self.mount = work / "mount"
        self.mount.mkdir(exist_ok=True)
        self.socket = work / "socket"
        size = {"full": 12 * MIB, "readonly": 80 * MIB, "power": 80 * MIB}.get(fault)
        self.disk = Disk(work, size, "tmpfs" if fault == "full" else "ext4")
        self.samples, self.wrong = [], []
        self.reads = self.errors = 0
        self.ending = False
        self.slowest_mount, self.said, self.pid = 0.0, "", None

    def start(self, rate=RATE, failing=False):
        """Mounts; the daemon's pid. On a disk that fails now and then it may take several attempts."""
        for _ in range(20 if failing else 1):
            pid = self.try_start(rate, failing)
            if pid is not None:
                return pid
        raise Wrong(f"cannot be mounted: {self.said}")

    def try_start(self, rate=RATE, failing=False):
        """Mounts; the daemon's pid, or `None`."""
        environment = dict(os.environ)
        if failing:
            environment |= {"LD_PRELOAD": str(self.preload), "FAIL_ONE_IN": "50"}
            environment["FAIL_SEED"] = str(self.chance.randrange(1 << 30))
        settings = ["--socket", self.socket, "--data-dir", self.disk.cache, "--listen", "127.0.0.1"]
        settings += ["--no-lsd", "--no-dht", "--download-limit", str(rate)]
        peer = ["--peer", f"127.0.0.1:{self.origin.port}"]
        command = [self.args.program, "mount", *settings, *peer, self.torrent, self.mount]
        began = time.monotonic()
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=60, env=environment
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            if len(lines) != 1:
                raise Wrong(f"an error of {len(lines)} lines: {done.stderr}")
            self.said = lines[0]
            return None
        self.slowest_mount = max(self.slowest_mount, time.monotonic() - began)
        self.pid = status(self.args.program, self.socket)["pid"]
        return self.pid

    def sample(self):
        while not self.ending:
            try:
                now = status(self.args.program, self.socket)
                self.samples.append((time.monotonic(), now["verified"]))
            except (subprocess.SubprocessError, ValueError, IndexError):
                pass
            time.sleep(0.02)

    def read(self, seed):
        chance = random.Random(seed)
        names = list(self.files)
        while not self.ending:
            name = chance.choice(names[:3] if chance.random() < 0.7 else names)
            right = self.files[name]
            begin = chance.randrange(len(right))
            length = chance.choice([1, 4096, 65536, MIB])
            try:
                with open(self.mount / name, "rb", buffering=0) as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    got = os.pread(file.fileno(), length, begin)
            except OSError:
                self.errors += 1
                time.sleep(0.01)
                continue
            self.reads += 1
            if got != right[begin : begin + length]:
                self.wrong.append(f"{name} {begin} {length}")

    def live(self, pid, seconds):
        """Reads for so long, with what goes wrong on the way, and then kills the daemon."""
        self.ending, self.samples = False, []
        threads = [threading.Thread(target=self.sample)]
        seeds = [self.chance.random() for _ in range(READERS)]
        threads += [threading.Thread(target=self.read, args=(seed,)) for seed in seeds]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        if self.fault == "power":
            self.disk.stop_at_once()
            stopped = time.monotonic()
            time.sleep(self.chance.uniform(0, 0.5))
        elif self.fault == "readonly":
            self.disk.fail()
            time.sleep(self.chance.uniform(0, 1))
        self.listed = self.pieces_listed()
        os.kill(pid, signal.SIGKILL)
        moment = (stopped if self.fault == "power" else time.monotonic()) - LOSS
        wait_until("the daemon is gone", 30, lambda: gone(pid))
        self.ending = True
        for thread in threads:
            thread.join(60)
        if self.wrong:
            raise Wrong(f"wrong bytes: {self.wrong[:5]}")
        # What may be lost is what was verified in the last five seconds.
        self.verified = max([verified for _, verified in self.samples], default=0)
        self.settled = max([verified for at, verified in self.samples if at <= moment], default=0)

    def pieces_listed(self):
        """Pieces of the long files that the index lists, in bytes."""
        index = next(self.disk.cache.glob("*/index"), None)
        if index is None or self.fault == "power":
            return 0
        long = sum(map(len, list(self.files.values())[:3])) // self.piece_length
        bits = index.read_bytes()[32 : 32 + long // 8]
        return sum(byte.bit_count() for byte in bits) * self.piece_length

    def damage(self):
        """The index is cut or garbled, and pages of the data were never written."""
        index = next(self.disk.cache.glob("*/index"), None)
        if index is None:
            return
        content = bytearray(index.read_bytes())
        for _ in range(self.chance.randrange(1, 9)):
            if content:
                content[self.chance.randrange(len(content))] = self.chance.randrange(256)
        if self.chance.random() < 0.5:
            content = content[32:] if self.chance.random() < 0.2 else content
            content = content[: self.chance.randrange(len(content) + 1)]
        elif self.chance.random() < 0.5:
            content[32:] = b"\xff" * len(content[32:])
        index.write_bytes(content)
        for path in self.disk.cache.glob("*/files/*"):
            with path.open("r+b") as file:
                size = path.stat().st_size
                for _ in range(self.chance.randrange(0, 4)):
                    file.seek(self.chance.randrange(size) // 4096 * 4096)
                    file.write(bytes(min(4096, size - file.tell())))

    def check_all(self, failing=False):
        """Mounts and compares everything."""
        self.start(rate=1 << 30, failing=failing)
        for name, right in self.files.items():
            with open(self.mount / name, "rb") as file:
                if file.read() != right:
                    raise Wrong(f"wrong bytes in {name} after the restart")
        return status(self.args.program, self.socket)

    def run(self):
        lives = 1 + (self.chance.randrange(3) if self.fault == "kill" else 0)
        failing, lost = self.fault == "eio", 0
        for _ in range(lives):
            power = self.fault == "power"
            pid = self.start(failing=failing, rate=2 * MIB if power else RATE)
            self.live(pid, self.chance.uniform(*((6, 8.5) if power else (0, 2.2))))
        if self.fault == "readonly":
            if self.try_start() is not None:
                raise Wrong("a read-only cache was accepted")
            self.disk.begin_anew()
        elif self.fault == "power":
            self.disk.begin_anew()
        elif self.fault == "full":
            self.disk.grow(80 * MIB)
        elif self.fault == "torn":
            self.damage()
        after = self.check_all(failing)
        if self.fault in ("kill", "power"):
            # What was fetched though it had been here.
            here = self.total - (after["downloaded"] - after["wasted"])
            for what, before in [("verified", self.settled), ("listed", self.listed)]:
                if before > here + SLACK:
                    raise Wrong(f"{before} bytes were {what}, {here} are left")
            lost = max(self.verified - here, 0)
        if self.slowest_mount > MOUNT_WITHIN:
            raise Wrong(f"a mount took {self.slowest_mount:.1f} s")
        return lost

    def close(self):
        self.ending = True
        unmount(self.mount)
        if self.pid and not gone(self.pid):
            os.kill(self.pid, signal.SIGKILL)
            wait_until("the daemon is gone", 30, lambda: gone(self.pid))
        self.disk.close()


def build(work):
    """The library that lets reads and writes of the cache fail."""
    library = work / "failing_disk.so"
    run("gcc", "-O2", "-shared", "-fPIC", "-o", library, FAILING, "-ldl")
    ctypes.CDLL(str(library))
    return library


def rounds(args, work, origin, fault, preload):
    chance = random.Random(f"{args.seed} {fault}")
    most_lost, sum_lost, reads, errors, slowest = 0, 0, 0, 0, 0.0
    began = time.monotonic()
    for number in range(args.rounds):
        one = Round(args, work, origin, chance, fault, preload)
        try:
            lost = one.run()
        except (Wrong, TimeoutError, subprocess.SubprocessError, OSError) as error:
            said = getattr(error, "stderr", "") or ""
            raise SystemExit(f"{fault}, round {number}, seed {args.seed}: {error} {said}") from error
        finally:
            one.close()
        most_lost, sum_lost = max(most_lost, lost), sum_lost + lost
        reads, errors = reads + one.reads, errors + one.errors
        slowest = max(slowest, one.slowest_mount)
        if (number + 1) % 25 == 0 or number + 1 == args.rounds:
            took = time.monotonic() - began
            print(
                f"{fault}: {number + 1} rounds in {took:.0f} s, {reads} reads without a wrong byte, {errors}"
                f" failed; KiB lost: {most_lost >> 10} at most, {sum_lost >> 10} in all; slowest mount"
                f" {slowest:.2f} s",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--faults", default="kill,full,eio,torn,readonly,power")
    parser.add_argument("--seed", type=int, default=None, help="for the same choices again")
    args = parser.parse_args()
    args.program = os.path.abspath(args.program)
    args.seed = args.seed if args.seed is not None else int(time.time())
    work = Path(tempfile.mkdtemp(prefix="p2pfs-crash-"))
    origin = Origin(args.program, work, random.Random(args.seed))
    try:
        for fault in args.faults.split(","):
            rounds(args, work, origin, fault, build(work) if fault == "eio" else None)
    finally:
        origin.close()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
