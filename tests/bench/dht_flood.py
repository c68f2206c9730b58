#!/usr/bin/python3
"""A node of the DHT under a flood of datagrams from this machine.

    dht_flood.py P2PFS [--rate N] [--seconds S] [--senders N] [--limit MIB]

Starts `p2pfs dht node` on loopback and sends it noise, torn messages, answers to nothing, questions of
ever new nodes, announces and items with made-up tokens and, which fills what it keeps for others, with
good ones. Prints how many datagrams a second were sent and how many the node read (the kernel drops the
rest), its memory every few seconds, and how many pings it answered meanwhile. Fails when its memory
grew by more than the limit after the first fifth of the time, or when it does not answer a ping within a
second of the end.
"""

import argparse
import multiprocessing
import os
import random
import socket
import struct
import subprocess
import sys
import time

# Datagrams that are made before the flood: making them takes longer than sending them.
KINDS = 65_536
# Datagrams between two looks at the clock.
BATCH = 50
PING_S = 0.1
TICK_S = 5


def options():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("p2pfs")
    parser.add_argument("--rate", type=int, default=100_000, help="datagrams a second")
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--senders", type=int, default=2)
    parser.add_argument("--limit", type=float, default=8, help="MiB that memory may grow by")
    return parser.parse_args()


def question(rng, method, arguments):
    node = b"2:id20:" + rng.randbytes(20)
    return b"d1:ad%s%se1:q%d:%s1:t4:%s1:y1:qe" % (node, arguments, len(method), method, rng.randbytes(4))


def announce(rng, token):
    key, port = rng.randbytes(20), rng.randrange(1, 65536)
    return question(rng, b"announce_peer", b"9:info_hash20:%s4:porti%de5:token%d:%s" % (
        key, port, len(token), token))


def put(rng, token):
    return question(rng, b"put", b"5:token%d:%s1:v100:%s" % (len(token), token, rng.randbytes(100)))


def datagram(rng, token):
    """One of many kinds of datagrams."""
    key = rng.randbytes(20)
    kind = rng.randrange(10)
    if kind == 0:
        return rng.randbytes(rng.randrange(1, 1400))
    if kind == 1:
        return b"d" + rng.randbytes(rng.randrange(1, 200)) + b"e"
    if kind == 2:
        return b"l" * rng.randrange(1, 1400)
    if kind == 3:
        nodes = rng.randbytes(26 * 8)
        return b"d1:rd2:id20:%s5:nodes208:%se1:t4:%s1:y1:re" % (key, nodes, rng.randbytes(4))
    if kind == 4:
        return question(rng, b"find_node", b"6:target20:" + key)
    if kind == 5:
        return question(rng, b"get_peers", b"9:info_hash20:" + key)
    if kind == 6:
        return (announce if rng.randrange(2) else put)(rng, rng.randbytes(8))
    if kind == 7:
        return announce(rng, token)
    if kind == 8:
        return put(rng, token)
    whole = question(rng, b"get_peers", b"9:info_hash20:" + key)
    return whole[: rng.randrange(1, len(whole))]


def token_of(to):
    """What the node gives whoever asks it from here: good for announces and items."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.connect(to)
        asker.settimeout(5)
        asker.send(question(random.Random(), b"get_peers", b"9:info_hash20:" + b"h" * 20))
        answer = asker.recv(2048)
    length, _, rest = answer[answer.index(b"5:token") + 7 :].partition(b":")
    return rest[: int(length)]


def flood(to, rate, seconds, seed, sent, ready):
    rng, token = random.Random(seed), token_of(to)
    datagrams = [datagram(rng, token) for _ in range(KINDS)]
    # Each of many sockets is another node.
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(64)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
        one.setblocking(False)
        one.connect(to)
    ready.wait()
    began, count = time.monotonic(), 0
    while (elapsed := time.monotonic() - began) < seconds:
        if count > elapsed * rate:
            time.sleep(0.0005)
            continue
        send = sockets[count // BATCH % len(sockets)].send
        for at in range(count, count + BATCH):
            try:
                send(datagrams[at % KINDS])
            except OSError:
                pass  # The buffer is full: it is lost, as on a network.
        count += BATCH
    sent.value = count


def memory(pid):
    """Resident memory in MiB."""
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu(pid):
    """Seconds of processor time used."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def dropped(port):
    """Datagrams that the kernel has dropped at a port of 127.0.0.1."""
    local = "0100007F:%04X" % port
    with open("/proc/net/udp") as table:
        return sum(int(line.split()[-1]) for line in table if line.split()[1] == local)


class Pinger:
    """Asks the node whether it is there, again and again."""

    def __init__(self, to):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect(to)
        self.open, self.trips, self.asked = {}, [], 0

    def ask(self):
        number = struct.pack(">I", self.asked)
        self.asked += 1
        self.open[number] = time.monotonic()
        self.socket.send(b"d1:ad2:id20:%se1:q4:ping2:roi1e1:t4:%s1:y1:qe" % (b"p" * 20, number))

    def hear(self, seconds):
        """Takes answers for so long; whether one came."""
        until, heard = time.monotonic() + seconds, False
        while (left := until - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                answer = self.socket.recv(2048)
            except TimeoutError:
                return heard
            at = answer.find(b"1:t4:")
            asked = self.open.pop(answer[at + 5 : at + 9], None)
            if asked is not None:
                heard = True
                self.trips.append(1e3 * (time.monotonic() - asked))
        return heard


def percentile(values, share):
    return sorted(values)[int(share * (len(values) - 1))] if values else float("nan")


def watch(node, to, seconds):
    """Memory after the first fifth and at most after it, and what became of the pings."""
    pinger, began = Pinger(to), time.monotonic()
    first, most, told = None, 0, 0
    while (elapsed := time.monotonic() - began) < seconds:
        pinger.ask()
        pinger.hear(PING_S)
        now = memory(node.pid)
        if elapsed > seconds / 5:
            first = first or now
            most = max(most, now)
        if elapsed // TICK_S >= told:
            told += 1
            print(f"  after {elapsed:4.0f} s: {now:.1f} MiB")
    return first, most, pinger


def main():
    args = options()
    command = [args.p2pfs, "dht", "node", "--listen", "127.0.0.1", "--alone"]
    node = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        host, port = node.stdout.readline().strip().rsplit(":", 1)
        to = (host, int(port))
        counts = [multiprocessing.Value("q", 0) for _ in range(args.senders)]
        ready = multiprocessing.Barrier(args.senders + 1)
        before, used = memory(node.pid), cpu(node.pid)
        print(f"{args.rate} datagrams a second for {args.seconds} s; before: {before:.1f} MiB")
        senders = [
            multiprocessing.Process(
                target=flood, args=(to, args.rate / args.senders, args.seconds, seed, count, ready)
            )
            for seed, count in enumerate(counts)
        ]
        for sender in senders:
            sender.start()
        ready.wait()
        first, most, pinger = watch(node, to, args.seconds)
        for sender in senders:
            sender.join()
        sent, lost = sum(count.value for count in counts), dropped(to[1])
        share = (cpu(node.pid) - used) / args.seconds
        answered = len(pinger.trips)
        print(f"sent {sent / args.seconds:.0f}/s, read {(sent - lost) / args.seconds:.0f}/s, "
              f"{share:.2f} of a core")
        print(f"pings under the flood: {answered} of {pinger.asked} answered, p50 "
              f"{percentile(pinger.trips, 0.5):.2f} ms, p95 {percentile(pinger.trips, 0.95):.2f} ms")
        print(f"memory: before {before:.1f}, after a fifth {first:.1f}, at most {most:.1f}, "
              f"at the end {memory(node.pid):.1f} MiB")
        pinger.ask()
        there = pinger.hear(1)
        print(f"after the flood it {'answers' if there else 'does NOT answer'}")
        if not there or most - first > args.limit:
            sys.exit("failed")
    finally:
        node.kill()


if __name__ == "__main__":
    main()
