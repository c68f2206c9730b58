#!/usr/bin/python3
"""Makes torrents with libtorrent's create_torrent and prints their info hashes as JSON.

Usage: lt_create.py OUT PATH KIND PIECE_LENGTH [PATH KIND PIECE_LENGTH ...]
KIND is v1, v2 or hybrid; PIECE_LENGTH 0 lets libtorrent choose. The .torrent files are written
to OUT/0.torrent, OUT/1.torrent and so on.
"""

import json
import os
import sys

import libtorrent as lt

# Not in the binding: libtorrent's create_torrent::v1_only.
FLAGS = {"v1": 64, "v2": int(lt.create_torrent_flags_t.v2_only), "hybrid": 0}


def storage(path):
    """All files in the order of their paths: libtorrent leaves a v1 torrent in that of the disk."""
    files = lt.file_storage()
    if os.path.isfile(path):
        names = [path]
    else:
        names = [os.path.join(d, f) for d, _, fs in os.walk(path) for f in fs]
    for name in sorted(names, key=lambda name: os.fsencode(name).split(b"/")):
        executable = os.access(name, os.X_OK) and os.stat(name).st_mode & 0o100
        flags = lt.file_flags_t.flag_executable if executable else 0
        files.add_file(os.path.relpath(name, os.path.dirname(path)), os.path.getsize(name), flags)
    return files


def create(path, kind, piece_length):
    files = storage(path)  # The torrent keeps a reference to it that Python does not know of.
    torrent = lt.create_torrent(files, piece_length, FLAGS[kind])
    lt.set_piece_hashes(torrent, os.path.dirname(path))
    made = torrent.generate()
    made.pop(b"creation date", None)
    return lt.bencode(made)


def main():
    out, *rest = sys.argv[1:]
    found = []
    for number, (path, kind, length) in enumerate(zip(*[iter(rest)] * 3)):
        data = create(os.path.abspath(path), kind, int(length))
        with open(os.path.join(out, f"{number}.torrent"), "wb") as file:
            file.write(data)
        hashes = lt.torrent_info(lt.bdecode(data)).info_hashes()
        found.append(
            {
                "v1": str(hashes.v1) if hashes.has_v1() else None,
                "v2": str(hashes.v2) if hashes.has_v2() else None,
            }
        )
    print(json.dumps(found))


main()
