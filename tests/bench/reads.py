#!/usr/bin/python3
"""Reads over shaped links: p2pfs beside libtorrent, aria2, btfs and plain TCP.

    reads.py P2PFS WAN_LINK [--rounds 3] [--quick] [--only CASE,…] [--links LINK,…]
             [--clients NAME,…] [--seeds libtorrent|p2pfs] [--work DIR] [--json FILE] [--svg FILE]

Links: loopback, 100M (Mbit/s), '100M 50ms' (round trip), '100M 50ms loss' (0.1 %). Cases:

    sequential   a whole file, cold, from one and from four seeders
    magnet       from a magnet link to the listing, and to the first byte
    random       4 KiB reads in 64 pieces, of 256 KiB and of 4 MiB, with --on-demand and without,
                 alone and while a sequential read runs
    stall        a sequential read from four seeders of unlike rates, the fastest of which stops
    pieces16m    the same in 16 pieces of 16 MiB, v1 and v2-only
    warm         again what is here, beside the same file on disk
    tree         find and ls on 100,000 files, beside the same tree on disk

Rounds are interleaved, and medians are printed. Each measurement runs in namespaces of its own
(wan.py), so that nothing of it is left when it ends or its time is over. "of link" is payload by the
rate of IP packets, of which TCP over packets of 1500 bytes can use 0.965. Needs root and TUN.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from lab import V1_ONLY, V2_ONLY, make_torrent  # noqa: E402
from read_report import from_seeders, print_tables, print_targets, write_chart  # noqa: E402
from wan import LINES, alone  # noqa: E402

KIB, MIB = 1 << 10, 1 << 20
FILES = 100_000
FILES_IN_FOLDER = 1000
# A measurement that takes longer has failed.
HARD_END = 150
SHAPED = [name for name, line in LINES.items() if line]
DELAYED = [name for name in SHAPED if LINES[name].round_trip_ms]
READ_CASES = ["sequential", "magnet", "random", "stall", "pieces16m", "warm", "tree"]


class Data:
    """The files that are seeded, and their torrents, made when they are first asked for."""

    def __init__(self, work, quick):
        self.work = work
        self.long = (256 if quick else 1024) * MIB
        self.short = (32 if quick else 128) * MIB
        self.made = {}

    def get(self, name):
        if name not in self.made:
            self.made[name] = getattr(self, name.partition(" ")[0])(name)
        return self.made[name]

    def long_film(self, name):
        return self._film(name, self.long, MIB)

    def short_film(self, name):
        return self._film(name, self.short, 256 * KIB)

    def _film(self, name, size, piece):
        path = self.work / name / "film.bin"
        path.parent.mkdir()
        noise(path, size)
        return self._torrent(name, path, piece)

    def mix(self, name):
        """A film to read in order, and a file for reads here and there."""
        _, piece, version = name.split()
        folder = self.work / "mix"
        if not folder.exists():
            folder.mkdir()
            noise(folder / "film.bin", self.long)
            noise(folder / "random.bin", self.long // 2)
        return self._torrent(name, folder, int(piece) * KIB, V2_ONLY if version == "v2" else V1_ONLY)

    def tree(self, name):
        folder = self.work / "tree"
        dice = random.Random(1)
        for number in range(FILES // (10 if self.long < 1024 * MIB else 1)):
            inside = folder / f"folder{number // FILES_IN_FOLDER:03}"
            inside.mkdir(parents=True, exist_ok=True)
            (inside / f"file{number:06}").write_bytes(dice.randbytes(dice.randrange(1, 200)))
        return self._torrent(name, folder, 256 * KIB)

    def _torrent(self, name, path, piece, version=V1_ONLY):
        torrent = self.work / f"{name}.torrent"
        make_torrent(path, torrent, piece, version=version)
        size = path.stat().st_size if path.is_file() else None
        return {
            "torrent": str(torrent),
            "save": str(path.parent),
            "name": path.name,
            "size": size,
            "piece": piece,
        }


def noise(path, size):
    with open(path, "wb") as out:
        for _ in range(size // MIB):
            out.write(os.urandom(MIB))


def spec(case, link, client, data, seeders=4, group=None, variant="", **rest):
    """One measurement; `group` and `variant` are what it is called in tables."""
    return {
        "case": case,
        "group": group or case,
        "variant": variant or client,
        "link": link,
        "client": client,
        "data": data,
        "seeders": seeders,
        **rest,
    }


def plan(args):
    """What a round measures, in order."""
    everything = [*sequential_plan(), *magnet_plan(), *random_plan(), *pieces16m_plan()]
    for link in ("loopback", "100M 50ms"):
        everything.append(spec("stall", link, "p2pfs", "short_film", 4))
    everything.append(spec("warm", "loopback", "p2pfs", "long_film", 1))
    everything.append(spec("tree", "loopback", "p2pfs", "tree", 0))
    for one in everything:
        if args.quick and "reads" in one:
            # The sequential read beside them has a shorter film to read.
            one["reads"] //= 2
    clients, links = args.clients.split(","), args.links.split(",")
    cases = args.only.split(",")
    return [
        one
        for one in everything
        if one["group"].split()[0] in cases and one["client"] in clients and one["link"] in links
    ]


def sequential_plan():
    for link in LINES:
        data = "short_film" if LINES[link] else "long_film"
        for seeders in (1, 4):
            for client in ("p2pfs", "libtorrent", "aria2", "btfs", "tcp"):
                # It takes minutes, when it ends at all.
                if client == "btfs" and link == "loopback":
                    continue
                yield spec("sequential", link, client, data, seeders)


def magnet_plan():
    for link in ("loopback", *DELAYED):
        for seeders in (1, 4):
            for client in ("p2pfs", "btfs"):
                yield spec("magnet", link, client, "short_film", seeders)


def random_plan():
    for kib in (256, 4096):
        for link in ("loopback", "100M 50ms"):
            for seeders in (1, 4) if kib == 256 else (4,):
                rest = {"group": f"random {kib} KiB", "reads": 64}
                data = f"mix {kib} v1"
                for on_demand in (True, False):
                    for busy in (False, True):
                        words = ["on demand"] * on_demand + ["busy"] * busy
                        name = "p2pfs " + (", ".join(words) or "default")
                        modes = {"on_demand": on_demand, "busy": busy, "variant": name}
                        yield spec("random", link, "p2pfs", data, seeders, **modes, **rest)
                modes = {"on_demand": False, "busy": False}
                if kib == 256 and seeders == 1:
                    yield spec("random", link, "btfs", data, seeders, **modes, **rest)


def pieces16m_plan():
    for link in ("loopback", "100M 50ms"):
        for version in ("v1", "v2"):
            rest = {"group": "pieces16m", "reads": 16, "on_demand": True, "busy": False}
            data = f"mix 16384 {version}"
            yield spec("random", link, "p2pfs", data, variant=f"p2pfs {version}", **rest)


def measured(one, shared, data, number):
    """One measurement; why there is none under "not possible"."""
    whole = one | shared | {"round": number, "data": data.get(one["data"])}
    script = str(Path(__file__).parent / "read_cases.py")
    command = alone([sys.executable, script, json.dumps(whole)])
    errors = data.work / "errors"
    with open(errors, "wb") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        try:
            said, _ = process.communicate(timeout=HARD_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return {"not possible": f"took more than {HARD_END} s"}
        except BaseException:
            process.kill()
            raise
    lines = said.strip().splitlines()
    if process.returncode == 0 and lines:
        return json.loads(lines[-1])
    words = errors.read_text(errors="replace").strip().splitlines()
    return {"not possible": words[-1] if words else f"ended with {process.returncode}"}


def medians(rounds):
    """Of each number the median; why a round has none only when all of them have none."""
    good = [one for one in rounds if "not possible" not in one]
    if not good:
        return rounds[0]
    row = {}
    for key, value in good[0].items():
        values = [one[key] for one in good if key in one]
        row[key] = value if isinstance(value, str) else statistics.median(values)
    if len(good) < len(rounds):
        row["failed"] = len(rounds) - len(good)
    return row


def compare(rows):
    """Puts each rate beside that of libtorrent in the same case."""
    base = {}
    key = lambda row: (row["group"], row["link"], row["seeders"])
    for row in rows:
        if row["client"] == "libtorrent" and "MB/s" in row["median"]:
            base[key(row)] = row["median"]["MB/s"]
    for row in rows:
        if key(row) in base and "MB/s" in row["median"]:
            row["median"]["of libtorrent"] = row["median"]["MB/s"] / base[key(row)]


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program")
    parser.add_argument("wan_link")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of a quarter of the data")
    parser.add_argument("--only", default=",".join(READ_CASES))
    parser.add_argument("--links", default=",".join(LINES))
    parser.add_argument("--clients", default="p2pfs,libtorrent,aria2,btfs,tcp")
    parser.add_argument("--seeds", choices=("libtorrent", "p2pfs"), default="libtorrent")
    parser.add_argument("--work", type=Path, help="where files are made (default: TMPDIR)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.rounds = 1
    unknown = set(args.only.split(",")) - set(READ_CASES) | set(args.links.split(",")) - set(LINES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        parser.error("network namespaces and TUN devices need root")
    return args


def main():
    args = arguments()
    # So that what was made is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    rows = plan(args)
    for row in rows:
        row["rounds"] = []
    with tempfile.TemporaryDirectory(prefix="p2pfs-bench-", dir=args.work) as work:
        data = Data(Path(work), args.quick)
        shared = {"seeds": args.seeds, "work": work}
        shared["program"] = os.path.abspath(args.program)
        shared["wan_link"] = os.path.abspath(args.wan_link)
        for number in range(args.rounds):
            for row in rows:
                begin = time.monotonic()
                row["rounds"].append(measured(row, shared, data, number))
                name = f"{row['group']}, {row['link']}, {from_seeders(row)}, {row['variant']}"
                took = f"{time.monotonic() - begin:.0f} s"
                print(f"round {number + 1}, {name} ({took}): {row['rounds'][-1]}", flush=True)
    for row in rows:
        row["median"] = medians(row["rounds"])
    compare(rows)
    print(f"\nmedians of {args.rounds} rounds, seeds: {args.seeds}")
    print_tables(rows)
    print_targets(rows)
    if args.json:
        about = {"rounds": args.rounds, "seeds": args.seeds, "quick": args.quick}
        args.json.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    if args.svg:
        write_chart(rows, args.svg)


if __name__ == "__main__":
    main()
