#!/usr/bin/python3
"""Reads torrents that are together five times the cache at random, and watches how much it takes.

    soak_cache.py P2PFS [--minutes 5] [--cache MIB] [--seed N]

One daemon seeds ten torrents (v1, v2, hybrid; one file, many small ones), another has them all
mounted with a cache of a fifth of their size. Readers read ranges at random, past what the kernel
keeps, and compare; `du` looks at the cache every 100 ms. It fails if the cache ever takes more than
it may, a byte is wrong, or a read takes over ten seconds.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from lab import free_port, p2pfs_status, unmount

MIB = 1 << 20
TORRENTS = 10
READERS = 6
SLOWEST = 10.0
DU_EVERY = 0.1


class Soak:
    def __init__(self, args, work):
        self.args, self.work = args, work
        self.random = random.Random(args.seed)
        self.limit = args.cache * MIB
        self.cache = work / "cache"
        self.port = free_port()
        self.failures = []
        self.end = False
        self.most = self.looks = 0
        self.slowest = 0.0
        self.reads = self.bytes = 0
        self.lock = threading.Lock()
        self.mounts, self.pids = [], {}

    def p2pfs(self, name, verb, *arguments):
        command = [self.args.program, verb, "--socket", self.work / f"{name}.socket", *arguments]
        return subprocess.run(command, check=True, timeout=120, capture_output=True)

    def settings(self, name):
        cache = ["--data-dir", self.work / name, "--listen", "127.0.0.1"]
        return [*cache, "--no-lsd", "--no-dht"]

    def make(self, number):
        """A torrent of half of the cache, give or take."""
        size = self.limit // 2 * self.random.randrange(90, 110) // 100
        root = self.work / "origin" / f"t{number}"
        root.mkdir(parents=True)
        lengths = [size]
        if number % 3 == 1:
            lengths = [size // 3, size // 4, 3000, size // 5, 17]
        elif number % 3 == 2:
            lengths = [self.random.randrange(1, 4 * size // 200) for _ in range(100)]
        for index, length in enumerate(lengths):
            (root / f"f{index}").write_bytes(self.random.randbytes(length))
        kind = ["--v1", "--v2", "--hybrid"][number % 3 if number % 2 else 0]
        piece = str(self.random.choice([64, 256, 1024]) << 10)
        torrent = self.work / f"t{number}.torrent"
        command = [self.args.program, "create", root, kind, "--piece-length", piece, "-o", torrent]
        subprocess.run(command, check=True, capture_output=True)
        port = ["--port", str(self.port)]
        self.p2pfs("seeder", "seed", *self.settings("seeder"), *port, torrent, root)
        return torrent, root

    def mount(self, number, torrent):
        target = self.work / f"m{number}"
        target.mkdir()
        options = ["--peer", f"127.0.0.1:{self.port}", "--cache-size", str(self.limit)]
        options += ["--on-demand"] if number % 2 else []
        self.mounts.append(target)
        self.p2pfs("reader", "mount", *self.settings("cache"), *options, torrent, target)
        return target

    def look(self):
        """What `du` says, every 100 ms."""
        command = ["du", "--summarize", "--block-size=1", self.cache]
        while not self.end:
            said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
            taken = int(said.split()[0]) if said else 0
            self.most, self.looks = max(self.most, taken), self.looks + 1
            if taken > self.limit:
                self.failures.append(f"the cache takes {taken} of {self.limit}")
            time.sleep(DU_EVERY)

    def read(self, files, seed, until):
        chance = random.Random(seed)
        while time.monotonic() < until and not self.failures:
            mounted, origin = chance.choice(files)
            size = origin.stat().st_size
            begin = chance.randrange(size)
            length = chance.choice([1, 4096, 65536, MIB])
            file = os.open(mounted, os.O_RDONLY)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                began = time.monotonic()
                got = os.pread(file, length, begin)
                took = time.monotonic() - began
            finally:
                os.close(file)
            with origin.open("rb") as right:
                right.seek(begin)
                if got != right.read(length):
                    self.failures.append(f"wrong bytes: {mounted} {begin} {length}")
            with self.lock:
                self.slowest = max(self.slowest, took)
                self.reads, self.bytes = self.reads + 1, self.bytes + len(got)
            if took > SLOWEST:
                self.failures.append(f"a read took {took:.1f} s: {mounted} {begin} {length}")

    def guarded(self, work, *arguments):
        """A thread that says so when it fails."""

        def run():
            try:
                work(*arguments)
            except Exception as error:  # pylint: disable=broad-except
                self.failures.append(f"{type(error).__name__}: {error}")

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def run(self):
        files, total = [], 0
        looking = self.guarded(self.look)
        for number in range(TORRENTS):
            torrent, root = self.make(number)
            mount = self.mount(number, torrent)
            for path in root.iterdir():
                files.append((mount / path.name, path))
                total += path.stat().st_size
        for name in ["seeder", "reader"]:
            socket = self.work / f"{name}.socket"
            self.pids[name] = p2pfs_status(self.args.program, socket)["pid"]
        print(f"{total / MIB:.0f} MiB in {TORRENTS} torrents, a cache of {self.args.cache} MiB")
        until = time.monotonic() + self.args.minutes * 60
        seeds = [self.args.seed * 100 + index for index in range(READERS)]
        readers = [self.guarded(self.read, files, seed, until) for seed in seeds]
        while any(reader.is_alive() for reader in readers) and not self.failures:
            time.sleep(min(15, max(1, until - time.monotonic())))
            print(self.summary(), flush=True)
        self.end = True
        looking.join()
        assert not self.failures, "; ".join(self.failures[:5])

    def summary(self):
        return (
            f"{self.reads} reads, {self.bytes / MIB:.0f} MiB, the slowest {self.slowest:.2f} s; "
            f"at most {self.most / MIB:.1f} of {self.args.cache} MiB taken, in {self.looks} looks"
        )

    def close(self):
        for mount in self.mounts:
            unmount(mount)
        for pid in self.pids.values():
            os.kill(pid, signal.SIGTERM)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--cache", type=int, default=64, help="MiB")
    parser.add_argument("--seed", type=int, default=None, help="for the same choices again")
    args = parser.parse_args()
    args.program = os.path.abspath(args.program)
    args.seed = args.seed if args.seed is not None else int(time.time())
    print(f"seed {args.seed}")
    work = Path(tempfile.mkdtemp(prefix="p2pfs-soak-"))
    soak = Soak(args, work)
    try:
        soak.run()
    finally:
        soak.close()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
