#!/usr/bin/python3
"""Mounts, reads, kills and unmounts for a long time with one daemon, and watches it for leaks.

    soak.py P2PFS [--minutes 30] [--seed N]

One daemon keeps a torrent mounted all the time (so that it stays). Round after round it mounts
another, from libtorrent seeders that are killed at random, while several readers read random
ranges, some of them killed as they wait; what is read is compared; then it is unmounted. The
daemon's anonymous memory, descriptors and threads after each round must not keep growing.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from lab import Peer, Watch, end, make_torrent, p2pfs_status, unmount  # noqa: E402

MIB = 1 << 20
SIZE = 24 * MIB
READERS = 6
READS = 20
# Rounds before what the daemon holds counts as what it needs.
WARM_UP = 5
ROOM_MIB = 48
ROOM_DESCRIPTORS = 32


def footprint(pid):
    """Anonymous memory in MiB, open descriptors, threads."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    anonymous = int(fields["RssAnon"].split()[0]) / 1024
    return anonymous, len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"])


class Soak:
    def __init__(self, args, work):
        self.args, self.work = args, work
        self.random = random.Random(args.seed)
        self.socket = work / "socket"
        self.origin = work / "origin"
        self.origin.mkdir()
        self.bytes = self.random.randbytes(SIZE)
        (self.origin / "film.bin").write_bytes(self.bytes)
        self.torrent = work / "film.torrent"
        make_torrent(self.origin / "film.bin", self.torrent, 256 << 10)
        (self.origin / "anchor").write_bytes(b"keeps the daemon alive")
        self.anchor = work / "anchor.torrent"
        make_torrent(self.origin / "anchor", self.anchor, 16 << 10)

    def p2pfs(self, verb, *arguments):
        command = [self.args.program, verb, "--socket", self.socket, *arguments]
        subprocess.run(command, check=True, timeout=120)

    def mount(self, torrent, target, *options):
        target.mkdir(exist_ok=True)
        settings = ["--listen", "127.0.0.1", "--no-lsd", "--data-dir", self.work / "cache"]
        self.p2pfs("mount", *settings, *options, torrent, target)

    def reads(self, film, seed, wrong):
        chance = random.Random(seed)
        with open(film, "rb") as file:
            for _ in range(READS):
                begin = chance.randrange(SIZE)
                length = chance.choice([1, 4096, 65536, MIB])
                file.seek(begin)
                if file.read(length) != self.bytes[begin : begin + length]:
                    wrong.append((seed, begin, length))

    def round(self, number):
        mount = self.work / "mount"
        seeders = [Peer(self.torrent, self.origin, "--upload-limit", "20000000") for _ in "12"]
        last = Peer(self.torrent, self.origin)
        options = [word for peer in [*seeders, last] for word in ("--peer", peer.address)]
        try:
            self.mount(self.torrent, mount, *options)
            wrong = []
            seeds = [number * 100 + index for index in range(READERS)]
            film = mount / "film.bin"
            readers = [threading.Thread(target=self.reads, args=(film, s, wrong)) for s in seeds]
            victim = subprocess.Popen(["cat", film], stdout=subprocess.DEVNULL)
            for reader in readers:
                reader.start()
            time.sleep(self.random.uniform(0, 0.5))
            end(victim)
            for seeder in seeders:
                time.sleep(self.random.uniform(0, 0.3))
                seeder.close()
            for reader in readers:
                reader.join(120)
                assert not reader.is_alive(), f"round {number}: a read does not end"
            assert not wrong, f"round {number}: wrong bytes: {wrong}"
            self.p2pfs("umount", mount)
        finally:
            for peer in [*seeders, last]:
                peer.close()
            unmount(mount)
        if self.random.random() < 0.5:
            # The cache is the daemon's: with new bytes the next round downloads again.
            self.bytes = self.random.randbytes(SIZE)
            (self.origin / "film.bin").write_bytes(self.bytes)
            make_torrent(self.origin / "film.bin", self.torrent, 256 << 10)

    def run(self):
        anchor = self.work / "anchor-mount"
        self.mount(self.anchor, anchor)
        pid = p2pfs_status(self.args.program, self.socket)["pid"]
        watch = Watch(pid)
        deadline = time.monotonic() + self.args.minutes * 60
        number, baseline = 0, None
        try:
            while time.monotonic() < deadline or baseline is None:
                self.round(number)
                number += 1
                memory, descriptors, threads = footprint(pid)
                print(
                    f"round {number}: {memory:.1f} MiB anonymous, {descriptors} descriptors, "
                    f"{threads} threads",
                    flush=True,
                )
                if number == WARM_UP:
                    baseline = memory, descriptors
                elif baseline is not None:
                    assert memory < baseline[0] + ROOM_MIB, "memory keeps growing"
                    assert descriptors < baseline[1] + ROOM_DESCRIPTORS, "descriptors leak"
        finally:
            unmount(anchor)
            watch.kill()
        print(f"{number} rounds; peak {watch.peak_anon / 1024:.1f} MiB anonymous")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=None, help="for the same choices again")
    args = parser.parse_args()
    args.program = os.path.abspath(args.program)
    args.seed = args.seed if args.seed is not None else int(time.time())
    print(f"seed {args.seed}")
    work = Path(tempfile.mkdtemp(prefix="p2pfs-soak-"))
    try:
        Soak(args, work).run()
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
