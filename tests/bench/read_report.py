"""What the benches of reads print: tables, targets, and a chart of bars.

    read_report.py JSON [SVG]     the tables again, and the chart, of a run that was kept
"""

import json
import operator
import sys
from pathlib import Path
from xml.sax.saxutils import escape

WAYS = {"<=": operator.le, ">=": operator.ge}

# group, link, seeders, variant (None: any), number, and what it shall be.
TARGETS = [
    ("sequential", "100M", None, "p2pfs", "of link", ">=", 0.95),
    ("sequential", "100M 50ms", None, "p2pfs", "of link", ">=", 0.95),
    ("sequential", "100M 50ms", None, "p2pfs", "of link, middle", ">=", 0.95),
    ("sequential", "100M 50ms loss", 4, "p2pfs", "of link", ">=", 0.85),
    ("magnet", "100M 50ms", None, "p2pfs", "listing s", "<=", 0.30),
    ("magnet", "100M 50ms", 1, "p2pfs", "first byte s", "<=", 0.55),
    ("magnet", "100M 50ms", 4, "p2pfs", "first byte s", "<=", 0.42),
    ("random 256 KiB", "100M 50ms", None, "p2pfs on demand", "p50 ms", "<=", 100),
    ("random 256 KiB", "100M 50ms", None, "p2pfs default", "p50 ms", "<=", 130),
    ("random 256 KiB", "100M 50ms", None, "p2pfs on demand, busy", "p50 ms", "<=", 130),
    ("random 256 KiB", "100M 50ms", None, "p2pfs busy", "p50 ms", "<=", 130),
    ("random 256 KiB", "100M 50ms", None, "p2pfs on demand, busy", "of link", ">=", 0.90),
    ("random 256 KiB", "100M 50ms", None, "p2pfs busy", "of link", ">=", 0.90),
    ("random 256 KiB", "100M 50ms", None, None, "p99/p50", "<=", 2),
    ("random 256 KiB", "loopback", None, "p2pfs on demand", "p50 ms", "<=", 2),
    ("random 256 KiB", "loopback", None, "p2pfs on demand", "p99 ms", "<=", 6),
    ("random 256 KiB", None, None, "p2pfs on demand", "pieces/touched", "<=", 1.1),
    ("random 4096 KiB", None, None, "p2pfs on demand", "pieces/touched", "<=", 1.1),
    ("stall", None, None, "p2pfs", "longest after s", "<=", 1),
    ("stall", None, None, "p2pfs", "duplicates", "<=", 0.05),
    ("warm", "loopback", None, "p2pfs", "first, of native", ">=", 0.80),
    ("warm", "loopback", None, "p2pfs", "of native", ">=", 0.80),
    (None, None, None, "p2pfs", "anon MiB", "<=", 64),
]


def shown(value):
    """A number with about three digits."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.1f}"


def table(lines):
    """Lines of words, the first of them the heads; the first three columns to the left."""
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    for line in lines:
        left = [cell.ljust(width) for cell, width in zip(line[:3], widths)]
        right = [cell.rjust(width) for cell, width in zip(line[3:], widths[3:])]
        print("  ".join([*left, *right]).rstrip())


def print_tables(rows):
    for group in dict.fromkeys(row["group"] for row in rows):
        inside = [row for row in rows if row["group"] == group]
        good = [row for row in inside if "not possible" not in row["median"]]
        keys = list(dict.fromkeys(key for row in good for key in row["median"]))
        print(f"\n{group}")
        heads = ["link", "seeders", "client", *keys]
        lines = [[*where(row), *(shown(row["median"].get(key)) for key in keys)] for row in good]
        table([heads, *lines])
        for row in inside:
            if row not in good:
                print("  ".join(where(row)) + f": not possible: {row['median']['not possible']}")


def from_seeders(row):
    return "1 seeder" if row["seeders"] == 1 else f"{row['seeders']} seeders"


def where(row):
    return [row["link"], str(row["seeders"]), row["variant"]]


def concerns(target, row):
    group, link, seeders, variant = target[:4]
    return (
        row["client"] == "p2pfs"
        and group in (None, row["group"])
        and link in (None, row["link"])
        and seeders in (None, row["seeders"])
        and (variant in (None, row["variant"]) or group is None)
    )


def print_targets(rows):
    lines = [["case", "link", "client", "seeders", "number", "is", "shall be", ""]]
    for target in TARGETS:
        number, way, limit = target[4:]
        inside = [row for row in rows if number in row["median"] and concerns(target, row)]
        if target[0] is None:
            # What holds everywhere is shown where it is worst.
            inside = sorted(inside, key=lambda row: row["median"][number])[-1:]
        for row in inside:
            value = row["median"][number]
            verdict = "" if WAYS[way](value, limit) else "missed"
            words = [row["group"], row["link"], row["variant"], str(row["seeders"]), number]
            lines.append([*words, shown(value), f"{way} {limit}", verdict])
    if len(lines) > 1:
        print("\ntargets")
        table(lines)


# The number of each case that a chart shows.
CHARTED = {
    "sequential": "MB/s",
    "magnet": "first byte s",
    "random": "p50 ms",
    "stall": "longest after s",
    "pieces16m": "p50 ms",
    "warm": "of native",
    "tree": "find -size native/ours",
}
COLOURS = {
    "p2pfs": "#2a6fb0",
    "libtorrent": "#d08a2e",
    "aria2": "#7a9a3c",
    "btfs": "#b04a4a",
    "tcp": "#999999",
}
LABEL_WIDTH, BAR_WIDTH, LINE_HEIGHT = 380, 420, 18


def write_chart(rows, path):
    """Bars for each row of each case, to the scale of the greatest on the same link."""
    marks, y = [], 10
    for group in dict.fromkeys(row["group"] for row in rows):
        number = CHARTED[group.split()[0]]
        inside = [row for row in rows if row["group"] == group and number in row["median"]]
        if not inside:
            continue
        y += 2 * LINE_HEIGHT
        marks.append(text(10, y, f"{group}: {number}", "bold"))
        greatest = {}
        for row in inside:
            greatest[row["link"]] = max(row["median"][number], greatest.get(row["link"], 0))
        for row in inside:
            y += LINE_HEIGHT
            value = row["median"][number]
            width = max(1, round(BAR_WIDTH * value / greatest[row["link"]]))
            label = f"{row['link']}, {from_seeders(row)}, {row['variant']}"
            marks.append(text(20, y, label))
            marks.append(
                f'<rect x="{LABEL_WIDTH}" y="{y - 11}" width="{width}" height="13" '
                f'fill="{COLOURS[row["client"]]}"/>'
            )
            marks.append(text(LABEL_WIDTH + width + 6, y, shown(value)))
    width, height = LABEL_WIDTH + BAR_WIDTH + 80, y + 20
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
    head += 'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    path.write_text("\n".join([head, *marks, "</svg>"]) + "\n")


def text(x, y, words, weight="normal"):
    return f'<text x="{x}" y="{y}" font-weight="{weight}">{escape(words)}</text>'


def main():
    rows = json.loads(Path(sys.argv[1]).read_text())["rows"]
    print_tables(rows)
    print_targets(rows)
    if len(sys.argv) > 2:
        write_chart(rows, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
