"""What the benches share: libtorrent peers, torrents, and what /proc says about a process."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import libtorrent as lt

SAMPLE_SECONDS = 0.02
V1_ONLY, V2_ONLY = 64, 32


def wait_until(what, seconds, condition):
    """Polls; TimeoutError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s in vain: {what}")
        time.sleep(0.005)


def free_port():
    """A TCP port of loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port):
    """Whether somebody listens on a TCP port, by the kernel's table: a try would look like a peer."""
    table = Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = (line.split() for line in table)
    return any(one[1].endswith(f":{port:04X}") and one[3] == "0A" for one in fields)


def make_torrent(path, torrent, piece_length, tracker=None, version=V1_ONLY):
    """Writes a torrent of a file or folder."""
    files = lt.file_storage()
    lt.add_files(files, str(path))
    creator = lt.create_torrent(files, piece_size=piece_length, flags=version)
    lt.set_piece_hashes(creator, str(path.parent))
    if tracker:
        creator.add_tracker(tracker)
    torrent.write_bytes(lt.bencode(creator.generate()))


class Peer:
    """tests/peers/lt.py with one torrent. It ends when its stdin does, so also with this process.

    `within` is the beginning of a command that runs it elsewhere, such as in another namespace.
    """

    def __init__(self, torrent, save, *options, host="127.0.0.1", within=()):
        script = Path(__file__).parent.parent / "peers" / "lt.py"
        command = [*within, sys.executable, str(script), str(torrent), str(save)]
        self.process = subprocess.Popen(
            [*command, "--host", host, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.latest = {}
        threading.Thread(target=self._listen, daemon=True).start()
        wait_until("libtorrent listens", 30, self._has_spoken)
        self.address = f"{host}:{self.latest['port']}"

    def _has_spoken(self):
        if self.process.poll() is not None:
            raise ChildProcessError(f"libtorrent ended with {self.process.returncode}")
        return "port" in self.latest

    def _listen(self):
        for line in self.process.stdout:
            self.latest = json.loads(line)

    def connect(self, address):
        self.process.stdin.write(f"connect {address}\n")
        self.process.stdin.flush()

    def wait_until_complete(self, seconds):
        wait_until("libtorrent has it all", seconds, lambda: self.latest["progress"] == 1.0)

    def uploaded(self):
        return self.latest["uploaded"]

    def uploaded_now(self):
        """libtorrent counts once a second."""
        time.sleep(1.2)
        return self.latest["uploaded"]

    def close(self):
        end(self.process)


class Watch:
    """CPU time and peak memory of another process, sampled in a thread."""

    def __init__(self, pid):
        self.pid = pid
        self.cpu = 0.0
        self.peak_anon = 0
        self.peak_rss = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while self.sample() and not self._stop.wait(SAMPLE_SECONDS):
            pass

    def sample(self):
        """Whether the process was still there."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text().rsplit(") ", 1)[1].split()
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return False
        self.cpu = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        kib = lambda name: int(fields[name].split()[0]) if name in fields else 0
        self.peak_anon = max(self.peak_anon, kib("RssAnon"))
        self.peak_rss = max(self.peak_rss, kib("VmHWM"))
        return True

    def stop(self):
        self._stop.set()
        self._thread.join()
        self.sample()

    def kill(self):
        """Ends the process that is watched, and waits until it is gone."""
        self.stop()
        try:
            os.kill(self.pid, signal.SIGTERM)
            gone = lambda: not Path(f"/proc/{self.pid}").exists()
            wait_until("the daemon leaves", 10, gone)
        except ProcessLookupError:
            pass
        except TimeoutError:
            os.kill(self.pid, signal.SIGKILL)


def p2pfs_status(program, socket):
    """The only mount or seed of a daemon."""
    command = [program, "status", "--json", "--socket", str(socket)]
    said = subprocess.run(command, check=True, capture_output=True, timeout=30).stdout
    return json.loads(said)[0]


def unmount(path):
    """Detaches whatever is mounted there, however it is in use."""
    command = ["umount", "--lazy"] if os.geteuid() == 0 else ["fusermount3", "-uz"]
    subprocess.run([*command, str(path)], stderr=subprocess.DEVNULL, check=False)


def end(process):
    process.kill()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        print(f"process {process.pid} does not die", file=sys.stderr)
