#!/usr/bin/python3
"""Swarms of real processes over capped uplinks, p2pfs beside libtorrent.

    swarm.py P2PFS [--mib 64] [--rate 2000000] [--leechers 10] [--rounds 3] [--json FILE]
             [--only 'NAME;NAME'] [--trace]

One seed and some leechers, all with the same cap on what they send, start at once and find each
other through a tracker on loopback. A round is, in turn: all of them p2pfs (each a daemon of its
own with a mount); half of the leechers libtorrent, with a p2pfs seed and then with a libtorrent
one; all of them libtorrent. Times run from the start of the leechers to the end of each; the bound
is max(F/u_s, N·F/(u_s + Σu)): F bytes to N leechers, the seed sending u_s and leechers u each.
Then one p2pfs leecher fetches from 40 slow peers, half of which have half of it, over a capped
downlink. libtorrent counts headers in its cap, p2pfs payload alone: a difference of some per cent.

What is read through every mount at the end is compared with what was seeded. --trace prints what
each p2pfs sends and receives while a swarm runs.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import libtorrent

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "peers"))
import lt  # noqa: E402
from lab import Peer, make_torrent, p2pfs_status, unmount, wait_until  # noqa: E402

MIB = 1 << 20
SLOW_PEERS = 40
# Of what the slow peers could send together, so that the downlink is what limits.
LINK_SHARE = 0.8
PATIENCE = 900


class Tracker:
    """An HTTP tracker that gives everybody's address to everybody (BEP 3, 23)."""

    def __init__(self):
        swarm, lock = {}, threading.Lock()

        class Announce(BaseHTTPRequestHandler):
            def do_GET(self):
                query = urllib.parse.urlparse(self.path).query
                said = urllib.parse.parse_qs(query, encoding="latin-1")
                who = (self.client_address[0], int(said["port"][0]))
                with lock:
                    members = swarm.setdefault(said["info_hash"][0], set())
                    others = sorted(members - {who})
                    members.add(who)
                    if said.get("event") == ["stopped"]:
                        members.discard(who)
                random.shuffle(others)
                compact = b"".join(map(compact_address, others[:50]))
                body = b"d8:intervali120e5:peers%d:%be" % (len(compact), compact)
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                # Whoever says farewell may not wait for an answer.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Announce)
        self.url = f"http://127.0.0.1:{self.server.server_port}/announce"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()


def compact_address(address):
    """Four bytes and two (BEP 23)."""
    ip, port = address
    return socket.inet_aton(ip) + struct.pack(">H", port)


class P2pfs:
    """A daemon with one seed or mount."""

    kind = "p2pfs"

    def __init__(self, lab, folder, rate):
        self.lab, self.folder, self.rate = lab, folder, rate
        folder.mkdir()
        self.socket, self.mount = folder / "socket", folder / "mount"
        self.pid = None

    def _run(self, verb, *arguments):
        command = [self.lab.args.program, verb, "--socket", self.socket, *arguments]
        subprocess.run(command, check=True, timeout=PATIENCE, stderr=subprocess.DEVNULL)

    def _start(self, verb, *arguments):
        settings = ["--listen", "127.0.0.1", "--no-lsd", "--data-dir", self.folder / "cache"]
        if self.rate:
            settings += ["--upload-limit", str(self.rate)]
        self._run(verb, *settings, *arguments)
        self.pid = self.status()["pid"]

    def seed(self):
        self._start("seed", self.lab.torrent, self.lab.data)

    def leech(self, *options):
        """Returns when it has all."""
        self.mount.mkdir()
        self._start("mount", *options, self.lab.torrent, self.mount)
        self._run("wait", self.mount)

    def status(self):
        return p2pfs_status(self.lab.args.program, self.socket)

    def uploaded(self):
        return self.status()["uploaded"]

    def sha256(self):
        with open(self.mount / self.lab.data.name, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def close(self):
        if self.mount.exists():
            unmount(self.mount)
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, 15)
            wait_until("the daemon leaves", 10, lambda: not Path(f"/proc/{self.pid}").exists())


class Libtorrent:
    """A process with one libtorrent session, which does not try encryption first."""

    kind = "libtorrent"

    def __init__(self, lab, folder, rate):
        self.lab, self.folder, self.rate = lab, folder, rate
        folder.mkdir()
        self.peer = None

    def _start(self, save):
        self.peer = Peer(self.lab.torrent, save, "--plaintext", "--upload-limit", str(self.rate))

    def seed(self):
        self._start(self.lab.data.parent)
        self.peer.wait_until_complete(PATIENCE)

    def leech(self):
        self._start(self.folder)
        self.peer.wait_until_complete(PATIENCE)

    def uploaded(self):
        return self.peer.uploaded_now()

    def sha256(self):
        with open(self.folder / self.lab.data.name, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def close(self):
        if self.peer:
            self.peer.close()


class Lab:
    """What all swarms share: the data and its torrent."""

    def __init__(self, args, work):
        self.args, self.work = args, work
        self.size = args.mib * MIB
        origin = work / "origin"
        origin.mkdir()
        self.data = origin / "film.bin"
        self.torrent = work / "film.torrent"
        content = random.Random(1).randbytes(self.size)
        self.data.write_bytes(content)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.numbers = iter(range(1 << 30))

    @contextlib.contextmanager
    def swarm(self, seed, leechers):
        """A tracker and who meets there, not started yet; all of it is gone afterwards."""
        tracker = Tracker()
        make_torrent(self.data, self.torrent, self.args.piece_kib << 10, tracker.url)
        folder = self.work / f"swarm{next(self.numbers)}"
        folder.mkdir()
        rate = self.args.rate
        members = [kind(self, folder / str(n), rate) for n, kind in enumerate([seed, *leechers])]
        try:
            yield members[0], members[1:]
        finally:
            for member in members:
                member.close()
            tracker.close()
            shutil.rmtree(folder)


def bound(size, leechers, rate):
    """Seconds below which N leechers cannot all have F bytes, without caps on downlinks."""
    return max(size / rate, leechers * size / (rate + leechers * rate))


def trace(members, begin, over):
    """Prints what the p2pfs of a swarm do, each second."""
    while not over.wait(1):
        line = []
        for member in members:
            if isinstance(member, P2pfs) and member.pid:
                now = member.status()
                share = now["wanted_verified"] / now["wanted"]
                down, up = now["download_rate"] / 1e6, now["upload_rate"] / 1e6
                line.append(f"{share:4.0%} ↓{down:4.2f} ↑{up:4.2f} {now['peers']}p")
        print(f"  {time.monotonic() - begin:5.1f} s | " + " | ".join(line), flush=True)


def run_swarm(lab, seed_kind, leecher_kinds):
    """One swarm: who finished when, and what the seed sent."""
    with lab.swarm(seed_kind, leecher_kinds) as (seed, leechers):
        seed.seed()
        took, failed = {}, []

        def leech(leecher):
            try:
                leecher.leech()
                took[leecher] = time.monotonic() - begin
            except Exception as error:  # noqa: BLE001 whatever it is, the round has failed
                failed.append(error)

        threads = [threading.Thread(target=leech, args=(leecher,)) for leecher in leechers]
        over = threading.Event()
        begin = time.monotonic()
        for thread in threads:
            thread.start()
        if lab.args.trace:
            arguments = ([seed, *leechers], begin, over)
            threading.Thread(target=trace, args=arguments, daemon=True).start()
        for thread in threads:
            thread.join()
        over.set()
        if failed:
            raise failed[0]
        copies = seed.uploaded() / lab.size
        for leecher in leechers:
            assert leecher.sha256() == lab.sha256, f"wrong bytes at a {leecher.kind}"
    least = bound(lab.size, len(leechers), lab.args.rate)
    result = {"last ÷ bound": max(took.values()) / least, "copies from the seed": copies}
    result["last s"] = max(took.values())
    for kind in dict.fromkeys(leecher.kind for leecher in leechers):
        times = [seconds for leecher, seconds in took.items() if leecher.kind == kind]
        result[f"{kind} first s"] = min(times)
        result[f"{kind} median s"] = statistics.median(times)
        result[f"{kind} last s"] = max(times)
    return rounded(result)


class SlowPeers:
    """Libtorrent sessions in this process that send slowly; every second one has half of it."""

    def __init__(self, lab, folder, rate):
        self.sessions = []
        pieces = libtorrent.torrent_info(str(lab.torrent)).num_pieces()
        length = lab.args.piece_kib << 10
        content = lab.data.read_bytes()
        for number in range(SLOW_PEERS):
            save, missing = lab.data.parent, []
            if number % 2:
                save = folder / f"half{number}"
                save.mkdir()
                missing = random.Random(number).sample(range(pieces), pieces // 2)
                half = bytearray(content)
                for piece in missing:
                    hole = half[piece * length : (piece + 1) * length]
                    half[piece * length : (piece + 1) * length] = bytes(len(hole))
                (save / lab.data.name).write_bytes(half)
            self.sessions.append(self._start(lab, save, missing, rate))
        wait_until("the slow peers have checked what they have", PATIENCE, self._are_ready)

    def _start(self, lab, save, missing, rate):
        options = ["--plaintext", "--upload-limit", str(rate)]
        args = lt.options([str(lab.torrent), str(save), *options])
        session = libtorrent.session(lt.settings(args))
        lt.limit_loopback_too(session)
        params = lt.parameters(args)
        priorities = [4] * params.ti.num_pieces()
        for piece in missing:
            priorities[piece] = 0
        params.piece_priorities = priorities
        return session, session.add_torrent(params)

    def _are_ready(self):
        states = libtorrent.torrent_status.states
        idle = (states.finished, states.seeding)
        return all(handle.status().state in idle for _, handle in self.sessions)

    def addresses(self):
        return [f"127.0.0.1:{session.listen_port()}" for session, _ in self.sessions]

    def close(self):
        for session, handle in self.sessions:
            session.remove_torrent(handle)


def fill_link(lab):
    """One leecher behind a capped downlink, and many slow peers."""
    make_torrent(lab.data, lab.torrent, lab.args.piece_kib << 10)
    folder = lab.work / f"link{next(lab.numbers)}"
    folder.mkdir()
    rate = lab.args.rate // 20
    link = int(SLOW_PEERS * rate * LINK_SHARE)
    slow = SlowPeers(lab, folder, rate)
    leecher = P2pfs(lab, folder / "leecher", None)
    seen = []
    try:
        begin = time.monotonic()
        options = [word for address in slow.addresses() for word in ("--peer", address)]
        options += ["--download-limit", str(link)]
        thread = threading.Thread(target=leecher.leech, args=options)
        thread.start()
        while thread.is_alive():
            thread.join(1)
            if leecher.pid and thread.is_alive():
                now = leecher.status()
                seen.append((now["peers"], now["downloaded"], time.monotonic()))
                if lab.args.trace:
                    used = now["download_rate"] / link
                    print(f"  {now['peers']} peers, {used:.3f} of the link", flush=True)
        seconds = time.monotonic() - begin
        status = leecher.status()
        assert leecher.sha256() == lab.sha256, "wrong bytes"
    finally:
        leecher.close()
        slow.close()
        shutil.rmtree(folder)
    # Without the start and the end, of which a short download has as much as a long one.
    (_, first, since), (_, last, until) = seen[len(seen) // 4], seen[3 * len(seen) // 4]
    return rounded(
        {
            "share of the link": lab.size / seconds / link,
            "share in the middle": (last - first) / (until - since) / link,
            "peers": statistics.median(peers for peers, _, _ in seen),
            "seconds": seconds,
            "wasted": status["wasted"] / lab.size,
        }
    )


def rounded(row):
    return {key: round(value, 3) for key, value in row.items()}


def scenarios(args):
    half = args.leechers // 2
    mixed = [P2pfs] * (args.leechers - half) + [Libtorrent] * half
    return {
        "p2pfs": lambda lab: run_swarm(lab, P2pfs, [P2pfs] * args.leechers),
        "mixed, p2pfs seed": lambda lab: run_swarm(lab, P2pfs, mixed),
        "mixed, libtorrent seed": lambda lab: run_swarm(lab, Libtorrent, mixed),
        "libtorrent": lambda lab: run_swarm(lab, Libtorrent, [Libtorrent] * args.leechers),
        "link": fill_link,
    }


def table(name, rows):
    print(f"\n{name}")
    for key in rows[0]:
        values = [row[key] for row in rows]
        shown = "  ".join(f"{value:8.3f}" for value in values)
        print(f"  {key:24} {statistics.median(values):8.3f}   ({shown.strip()})")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--piece-kib", type=int, default=256)
    parser.add_argument("--rate", type=int, default=2_000_000, help="bytes/s that each may send")
    parser.add_argument("--leechers", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="names as printed, with semicolons between")
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.program = os.path.abspath(args.program)
    chosen = scenarios(args)
    if args.only:
        chosen = {name: chosen[name] for name in args.only.split(";")}

    results = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory(prefix="p2pfs-bench-") as folder:
        lab = Lab(args, Path(folder))
        for number in range(args.rounds):
            for name, run in chosen.items():
                results[name].append(run(lab))
                print(f"round {number + 1}, {name}: {results[name][-1]}", flush=True)

    least = bound(args.mib * MIB, args.leechers, args.rate)
    print(
        f"\nmedians of {args.rounds} rounds (each of them in parentheses): {args.mib} MiB to "
        f"{args.leechers} leechers, {args.rate} bytes/s up for each, bound {least:.1f} s"
    )
    for name, rows in results.items():
        table(name, rows)
    if args.json:
        args.json.write_text(json.dumps({"bound s": least, "rounds": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
