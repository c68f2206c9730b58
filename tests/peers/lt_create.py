#!/usr/bin/python3
"""Prints the info hashes that libtorrent's create_torrent gives a folder.

    lt_create.py ROOT PIECE_LENGTH v1|v2|hybrid

A JSON object: v1 and v2, in hexadecimal or null. Files go in by path, sorted, as BEP 52 wants it.
"""

import json
import os
import sys

import libtorrent as lt

root, piece_length, version = sys.argv[1], int(sys.argv[2]), sys.argv[3]
flags = {"v1": lt.create_torrent.v1_only, "v2": lt.create_torrent.v2_only, "hybrid": 0}[version]
storage = lt.file_storage()
parent = os.path.dirname(os.path.abspath(root))
if os.path.isdir(root):
    below = [os.path.join(at, name) for at, _, names in os.walk(root) for name in names]
    paths = sorted(os.path.relpath(path, parent) for path in below)
    paths.sort(key=lambda path: [os.fsencode(part) for part in path.split("/")])
else:
    paths = [os.path.basename(root)]
for path in paths:
    storage.add_file(path, os.path.getsize(os.path.join(parent, path)))
torrent = lt.create_torrent(storage, piece_length, int(flags))
lt.set_piece_hashes(torrent, parent)
hashes = lt.torrent_info(torrent.generate()).info_hashes()


def shown(has, digest):
    return digest.to_bytes().hex() if (has() if callable(has) else has) else None


print(json.dumps({"v1": shown(hashes.has_v1, hashes.v1), "v2": shown(hashes.has_v2, hashes.v2)}))
