#!/usr/bin/python3
"""A libtorrent peer for tests: one torrent, one session, JSON lines on stdout.

    lt.py SOURCE SAVE_PATH [options]      SOURCE is a .torrent file or a magnet link

Every line is an object, one whenever something changes: port, state, progress (0-1), uploaded
and downloaded (payload bytes, a second late), wasted (bytes that failed the hash check), pieces, peers,
banned (addresses), error, tracker_error. On stdin it takes "connect HOST:PORT"; end of file ends
the process, so it cannot outlive the test that started it.
"""

import argparse
import json
import os
import sys
import threading
import time

import libtorrent as lt

ALL_V4 = ("0.0.0.0", "255.255.255.255")
ALL_V6 = ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
POLL_S = 0.02
# How often a hybrid is begun again of whose hashes libtorrent says that they disagree: between its
# own peers too it says so of one in twenty whose hashes arrive together with their pieces.
FRESH_STARTS = 3
# torrent_inconsistent_hashes of libtorrent 2.0
INCONSISTENT_HASHES = 217
# How often the DHT is asked and told: a test may begin before its other half.
ANNOUNCE_S = 2


def endpoint(text):
    """'HOST:PORT' or '[V6]:PORT' as the pair that libtorrent takes."""
    host, port = text.rsplit(":", 1)
    return host.strip("[]"), int(port)


def settings(args):
    host = f"[{args.host}]" if ":" in args.host else args.host
    chosen = {
        "listen_interfaces": f"{host}:{args.port}",
        "alert_mask": lt.alert.category_t.status_notification
        | lt.alert.category_t.error_notification
        | lt.alert.category_t.peer_notification
        | lt.alert.category_t.storage_notification
        | lt.alert.category_t.tracker_notification,
        "allow_multiple_connections_per_ip": True,
        "enable_dht": False,
        "enable_lsd": args.lsd,
        "enable_natpmp": False,
        "enable_upnp": False,
        "enable_incoming_utp": False,
        "enable_outgoing_utp": False,
        # A tracker of a test appears after the peer as often as before it.
        "tracker_backoff": 10,
        "min_reconnect_time": 1,
        "upload_rate_limit": args.upload_limit,
        "download_rate_limit": args.download_limit,
    }
    if args.dht_node:
        # The others are all on one address of this machine.
        chosen["enable_dht"] = True
        chosen["dht_bootstrap_nodes"] = ""
        for rule in ("restrict_routing_ips", "restrict_search_ips", "prefer_verified_node_ids"):
            chosen[f"dht_{rule}"] = False
        chosen["dht_ignore_dark_internet"] = False
        # Too many packets a second, and an address is not heard for five minutes: here all have one.
        chosen["dht_block_ratelimit"] = 1_000_000
    if args.seed_mode:
        # Seed mode alone still checks a piece the first time it is asked for.
        chosen["disable_hash_checks"] = True
    if args.plaintext:
        chosen["out_enc_policy"] = int(lt.enc_policy.disabled)
    if args.announce_ip:
        chosen["announce_ip"] = args.announce_ip
    return chosen


def limit_loopback_too(session):
    """Without this, rate limits do not hold on 127.0.0.1: put everyone in the global class."""
    everyone = lt.ip_filter()
    everyone.add_rule(*ALL_V4, 1)
    everyone.add_rule(*ALL_V6, 1)
    session.set_peer_class_filter(everyone)


def parameters(args):
    if args.source.startswith("magnet:"):
        params = lt.parse_magnet_uri(args.source)
    else:
        params = lt.add_torrent_params()
        params.ti = lt.torrent_info(args.source)
        if args.flat:
            for index in range(params.ti.num_files()):
                params.ti.rename_file(index, f"{index:06}")
    params.save_path = args.save_path
    params.flags &= ~lt.torrent_flags.auto_managed
    params.flags &= ~lt.torrent_flags.paused
    if args.seed_mode:
        params.flags |= lt.torrent_flags.seed_mode
    if args.sequential:
        params.flags |= lt.torrent_flags.sequential_download
    return params


def say(line):
    print(json.dumps(line), flush=True)


def listen_to_stdin(handle, connected):
    """Runs in its own thread; leaves the process at end of file."""
    for line in sys.stdin:
        verb, _, rest = line.strip().partition(" ")
        if verb == "connect":
            connected.append(rest)
            handle.connect_peer(endpoint(rest))
    os._exit(0)


def report(session, handle, args):
    banned = []
    fresh_starts = FRESH_STARTS
    # Pieces are checked before they are written: complete is what was flushed after that.
    flushing = flushed = False
    announced = time.monotonic()
    tracker_error = ""
    last = None
    while True:
        # session.wait_for_alert looks at an alert that may be gone by then: one process in thirty died.
        time.sleep(POLL_S)
        if args.dht_node and time.monotonic() - announced > ANNOUNCE_S:
            announced = time.monotonic()
            handle.force_dht_announce()
        for alert in session.pop_alerts():
            if isinstance(alert, lt.peer_ban_alert):
                banned.append(str(alert.ip))
            elif isinstance(alert, lt.tracker_error_alert):
                tracker_error = alert.message()
            elif isinstance(alert, lt.cache_flushed_alert):
                flushed = flushing
        status = handle.status()
        if status.errc.value() == INCONSISTENT_HASHES and fresh_starts > 0:
            fresh_starts -= 1
            handle.clear_error()
            handle.resume()
            for peer in args.connect:
                handle.connect_peer(endpoint(peer))
        if status.is_seeding and not flushing:
            flushing = True
            handle.flush_cache()
        now = {
            "port": session.listen_port(),
            "state": str(status.state),
            "progress": 1.0 if status.is_seeding and flushed else min(status.progress, 0.999999),
            "uploaded": status.total_payload_upload,
            "downloaded": status.total_payload_download,
            "wasted": status.total_failed_bytes,
            "pieces": status.num_pieces,
            "peers": status.num_peers,
            "banned": banned,
            "tracker_error": tracker_error,
            "error": status.errc.message() if status.errc.value() else "",
        }
        if now != last:
            say(now)
            last = dict(now, banned=list(banned))


def options(line=None):
    """The command line, or one that is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("save_path")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="0 for any free one")
    parser.add_argument("--connect", action="append", default=[], metavar="HOST:PORT")
    parser.add_argument("--dht-node", action="append", default=[], metavar="HOST:PORT")
    parser.add_argument("--seed-mode", action="store_true", help="serve without checking")
    parser.add_argument("--flat", action="store_true", help="files are named 000000, 000001, …")
    parser.add_argument("--sequential", action="store_true")
    parser.add_argument("--plaintext", action="store_true", help="no encryption outwards")
    parser.add_argument("--announce-ip", default="")
    parser.add_argument("--lsd", action="store_true", help="local discovery")
    parser.add_argument("--upload-limit", type=int, default=0, help="bytes/s, 0 for none")
    parser.add_argument("--download-limit", type=int, default=0, help="bytes/s, 0 for none")
    return parser.parse_args(line)


def main():
    args = options()
    session = lt.session(settings(args))
    limit_loopback_too(session)
    for node in args.dht_node:
        session.add_dht_node(endpoint(node))
    handle = session.add_torrent(parameters(args))
    for peer in args.connect:
        handle.connect_peer(endpoint(peer))
    threading.Thread(target=listen_to_stdin, args=(handle, args.connect), daemon=True).start()
    report(session, handle, args)


if __name__ == "__main__":
    main()
