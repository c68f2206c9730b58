#!/usr/bin/python3
"""One measurement of the benches of reads, in namespaces made for it (wan.alone).

    read_cases.py SPEC     SPEC is JSON, see reads.py; the last line of stdout is the result, also JSON
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import libtorrent as lt

sys.path.insert(0, str(Path(__file__).parent))
from lab import end, wait_until  # noqa: E402
from read_clients import CLIENTS, PORT, SEEDS, NotPossible  # noqa: E402
from wan import LINES, Wan  # noqa: E402

MIB = 1 << 20
READ = 4096
TRACKER_HOST, TRACKER_PORT = 9, 6969
# Seconds after which random reads end, however many there were: some clients take seconds for each.
RANDOM_SECONDS = 60
# What a sequential reader has read before the random ones begin.
UNDER_WAY = 32 * MIB
REPEATS = 5


class Stage:
    """What all cases have: the link, the seeds and the tracker behind it, and the data."""

    def __init__(self, spec, folder):
        self.spec, self.folder = spec, folder
        data = spec["data"]
        self.torrent, self.save = Path(data["torrent"]), Path(data["save"])
        self.name, self.size, self.piece = data["name"], data["size"], data["piece"]
        self.program, self.seeders = spec["program"], spec["seeders"]
        self.line = LINES[spec["link"]]
        self.wan = Wan(self.line, spec["wan_link"], spec["round"] + 1)
        self.seeds, self.tracker = [], None

    def prepare(self):
        for number in range(1, self.seeders + 1):
            self.seeds.append(SEEDS[self.spec["seeds"]](self, number))
        address = f"{self.wan.far(TRACKER_HOST)}:{TRACKER_PORT}"
        script = Path(__file__).parent / "fixed_tracker.py"
        peers = [f"{self.wan.far(number)}:{PORT}" for number in range(1, self.seeders + 1)]
        command = self.wan.there(sys.executable, script, address, *peers)
        self.tracker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.tracker.stdout.readline() == "ready\n", "the tracker does not listen"
        self.announce = f"http://{address}/announce"

    def with_tracker(self):
        """The torrent file, naming the tracker."""
        content = lt.bdecode(self.torrent.read_bytes())
        content[b"announce"] = self.announce.encode()
        path = self.folder / "announced.torrent"
        path.write_bytes(lt.bencode(content))
        return path

    def magnet(self):
        info = lt.torrent_info(str(self.torrent))
        return f"magnet:?xt=urn:btih:{info.info_hash()}&tr={self.announce}"

    def close(self):
        for seed in self.seeds:
            seed.close()
        if self.tracker:
            end(self.tracker)
        self.wan.close()


class Wire:
    """What came over the link, and when."""

    def __init__(self, wan):
        self.wan, self.begin = wan, wan.received()
        self.seen = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._over.is_set():
            self.seen.append((time.monotonic(), self.wan.received() - self.begin))
            self._over.wait(0.02)

    def stop(self):
        self._over.set()
        self._thread.join()
        self.total = self.wan.received() - self.begin
        return self.total

    def rate_in_the_middle(self):
        """Bytes a second from a quarter to three quarters of all."""
        inside = [one for one in self.seen if 0.25 <= one[1] / self.total <= 0.75]
        if len(inside) < 2:
            return None
        (since, first), (until, last) = inside[0], inside[-1]
        return (last - first) / (until - since)


def dd(path):
    """Reads a file from its beginning to its end."""
    command = ["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


def taken(watch, payload):
    """What the process of a client took."""
    if watch is None:
        return {}
    watch.stop()
    gib = payload / (1 << 30)
    anon, cpu = watch.peak_anon / 1024, watch.cpu / gib
    return {"CPU s/GiB": cpu, "CPU s": watch.cpu, "anon MiB": anon}


def sequential(stage, client):
    """All of one file, from the start of the client to the last byte."""
    torrent = stage.with_tracker()
    wire = Wire(stage.wan)
    begin = time.monotonic()
    if client.mounts:
        client.mount(torrent)
        client.look()
        reader = dd(client.path / stage.name)
        assert reader.wait() == 0, "the file was not read to its end"
    else:
        client.download(torrent)
    seconds = time.monotonic() - begin
    arrived = wire.stop()
    middle = wire.rate_in_the_middle()
    result = {"MB/s": stage.size / seconds / 1e6, "seconds": seconds}
    if stage.line:
        result["of link"] = stage.size / seconds / stage.line.bytes_per_second
        if middle:
            payload = middle * stage.size / arrived
            result["of link, middle"] = payload / stage.line.bytes_per_second
    result["wire/byte"] = arrived / stage.size
    return result | taken(client.watch, stage.size)


def magnet(stage, client):
    """From nothing but a magnet link to the list of files, and to the first byte of one."""
    link = stage.magnet()
    begin = time.monotonic()
    client.mount(link)
    names = os.listdir(client.path)
    listed = time.monotonic() - begin
    assert names == [stage.name], names
    with open(client.path / stage.name, "rb", buffering=0) as file:
        assert len(file.read(1)) == 1
    return {"listing s": listed, "first byte s": time.monotonic() - begin}


def read_somewhere(path, stage, count):
    """Milliseconds that reads of 4 KiB took, each in another piece; one more than `count`."""
    pieces = os.stat(path).st_size // stage.piece
    dice = random.Random(stage.spec["round"])
    took = []
    until = time.monotonic() + RANDOM_SECONDS
    with open(path, "rb", buffering=0) as file:
        for piece in dice.sample(range(pieces), min(count + 1, pieces)):
            offset = piece * stage.piece + READ * dice.randrange(stage.piece // READ)
            begin = time.monotonic()
            assert len(os.pread(file.fileno(), READ, offset)) == READ
            took.append((time.monotonic() - begin) * 1e3)
            if time.monotonic() > until:
                break
    return took


def stall(stage, client):
    """A sequential read from seeders of unlike rates, of which the fastest stops at a quarter."""
    client.mount(stage.with_tracker())
    client.look()
    client.wait_for_peers(stage.seeders)
    stopped, before, after = False, [], []
    with open(client.path / stage.name, "rb", buffering=0) as file:
        begin = time.monotonic()
        while True:
            asked = time.monotonic()
            if not file.read(MIB // 8):
                break
            (after if stopped else before).append(time.monotonic() - asked)
            if not stopped and file.tell() >= stage.size / 4:
                stage.seeds[0].pause()
                stopped = True
        seconds = time.monotonic() - begin
    status = client.status()
    return {
        "MB/s": stage.size / seconds / 1e6,
        "longest before s": max(before),
        "longest after s": max(after),
        "duplicates": status["wasted"] / stage.size,
    }


def position(process):
    """How far dd has read."""
    if process.poll() is not None:
        raise NotPossible(f"the sequential read is over too soon (exit code {process.returncode})")
    fields = Path(f"/proc/{process.pid}/fdinfo/0").read_text().split()
    return int(fields[fields.index("pos:") + 1])


def settled(client):
    """What was fetched, once nothing more comes."""
    last = None
    while (now := client.fetched()) != last:
        last = now
        time.sleep(0.3)
    return now


def scattered(stage, client):
    """Random reads, alone or while a sequential read runs, with or without the rest fetched too."""
    spec = stage.spec
    client.mount(stage.with_tracker(), *(["--on-demand"] if spec["on_demand"] else []))
    client.look()
    client.wait_for_peers(stage.seeders)
    folder = client.path if client.path.joinpath("random.bin").exists() else client.path / "mix"
    if spec["busy"]:
        reader = dd(folder / "film.bin")
        wait_until("the sequential read is under way", 60, lambda: position(reader) >= UNDER_WAY)
    alone = spec["on_demand"] and not spec["busy"]
    before, arrived = client.fetched(), stage.wan.received()
    at = position(reader) if spec["busy"] else 0
    begin = time.monotonic()
    took = read_somewhere(folder / "random.bin", stage, spec["reads"])
    seconds = time.monotonic() - begin
    arrived = stage.wan.received() - arrived
    # The first meets connections on which nothing was sent yet, whose windows are small.
    result = {"first ms": took[0], "reads": len(took) - 1} | quantiles(took[1:])
    if stage.line:
        result["of link"] = arrived / seconds / stage.line.bytes_per_second
        if stage.line.round_trip_ms:
            result["p50 round trips"] = result["p50 ms"] / stage.line.round_trip_ms
    if spec["busy"]:
        ahead = position(reader) - at
        result["sequential MB/s"] = ahead / seconds / 1e6
        if stage.line:
            result["sequential of link"] = ahead / seconds / stage.line.bytes_per_second
        end(reader)
    if alone:
        fetched = settled(client) - before
        result["KiB/read"] = fetched / len(took) / 1024
        result["pieces/touched"] = fetched / len(took) / stage.piece
    return result | {"anon MiB": taken(client.watch, 1)["anon MiB"]}


def quantiles(took):
    took = sorted(took)

    def quantile(share):
        return took[min(len(took) - 1, int(len(took) * share))]

    return {
        "p50 ms": quantile(0.5),
        "p99 ms": quantile(0.99),
        "p99/p50": quantile(0.99) / quantile(0.5),
        "max ms": took[-1],
    }


def timed(command):
    begin = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begin


def beside_native(command, here, native, repeats):
    """Seconds of a command on both, in turn: medians, and the first time on the mount."""
    first = timed(command(here))
    timed(command(native))
    times = [(timed(command(here)), timed(command(native))) for _ in range(repeats)]
    ours, theirs = (sorted(one)[repeats // 2] for one in zip(*times))
    return first, ours, theirs


def warm(stage, client):
    """Reading again what is here and verified."""
    client.mount(stage.with_tracker())
    client.look()
    path = client.path / stage.name
    assert dd(path).wait() == 0
    wait_until("all is verified", 60, lambda: client.status()["verified"] == stage.size)
    command = lambda path: ["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"]
    first, ours, native = beside_native(command, path, stage.save / stage.name, REPEATS)
    rate = stage.size / 1e6
    return {
        "first again MB/s": rate / first,
        "MB/s": rate / ours,
        "native MB/s": rate / native,
        "of native": native / ours,
        "first, of native": native / first,
    }


def tree(stage, client):
    """A hundred thousand files, of which nobody has any."""
    begin = time.monotonic()
    client.mount(stage.torrent)
    mounted = time.monotonic() - begin
    client.look()
    native = stage.save / stage.name
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", native], check=True, capture_output=True, text=True
    ).stdout.strip()
    result = {"mount s": mounted}
    looks = {
        "find -size": lambda path: ["find", path, "-size", "+3k"],
        "ls -lR": lambda path: ["ls", "-lR", path],
    }
    for name, command in looks.items():
        first, ours, theirs = beside_native(command, client.path, native, REPEATS)
        result |= {f"{name} first s": first, f"{name} s": ours}
        result |= {f"{name} native s": theirs, f"{name} native/ours": theirs / ours}
    return result | {"native is": kind, "anon MiB": taken(client.watch, 1)["anon MiB"]}


CASES = {
    "sequential": sequential,
    "magnet": magnet,
    "random": scattered,
    "stall": stall,
    "warm": warm,
    "tree": tree,
}


def measure(spec, folder):
    stage = Stage(spec, folder)
    client = None
    try:
        stage.prepare()
        client = CLIENTS[spec["client"]](stage)
        return CASES[spec["case"]](stage, client)
    except NotPossible as reason:
        return {"not possible": str(reason)}
    finally:
        if client:
            client.close()
        stage.close()


def main():
    spec = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory(dir=spec["work"]) as folder:
        print(json.dumps(measure(spec, Path(folder))), flush=True)
    # Threads of a client that does not end would hold this process.
    os._exit(0)


if __name__ == "__main__":
    main()
