#!/usr/bin/python3
"""Plain TCP over a link: what there is to be had, without any protocol above.

    plain_tcp.py WAN_LINK     rate and round trip of every kind of link, to check the link itself

As a module: `serve` at the far end, `fetch` at the near one.
"""

import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from wan import LINES, Wan, alone  # noqa: E402

PORT = 5001
PINGS = 50
BLOCK = bytes(1 << 18)


def answer(stream):
    """Sends as many bytes as it is asked for, again and again."""
    with stream, stream.makefile("rb") as asked:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for line in asked:
            left = int(line)
            while left:
                left -= stream.send(BLOCK[:left])


def serve(host):
    with socket.create_server((host, PORT)) as listener:
        print("ready", flush=True)
        while True:
            stream, _ = listener.accept()
            threading.Thread(target=answer, args=(stream,), daemon=True).start()


def start(wan, number):
    """A server at the far end; it ends with this process's namespace or by `kill`."""
    command = wan.there(sys.executable, __file__, "--serve", wan.far(number))
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    server.stdout.readline()
    return server


def take(stream, size):
    stream.sendall(b"%d\n" % size)
    while size:
        size -= len(stream.recv(min(size, len(BLOCK))))


def fetch(hosts, size):
    """Seconds that this many bytes take, a connection to each of the hosts."""
    begin = time.monotonic()
    streams = [socket.create_connection((host, PORT), timeout=120) for host in hosts]
    share = size // len(streams)
    threads = [threading.Thread(target=take, args=(stream, share)) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for stream in streams:
        stream.close()
    return time.monotonic() - begin


def round_trip(host):
    """Median milliseconds until a byte that is asked for is here."""
    took = []
    with socket.create_connection((host, PORT), timeout=10) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(PINGS):
            begin = time.monotonic()
            take(stream, 1)
            took.append((time.monotonic() - begin) * 1e3)
    return statistics.median(took)


def check(name, program):
    """One link, in namespaces of its own."""
    wan = Wan(LINES[name], program)
    servers = [start(wan, number) for number in range(1, 5)]
    hosts = [wan.far(number) for number in range(1, 5)]
    ping = round_trip(hosts[0])
    megabytes = 50 if wan.line else 2000
    rates = [8 * megabytes / fetch(hosts[:count], megabytes * 1_000_000) for count in (1, 4)]
    before = os.times().children_user + os.times().children_system
    said = wan.close()
    cpu = os.times().children_user + os.times().children_system - before
    for server in servers:
        server.kill()
    print(f"{name}: {ping:.2f} ms, {rates[0]:.1f} Mbit/s by one stream, {rates[1]:.1f} by four")
    if wan.line:
        print(f"  the link took {cpu:.2f} s of CPU for {2 * megabytes} MB")
        print("".join(f"  {line}\n" for line in said.splitlines()), end="")


def main():
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    elif sys.argv[1] == "--check":
        check(*sys.argv[2:])
    else:
        for name in LINES:
            command = alone([sys.executable, __file__, "--check", name, sys.argv[1]])
            subprocess.run(command, check=True, timeout=300)


if __name__ == "__main__":
    main()
