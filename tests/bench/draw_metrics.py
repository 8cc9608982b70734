"""Draws docs/metrics.svg: a minute of a real agent's metrics, scraped every second, while its table fills.

The agent runs in a network namespace on a policy file; entries come in steadily, and clients ask port 80. After half a
minute the file gets a NOTRACK rule for that port. Needs root. Run: python -m tests.bench.draw_metrics
"""

import http.client
import json
import math
import sys
import tempfile
import time
from pathlib import Path

from tests.lab.entries import Entry, inject_many
from tests.lab.host import Host
from tests.lab.namespaces import Lab, Namespace
from tests.lab.programs import Program, wait_until

SECONDS, RULE_AT, PORT, LIMIT = 60, 30, 9464, 131_072
PICTURE = Path(__file__).parents[2] / "docs" / "metrics.svg"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, GAP = 760, 88, 244, 24, 78, 30
INK, FAINT, LINE = "#2e3440", "#d8dee9", "#2f6fab"
PREFIX = "conntrack_operator_"
PANELS = (
    ("Table used", "used_ratio", " %", 100.0),
    ("Time until it is full", "time_to_full_seconds", " s", 1.0),
    ("Packets left untracked", 'bypassed_packets_total{rule="tcp/server"}', " /s", 1.0),
)
ROUND = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)
"""Where a panel's axis may end, times a power of ten."""


def policy(*ports: int) -> str:
    """Return a policy file that asks for a timeout, and for NOTRACK of `ports`."""
    spec = {"mode": "Enforce", "nodeSelector": {"matchLabels": {"kubernetes.io/os": "linux"}},
            "timeouts": {"icmp": "20s"}, "trial": {"timeoutSeconds": 20, "soakSeconds": 2}}  # fmt: skip
    if ports:
        spec["notrack"] = {"rules": [{"name": "web", "ports": list(ports)}]}
    return json.dumps({"apiVersion": "conntrack-operator.io/v1alpha1", "kind": "ConntrackPolicy",
                       "metadata": {"name": "web"}, "spec": spec})  # fmt: skip


def scrape(node: Namespace) -> dict[str, float]:
    """Return the agent's samples."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT)
    connection.sock = node.connect("127.0.0.1", PORT)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def measured() -> list[tuple[float, dict[str, float]]]:
    """Return a minute of samples, with the second each was taken at. Nobody else tunes the machine meanwhile."""
    found = []
    with tempfile.TemporaryDirectory() as folder, Host() as host, Lab() as lab:
        host.shrink(LIMIT)
        node, clients = lab.namespace(), lab.namespace()
        near, _ = lab.link(node, clients)
        node.track()
        file = Path(folder) / "policy.json"
        file.write_text(policy())
        command = [
            sys.executable, "-m", "conntrack_operator", "agent", f"--policy={file}", f"--state-dir={folder}/state",
            f"--metrics-address=127.0.0.1:{PORT}",
        ]  # fmt: skip
        agent = Program("agent", command, Path(folder) / "agent.log", inside=node.inside)
        agent.start()
        try:
            agent.wait_until(lambda: _is_ready(node), 30, "the agent is ready")
            rate = int(LIMIT * 0.85 / RULE_AT)
            began = time.monotonic()
            with node.listen(near.ipv4, 80) as server:
                for second in range(SECONDS):
                    wait_until(lambda at=began + second: time.monotonic() >= at, 10, "the next second", every=0.01)
                    if second == RULE_AT:
                        file.write_text(policy(80))
                    if second < RULE_AT:
                        like = Entry(f"198.18.{second}.0", f"198.19.{second}.1", destination_port=9, timeout_seconds=45)
                        inject_many(node, like, rate)
                    for _ in range(20):
                        with clients.connect(near.ipv4, 80) as client:
                            client.sendall(b"hello")
                            server.accept()[0].close()
                    found.append((time.monotonic() - began, scrape(node)))
        finally:
            agent.stop()
    return found


def _is_ready(node: Namespace) -> bool:
    try:
        return PREFIX + "entries" in scrape(node)
    except OSError:
        return False


def series(samples: list[tuple[float, dict[str, float]]], name: str, scale: float) -> list[tuple[float, float]]:
    """Return the points of one metric; of a counter its rate over five seconds."""
    points = [(at, found[PREFIX + name] * scale) for at, found in samples if PREFIX + name in found]
    if "_total" not in name:
        return points
    pairs = zip(points, points[5:], strict=False)
    return [(now[0], (now[1] - before[1]) / (now[0] - before[0])) for before, now in pairs]


def axis_end(most: float) -> float:
    """Return the round number at which an axis ends that `most` is to be seen on."""
    power = 10.0 ** math.floor(math.log10(most)) if most > 0 else 1.0
    return next(each * power for each in ROUND if each * power >= most)


def x_of(second: float) -> float:
    """Return where a second lies."""
    return LEFT + second / SECONDS * (WIDTH - LEFT - RIGHT)


def text(x: float, y: float, words: str, more: str = "") -> str:
    """Return words at a place."""
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{words}</text>'


def panel(title: str, points: list[tuple[float, float]], unit: str, top: int) -> str:
    """Return one panel as SVG; a gap of more than two seconds is one in the line."""
    if not points:
        raise SystemExit(f"{title}: the agent told nothing of it; draw again")
    end = axis_end(max(value for _, value in points))
    runs: list[list[str]] = []
    last = float("-inf")
    for second, value in points:
        if second - last > 2.5:
            runs.append([])
        runs[-1].append(f"{x_of(second):.1f},{top + HEIGHT - value / end * HEIGHT:.1f}")
        last = second
    lines = "".join(
        f'<polyline points="{" ".join(run)}" fill="none" stroke="{LINE}" stroke-width="2"/>' for run in runs
    )
    grid = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="{FAINT}"/>'
        + text(LEFT - 8, y + 4, f"{value:,.0f}{unit}", 'text-anchor="end" fill-opacity="0.75"')
        for y, value in ((top, end), (top + HEIGHT / 2, end / 2), (top + HEIGHT, 0.0))
    )
    return text(16, top + HEIGHT / 2 + 4, title, 'font-weight="600"') + grid + lines


def picture(samples: list[tuple[float, dict[str, float]]]) -> str:
    """Return all of it as SVG."""
    panels = [
        panel(title, series(samples, name, scale), unit, TOP + number * (HEIGHT + GAP))
        for number, (title, name, unit, scale) in enumerate(PANELS)
    ]
    bottom = TOP + len(PANELS) * (HEIGHT + GAP) - GAP
    seconds = "".join(
        text(x_of(second), bottom + 20, f"{second} s", 'text-anchor="middle" fill-opacity="0.75"')
        for second in range(0, SECONDS + 1, 10)
    )
    rule = x_of(RULE_AT)
    # White, with an edge, whatever page it is on: a reader's dark theme does not reach into an image.
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 34}" font-family="sans-serif"'
        f' font-size="12" fill="{INK}">'
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{bottom + 33}" rx="6" fill="#fff" stroke="{FAINT}"/>'
        + text(16, 26, "A table that fills: a minute of one agent's metrics", 'font-size="15" font-weight="600"')
        + "".join(panels)
        + seconds
        + f'<line x1="{rule:.1f}" x2="{rule:.1f}" y1="{TOP - 16}" y2="{bottom}" stroke="{INK}" stroke-dasharray="3 4"/>'
        + text(rule, TOP - 22, "the policy gets a NOTRACK rule for port 80; no more entries are put in",
               'text-anchor="middle"')
        + "</svg>\n"
    )  # fmt: skip


def main() -> None:
    """Measure and draw."""
    samples = measured()
    PICTURE.write_text(picture(samples))
    print(f"{PICTURE}: {len(samples)} scrapes, limit {samples[-1][1][PREFIX + 'entries_limit']:,.0f} entries")


if __name__ == "__main__":
    main()
