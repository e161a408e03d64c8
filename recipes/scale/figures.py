"""Runs simulate.py over numbers of sessions and draws what docs/scale.md shows.

pip install 'sonic-kv[scale]'
cd recipes/scale && python figures.py    # some ten minutes; writes figures.json and ../../docs/scale.png
"""

import json
from dataclasses import asdict
from typing import Any

import matplotlib
from simulate import HERE, Cluster, Kind, Numbers, assumptions, kinds

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PLOT = HERE.parent.parent / "docs" / "scale.png"
SIZES = [round(16 * 1.25**i) for i in range(20)]  # sessions of a replica
REPLICAS = 4
LIVE = (10**3, 10**5, 10**7)


def sweep(n: Numbers, kind: Kind, sizes: list[int] = SIZES) -> list[Numbers]:
    """More and more sessions a replica, until the service is far too slow."""
    points: list[Numbers] = []
    for size in sizes:
        found = Cluster(n, kind, REPLICAS, REPLICAS * size).run(700.0, 250.0)
        points.append({"sessions": size, **found})
        if found["first_token"] > 2 * n["first_token"] or found["token_time"] > 2 * n["token_time"]:
            break
    return points


def best(n: Numbers, points: list[Numbers]) -> Numbers:
    """The most sessions a replica that are served as they should."""
    return [p for p in points if p["first_token"] <= n["first_token"] and p["token_time"] <= n["token_time"]][
        -1
    ]


def at_scale(n: Numbers, kind: Kind, point: Numbers, live: int) -> Numbers:
    """What `live` sessions take, at `point` on every replica."""
    gpus = max(live / point["sessions"], 1.0)
    share = live / point["sessions"] / REPLICAS  # the simulated cluster, this many times
    return {
        "gpus": gpus,
        "turns": point["turns"] * share,
        "read": point["read"] * share,
        "written": point["written"] * share,
        "stored": live * n["longest"] / 2 * n["token_bytes"] * kind.idle,
        "deaths_a_day": gpus * 86400 / n["mtbf"],
    }


def death(n: Numbers, kind: Kind, size: int) -> list[tuple[float, float, float]]:
    """One of eight replicas dies: seconds since, bytes read from the store per second, slowest first token."""
    cluster = Cluster(n, kind, 8, 8 * size)
    cluster.env.process(cluster.fail(cluster.up[0], 500.0))
    cluster.run(900.0, 250.0)
    rows = []
    for begin in range(420, 800, 20):
        here = [note for note in cluster.turns if begin <= note["first"] < begin + 20]
        slowest = max(note["first"] - note["start"] for note in here)
        rows.append((begin + 10 - 500.0, sum(note["read"] for note in here) / 20, slowest))
    return rows


def draw(n: Numbers, found: dict[str, Any]) -> None:
    figure, ((first, gpus), (store, dead)) = plt.subplots(2, 2, figsize=(10, 7.2), layout="constrained")
    for name, result in found["kinds"].items():
        sizes = [p["sessions"] for p in result["points"]]
        first.plot(sizes, [p["first_token"] for p in result["points"]], marker=".", label=name)
        gpus.plot(
            LIVE,
            [at["gpus"] for at in result["at"]],
            marker=".",
            linestyle="-" if result["affinity"] else ":",
        )
        store.plot(
            sizes,
            [(p["read"] + p["written"]) / p["sessions"] / REPLICAS / 1e6 for p in result["points"]],
            marker=".",
        )
    first.axhline(n["first_token"], color="grey", linewidth=0.8, linestyle=":")
    first.set(
        xscale="log", yscale="log", xlabel="live sessions of one GPU", ylabel="first token, 99 %, seconds"
    )
    gpus.axhline(1e4, color="grey", linewidth=0.8, linestyle=":")
    gpus.set(xscale="log", yscale="log", xlabel="live sessions", ylabel="GPUs for the service asked for")
    store.set(
        xscale="log", xlabel="live sessions of one GPU", ylabel="store, read and written, MB/s a session"
    )
    for name, rows in found["death"].items():
        dead.plot([r[0] for r in rows], [r[2] for r in rows], label=name)
    dead.axvspan(0, n["restart"], color="grey", alpha=0.15, linewidth=0)
    dead.set(
        xlabel="seconds since one of eight replicas died", ylabel="slowest first token, seconds", yscale="log"
    )
    first.legend(fontsize=8)
    dead.legend(fontsize=8)
    for axes in (first, gpus, store, dead):
        axes.grid(alpha=0.3)
    figure.savefig(PLOT, dpi=100)


def main() -> None:
    n = assumptions()
    found: dict[str, Any] = {"kinds": {}, "links": {}, "death": {}}
    for kind in kinds(n):
        points = sweep(n, kind)
        point = best(n, points)
        found["kinds"][kind.name] = {
            **asdict(kind),
            "best": point,
            "at": [at_scale(n, kind, point, live) for live in LIVE],
            "points": points,
        }
        print(kind.name, point, flush=True)
    for kind in kinds(n)[:2]:
        size = int(found["kinds"][kind.name]["best"]["sessions"])
        found["death"][f"{kind.name}, {size} a replica"] = death(n, kind, size)
        for link in (5e9, 50e9):
            there = n | {"link": link}
            point = best(there, sweep(there, kind, SIZES[3::2]))
            found["links"][f"{kind.name}, {link / 1e9:g} GB/s"] = point["sessions"]
            print(kind.name, link, point, flush=True)
    (HERE / "figures.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    draw(n, found)


if __name__ == "__main__":
    main()
