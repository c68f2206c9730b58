#!/usr/bin/python3
"""Cold sequential read of a large file through the mount, beside libtorrent and btfs.

    cold_read.py P2PFS [--mib 1024] [--rounds 3] [--btfs-seconds 120] [--json FILE]

One libtorrent seeder on loopback serves one file of random bytes. In each round, in turn:
libtorrent downloads it; p2pfs mounts it (new cache) and dd reads it through the mount; btfs does
the same. Times run from the start of the client (p2pfs, btfs: from the mount command) to the last
byte. Then 64 readers wait on a torrent that nobody has, while ls, stat and statvfs are timed.

Needs root for a network namespace of its own: btfs looks for peers outside of the machine and
cannot be told not to. Without root btfs is left out.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from lab import (  # noqa: E402
    Peer,
    Watch,
    end,
    free_port,
    listens,
    make_torrent,
    p2pfs_status,
    unmount,
    wait_until,
)

READERS = 64
LOOKS = 1000


def in_own_network():
    """Runs this again where there is nothing but loopback, when that is possible."""
    if os.environ.get("P2PFS_BENCH_NETNS") or os.geteuid() != 0:
        return os.environ.get("P2PFS_BENCH_NETNS") is not None
    os.environ["P2PFS_BENCH_NETNS"] = "1"
    script = 'ip link set lo up && exec "$@"'
    command = ["unshare", "--net", "sh", "-c", script, "sh", sys.executable, *sys.argv]
    os.execvp(command[0], command)


class Lab:
    """What all rounds share: the data, its torrent and its seeder."""

    def __init__(self, args, work):
        self.args, self.work = args, work
        self.size = args.mib << 20
        origin = work / "origin"
        origin.mkdir()
        self.data = origin / "film.bin"
        digest = hashlib.sha256()
        with open(self.data, "wb") as out:
            for _ in range(args.mib):
                block = os.urandom(1 << 20)
                digest.update(block)
                out.write(block)
        self.sha256 = digest.hexdigest()
        self.torrent = work / "film.torrent"
        make_torrent(self.data, self.torrent, args.piece_kib << 10)
        os.sync()
        self.seeder = Peer(self.torrent, origin)
        self.seeder.wait_until_complete(600)

    def fresh(self, name):
        path = self.work / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path


def measured(size, seconds, watch, read=None):
    """One result; `read` where less than everything came."""
    done = size if read is None else read
    return {
        "MB/s": round(done / seconds / 1e6, 1),
        "seconds": round(seconds, 2),
        "bytes": done,
        "CPU s": round(watch.cpu, 2),
        "peak anon MiB": round(watch.peak_anon / 1024, 1),
        "peak RSS MiB": round(watch.peak_rss / 1024, 1),
    }


def libtorrent(lab):
    save = lab.fresh("libtorrent")
    peer = Peer(lab.torrent, save, "--plaintext")
    watch = Watch(peer.process.pid)
    begin = time.monotonic()
    peer.connect(lab.seeder.address)
    peer.wait_until_complete(600)
    seconds = time.monotonic() - begin
    watch.stop()
    peer.close()
    shutil.rmtree(save)
    return measured(lab.size, seconds, watch)


def read_all(path, limit):
    """dd through the mount; bytes read, and whether it came to the end in time."""
    command = ["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"]
    dd = subprocess.Popen(command)
    try:
        return dd.wait(limit) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        end(dd)


def p2pfs(lab):
    folder = lab.fresh("p2pfs")
    mount, socket = folder / "mount", folder / "socket"
    mount.mkdir()
    begin = time.monotonic()
    command = [lab.args.program, "mount", "--socket", socket, "--listen", "127.0.0.1", "--no-lsd"]
    command += ["--data-dir", folder / "cache", "--peer", lab.seeder.address]
    subprocess.run([*command, lab.torrent, mount], check=True, timeout=60)
    mounted = time.monotonic() - begin
    watch = Watch(p2pfs_status(lab.args.program, socket)["pid"])
    try:
        assert read_all(mount / "film.bin", 600), "the read through p2pfs did not end"
        seconds = time.monotonic() - begin
        watch.stop()
        result = measured(lab.size, seconds, watch)
        result["mount s"] = round(mounted, 3)
        with open(mount / "film.bin", "rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == lab.sha256, "wrong bytes"
    finally:
        unmount(mount)
        watch.kill()
    shutil.rmtree(folder)
    return result


def btfs(lab):
    folder = lab.fresh("btfs")
    mount = folder / "mount"
    mount.mkdir()
    port = free_port()
    begin = time.monotonic()
    command = ["btfs", "-f", f"--data-directory={folder}", f"--min-port={port}"]
    command += [f"--max-port={port}", lab.torrent, mount]
    # Its own output is of no use here, and it has no terminal to ask.
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    watch = Watch(process.pid)
    limit = lab.args.btfs_seconds
    try:
        # It cannot be told of a peer: the seeder goes to it.
        wait_until("btfs listens", limit, lambda: listens(port))
        lab.seeder.connect(f"127.0.0.1:{port}")
        film = mount / "film.bin"
        wait_until("btfs lists the file", limit, film.exists)
        got_before = lab.seeder.uploaded()
        ended = read_all(film, max(1, limit - (time.monotonic() - begin)))
        seconds = time.monotonic() - begin
        # Cut off: what the seeder sent in the meantime, which is never less than what was read.
        read = None if ended else min(lab.seeder.uploaded_now() - got_before, lab.size)
        watch.stop()
        result = measured(lab.size, seconds, watch, read)
        result["ended"] = ended
        return result
    except TimeoutError as error:
        watch.stop()
        return dict(measured(lab.size, limit, watch, 0), ended=False, error=str(error))
    finally:
        # A reader of btfs may be unkillable: end the connection first.
        process.kill()
        unmount(mount)
        end(process)


def latency(lab):
    """Times metadata while 64 reads wait for a torrent that nobody has."""
    folder = lab.fresh("latency")
    origin = folder / "many"
    origin.mkdir()
    for index in range(READERS):
        (origin / f"file{index:02}").write_bytes(os.urandom(200_000))
    torrent = folder / "many.torrent"
    make_torrent(origin, torrent, 64 << 10)
    mount, socket = folder / "mount", folder / "socket"
    mount.mkdir()
    command = [lab.args.program, "mount", "--socket", socket, "--listen", "127.0.0.1", "--no-lsd"]
    command += ["--data-dir", folder / "cache", torrent, mount]
    subprocess.run(command, check=True, timeout=60)
    watch = Watch(p2pfs_status(lab.args.program, socket)["pid"])
    files = sorted(mount.iterdir())
    readers = [subprocess.Popen(["cat", file], stdout=subprocess.DEVNULL) for file in files]
    try:
        wait_until("all readers wait", 30, lambda: all(map(asleep_in_a_read, readers)))
        show = ["ls", "-l", mount]
        return {
            "readdir": timed(LOOKS, lambda _: os.listdir(mount)),
            "stat": timed(LOOKS, lambda index: os.stat(files[index % READERS])),
            "statvfs": timed(LOOKS, lambda _: os.statvfs(mount)),
            "ls -l (the program)": timed(
                LOOKS // 10, lambda _: subprocess.run(show, stdout=subprocess.DEVNULL, check=True)
            ),
        }
    finally:
        for reader in readers:
            end(reader)
        unmount(mount)
        watch.kill()
        shutil.rmtree(folder)


def asleep_in_a_read(reader):
    stat = Path(f"/proc/{reader.pid}/stat").read_text()
    return stat.rsplit(") ", 1)[1].startswith("D")


def timed(looks, probe):
    """Quantiles of a call in milliseconds."""
    took = []
    for index in range(looks):
        begin = time.monotonic()
        probe(index)
        took.append((time.monotonic() - begin) * 1000)
    took.sort()

    def quantile(share):
        return round(took[min(looks - 1, int(looks * share))], 3)

    return {"p50 ms": quantile(0.5), "p99 ms": quantile(0.99), "max ms": round(took[-1], 3)}


def medians(rounds):
    numbers = [key for key, value in rounds[0].items() if isinstance(value, (int, float))]
    middle = {key: statistics.median(one[key] for one in rounds) for key in numbers}
    return {key: round(value, 3) if value % 1 else int(value) for key, value in middle.items()}


def table(rows):
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = [["", *columns]]
    lines += [[name, *(str(row.get(key, "")) for key in columns)] for name, row in rows.items()]
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    for line in lines:
        cells = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))
        print(line[0].ljust(widths[0]), *cells, sep="  ")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--piece-kib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--btfs-seconds", type=int, default=120)
    parser.add_argument("--only", default="", help="comma-separated: libtorrent,p2pfs,btfs,latency")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.program = os.path.abspath(args.program)
    alone = in_own_network()

    clients = {"libtorrent": libtorrent, "p2pfs": p2pfs, "btfs": btfs}
    if not alone or not shutil.which("btfs"):
        print("btfs is left out: it needs its package, and root for a network of its own")
        del clients["btfs"]
    wanted = args.only.split(",") if args.only else [*clients, "latency"]
    clients = {name: run for name, run in clients.items() if name in wanted}

    result = {"MiB": args.mib, "piece KiB": args.piece_kib, "rounds": {}, "median": {}}
    with tempfile.TemporaryDirectory(prefix="p2pfs-bench-") as folder:
        lab = Lab(args, Path(folder))
        try:
            result["rounds"] = {name: [] for name in clients}
            for number in range(args.rounds):
                for name, run in clients.items():
                    one = run(lab)
                    result["rounds"][name].append(one)
                    print(f"round {number + 1}, {name}: {one}", flush=True)
            if "latency" in wanted:
                result["latency while 64 reads wait"] = latency(lab)
        finally:
            lab.seeder.close()

    result["median"] = {name: medians(rounds) for name, rounds in result["rounds"].items()}
    base = result["median"].get("libtorrent")
    if base:
        for row in result["median"].values():
            row["of libtorrent"] = round(row["MB/s"] / base["MB/s"], 3)
    print(f"\nmedians of {args.rounds} rounds, {args.mib} MiB from one libtorrent seeder, loopback")
    table(result["median"])
    if "latency while 64 reads wait" in result:
        print("\nwhile 64 reads wait for a dead swarm")
        table(result["latency while 64 reads wait"])
    text = json.dumps(result, indent=1)
    if args.json:
        args.json.write_text(text + "\n")
    else:
        print("\n" + text)


if __name__ == "__main__":
    main()
