#!/usr/bin/python3
"""A small DHT of libtorrent nodes on 127.0.0.1, for tests.

    lt_dht.py COUNT

Prints the nodes' UDP ports as one JSON array when they know each other. End of file on stdin ends the
process, so it cannot outlive the test that started it.
"""

import json
import os
import sys
import threading
import time

import libtorrent as lt

# Starts that are too close together leave tables empty.
PAUSE_S = 0.2
PATIENCE_S = 30
# Nodes that each has to know.
ENOUGH = 3

SETTINGS = {
    "listen_interfaces": "127.0.0.1:0",
    "enable_lsd": False,
    "enable_natpmp": False,
    "enable_upnp": False,
    "enable_dht": True,
    "dht_bootstrap_nodes": "",
    "dht_restrict_routing_ips": False,
    "dht_restrict_search_ips": False,
    "dht_prefer_verified_node_ids": False,
    "dht_ignore_dark_internet": False,
    # Too many packets a second, and an address is not heard for five minutes: here all have one.
    "dht_block_ratelimit": 1_000_000,
}


def listen_to_stdin():
    """Runs in its own thread; leaves the process at end of file."""
    sys.stdin.read()
    os._exit(0)


def port_of(session):
    while not session.listen_port():
        time.sleep(0.01)
    return session.listen_port()


def main():
    threading.Thread(target=listen_to_stdin, daemon=True).start()
    sessions, ports = [], []
    for _ in range(int(sys.argv[1])):
        session = lt.session(SETTINGS)
        for port in ports:
            session.add_dht_node(("127.0.0.1", port))
        sessions.append(session)
        ports.append(port_of(session))
        time.sleep(PAUSE_S)
    deadline = time.monotonic() + PATIENCE_S
    enough = min(ENOUGH, len(sessions) - 1)
    while any(s.status().dht_nodes < enough for s in sessions):
        if time.monotonic() > deadline:
            sys.exit(f"nodes known: {[s.status().dht_nodes for s in sessions]}")
        time.sleep(0.05)
    print(json.dumps(ports), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
