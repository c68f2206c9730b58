#!/usr/bin/python3
"""How long it takes to mount again what a cache of 100 GB has.

    big_cache.py P2PFS [--gigabytes 100] [--rounds 3]

The torrents are zeros, so that sparse files are their data and one hash is that of all pieces: one long file,
100,000 files, and 20 torrents of which one is mounted. As root the system forgets what it has in memory
before each round. Measured: until the mount is there, until it is listed, until the first byte of a file in
the middle is read; with a limit of the cache and without. It fails if that takes over five seconds.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from lab import p2pfs_status, unmount, wait_until

GB = 10**9
PIECE = 1 << 20
WITHIN = 5.0


def bencode(value):
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, bytes):
        return b"%d:%s" % (len(value), value)
    if isinstance(value, list):
        return b"l" + b"".join(map(bencode, value)) + b"e"
    return b"d" + b"".join(bencode(key) + bencode(value[key]) for key in sorted(value)) + b"e"


def fill(cache, work, name, total, files):
    """A torrent of zeros, all of it in the cache; its .torrent file."""
    pieces, rest = divmod(total, PIECE)
    hashes = hashlib.sha1(bytes(PIECE)).digest() * pieces
    hashes += hashlib.sha1(bytes(rest)).digest() if rest else b""
    info = {b"name": name.encode(), b"piece length": PIECE, b"pieces": hashes}
    lengths = [total // files] * (files - 1)
    lengths.append(total - sum(lengths))
    if files == 1:
        info[b"length"] = total
    else:
        path = lambda number: [b"%03d" % (number // 1000), b"%06d" % number]
        info[b"files"] = [{b"length": n, b"path": path(i)} for i, n in enumerate(lengths)]
    raw = bencode(info)
    hash_ = hashlib.sha1(raw)
    root = cache / hash_.hexdigest()
    (root / "files").mkdir(parents=True)
    (root / "info").write_bytes(raw)
    count = len(hashes) // 20
    bits = bytearray(b"\xff" * (count // 8))
    if count % 8:
        bits.append(0xFF << (8 - count % 8) & 0xFF)
    header = b"p2pfsix1" + count.to_bytes(4, "big") + hash_.digest()
    (root / "index").write_bytes(header + bits)
    for number, length in enumerate(lengths):
        with (root / "files" / str(number)).open("wb") as file:
            file.truncate(length)
    torrent = work / f"{name}.torrent"
    torrent.write_bytes(b"d4:info" + raw + b"e")
    return torrent


def measure(program, work, cache, torrent, limit):
    """Seconds until mounted, listed and read."""
    if os.geteuid() == 0:
        subprocess.run(["sync"], check=True)
        Path("/proc/sys/vm/drop_caches").write_text("3")
    mount, socket = work / "mount", work / "socket"
    mount.mkdir(exist_ok=True)
    settings = ["--socket", socket, "--data-dir", cache, "--listen", "127.0.0.1", "--no-lsd", "--no-dht"]
    settings += ["--cache-size", limit] if limit else []
    began = time.monotonic()
    subprocess.run([program, "mount", *settings, torrent, mount], check=True, capture_output=True)
    times = [time.monotonic() - began]
    files = sorted(Path(folder) / name for folder, _, names in os.walk(mount) for name in names)
    times.append(time.monotonic() - began)
    middle = files[len(files) // 2]
    with middle.open("rb", buffering=0) as file:
        file.seek(middle.stat().st_size // 2)
        assert file.read(1) == b"\0"
    times.append(time.monotonic() - began)
    pid = p2pfs_status(program, socket)["pid"]
    subprocess.run([program, "umount", "--socket", socket, mount], check=True, capture_output=True)
    os.kill(pid, 15)
    wait_until("the daemon leaves", 30, lambda: not Path(f"/proc/{pid}").exists())
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--gigabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    args.program = os.path.abspath(args.program)
    total, slowest = args.gigabytes * GB, 0.0
    for what, torrents, files in [
        ("one file", 1, 1),
        ("100,000 files", 1, 100_000),
        ("20 torrents of 500 files", 20, 500),
    ]:
        work = Path(tempfile.mkdtemp(prefix="p2pfs-big-"))
        try:
            cache = work / "cache"
            made = [fill(cache, work, f"t{n}", total // torrents, files) for n in range(torrents)]
            for limit in [None, "200G"]:
                rounds = [measure(args.program, work, cache, made[-1], limit) for _ in range(args.rounds)]
                times = [sorted(values)[len(values) // 2] for values in zip(*rounds)]
                slowest = max(slowest, *(values[-1] for values in rounds))
                print(
                    f"{args.gigabytes} GB, {what}, {'limited' if limit else 'no limit'}: mounted after"
                    f" {times[0]:.2f} s, listed {times[1]:.2f}, a byte read {times[2]:.2f}",
                    flush=True,
                )
        finally:
            unmount(work / "mount")
            shutil.rmtree(work, ignore_errors=True)
    if slowest > WITHIN:
        raise SystemExit(f"it took {slowest:.1f} s")


if __name__ == "__main__":
    main()
