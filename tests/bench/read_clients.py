"""Who reads in the benches of reads: p2pfs and others, each at the near end of a link.

A client that mounts has `mount`, one that downloads has `download`. `watch` tells what its process
takes; `close` ends it.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import plain_tcp  # noqa: E402
from lab import Peer, Watch, end, p2pfs_status, unmount, wait_until  # noqa: E402

PATIENCE = 120
# Bytes a second that the seeders of the case "stall" send.
UNLIKE_RATES = [6_000_000, 3_000_000, 1_500_000, 750_000]
PORT = 6900


class NotPossible(Exception):
    """This client cannot do it, for the reason given."""


class P2pfs:
    mounts = True

    def __init__(self, stage):
        self.stage = stage
        self.program = stage.program
        self.folder = stage.folder / "reader"
        self.folder.mkdir()
        self.socket, self.path = self.folder / "socket", self.folder / "mount"
        self.path.mkdir()
        self.watch = None

    def mount(self, source, *options):
        """Returns when the files are listed."""
        command = [self.program, "mount", "--socket", self.socket, "--listen", self.stage.wan.near]
        command += ["--no-lsd", "--no-dht", "--data-dir", self.folder / "cache", *options]
        said = subprocess.run(
            [*command, source, self.path], timeout=PATIENCE, capture_output=True, text=True
        )
        if said.returncode:
            raise NotPossible((said.stderr.strip() or "no mount").splitlines()[-1])

    def look(self):
        """From here on its process is watched. Not earlier: that would take part in what is timed."""
        self.watch = Watch(self.status()["pid"])

    def status(self):
        return p2pfs_status(self.program, self.socket)

    def wait_for_peers(self, count):
        wait_until("all seeders are connected", 60, lambda: self.status()["peers"] >= count)

    def fetched(self):
        """Payload bytes so far."""
        return self.status()["downloaded"]

    def close(self):
        unmount(self.path)
        if self.watch:
            self.watch.kill()


class Btfs:
    mounts = True

    def __init__(self, stage):
        if not shutil.which("btfs"):
            raise NotPossible("not installed")
        self.stage = stage
        self.path = stage.folder / "btfs"
        self.path.mkdir()
        self.process = self.watch = None

    def mount(self, source, *options):
        command = ["btfs", "-f", f"--data-directory={self.stage.folder}", f"--min-port={PORT}"]
        command += [f"--max-port={PORT}", source, self.path]
        with open(self.stage.folder / "btfs.log", "wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until("btfs lists the files", PATIENCE, lambda: any(self.path.iterdir()))

    def look(self):
        self.watch = Watch(self.process.pid)

    def wait_for_peers(self, _count):
        """It does not say whom it is connected to."""

    def fetched(self):
        """It does not say: what came over the link, headers and all."""
        return self.stage.wan.received()

    def close(self):
        if self.process:
            # A reader of btfs may be unkillable: end the connection first.
            self.process.kill()
            unmount(self.path)
            end(self.process)


class Libtorrent:
    """One session that downloads in order."""

    mounts = False

    def __init__(self, stage):
        self.stage = stage
        self.peer = self.watch = None

    def download(self, torrent):
        save = self.stage.folder / "libtorrent"
        options = ["--sequential", "--plaintext"]
        self.peer = Peer(torrent, save, *options, host=self.stage.wan.near)
        self.watch = Watch(self.peer.process.pid)
        self.peer.wait_until_complete(PATIENCE)

    def close(self):
        if self.peer:
            self.peer.close()


class Aria2:
    mounts = False

    def __init__(self, stage):
        if not shutil.which("aria2c"):
            raise NotPossible("not installed")
        self.stage = stage
        self.process = self.watch = None

    def download(self, torrent):
        near = self.stage.wan.near
        command = ["aria2c", "--no-conf", "--seed-time=0", "--enable-dht=false"]
        command += ["--bt-enable-lpd=false", "--enable-peer-exchange=false", "--quiet"]
        command += [f"--interface={near}", f"--listen-port={PORT}", "--file-allocation=none"]
        command += ["--stream-piece-selector=inorder", f"--dir={self.stage.folder}"]
        self.process = subprocess.Popen([*command, torrent], stdin=subprocess.DEVNULL)
        self.watch = Watch(self.process.pid)
        if self.process.wait(PATIENCE):
            raise NotPossible(f"aria2c ended with {self.process.returncode}")

    def close(self):
        if self.process:
            end(self.process)


class PlainTcp:
    """No torrent at all: what the link gives to as many TCP connections as there are seeders."""

    mounts = False

    def __init__(self, stage):
        numbers = range(1, stage.seeders + 1)
        self.servers = [plain_tcp.start(stage.wan, number) for number in numbers]
        self.hosts = [stage.wan.far(number) for number in numbers]
        self.size = stage.size
        self.watch = None

    def download(self, _torrent):
        plain_tcp.fetch(self.hosts, self.size)

    def close(self):
        for server in self.servers:
            end(server)


CLIENTS = {
    "p2pfs": P2pfs,
    "libtorrent": Libtorrent,
    "aria2": Aria2,
    "btfs": Btfs,
    "tcp": PlainTcp,
}


class LibtorrentSeed:
    def __init__(self, stage, number):
        host = stage.wan.far(number)
        options = ["--port", str(PORT)]
        if stage.spec["case"] == "stall":
            options += ["--upload-limit", str(UNLIKE_RATES[number - 1])]
        # Only what it has checked itself it has hashes of blocks of (BEP 52).
        if "v2" not in stage.torrent.name:
            options.append("--seed-mode")
        within = stage.wan.there()
        self.peer = Peer(stage.torrent, stage.save, *options, host=host, within=within)

    def pause(self):
        """It stays connected and sends nothing."""
        self.peer.process.send_signal(signal.SIGSTOP)

    def close(self):
        self.peer.process.send_signal(signal.SIGCONT)
        self.peer.close()


class P2pfsSeed:
    def __init__(self, stage, number):
        folder = stage.folder / f"seed{number}"
        folder.mkdir()
        command = [stage.program, "seed", "--socket", folder / "socket", "--no-lsd", "--no-dht"]
        command += ["--listen", stage.wan.far(number), "--port", str(PORT)]
        command += ["--data-dir", folder / "cache", stage.torrent, stage.save / stage.name]
        said = subprocess.run(
            stage.wan.there(*command), timeout=PATIENCE, capture_output=True, text=True
        )
        if said.returncode:
            raise NotPossible(f"p2pfs seed: {said.stderr.strip()}")
        self.pid = p2pfs_status(stage.program, folder / "socket")["pid"]

    def close(self):
        os.kill(self.pid, 15)


SEEDS = {"libtorrent": LibtorrentSeed, "p2pfs": P2pfsSeed}
