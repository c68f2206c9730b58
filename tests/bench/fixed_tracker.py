#!/usr/bin/python3
"""An HTTP tracker that knows from the beginning who is there (BEP 3, 23).

    fixed_tracker.py HOST:PORT PEER…

It prints "ready" when it listens, and gives everybody the same peers.
"""

import socket
import struct
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def compact(address):
    host, port = address.rsplit(":", 1)
    return socket.inet_aton(host) + struct.pack(">H", int(port))


def main():
    host, port = sys.argv[1].rsplit(":", 1)
    peers = b"".join(map(compact, sys.argv[2:]))
    body = b"d8:intervali1800e5:peers%d:%be" % (len(peers), peers)
    answer = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    class Announce(BaseHTTPRequestHandler):
        def do_GET(self):
            # In one piece: a second small write would wait for a round trip (Nagle).
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer((host, int(port)), Announce)
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
