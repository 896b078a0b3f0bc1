"""draw_plots.py FOLDER [SUFFIX]: draws the plots of FOLDER/results.json into SVG files beside it, and prints what they are.
Exits 3 without matplotlib."""
import json
import sys
from pathlib import Path

NO_MATPLOTLIB = 3
try:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker
except ImportError:
    sys.exit(NO_MATPLOTLIB)

COLOURS = {"in-process": "#555555", "shm": "#0072b2", "mpi": "#d55e00", "tcp-namespaces": "#009e73"}
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
STAGES = {"attention": "#56b4e9", "router": "#f0e442", "dispatch": "#e69f00", "experts": "#d55e00", "combine": "#cc79a7", "lm_head": "#009e73"}
REST = "#bbbbbb"
PANEL = (3.4, 2.9)  # inches


def panels(num_rows, num_columns):
    figure, axes = pyplot.subplots(num_rows, num_columns, squeeze=False, layout="constrained",
                                   figsize=(max(6, PANEL[0] * num_columns), PANEL[1] * num_rows + 0.4))
    return figure, axes


def logarithmic(scale):
    """scale: an axis's x or y"""
    scale.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    scale.set_major_formatter("{x:g}")
    scale.set_minor_locator(ticker.NullLocator())


def line(axis, rows, value, **style):
    """Over units; points with more processes than cores are hollow."""
    pairs = [(row["units"], value(row), row["more_than_cores"]) for row in rows if value(row) is not None]
    if not pairs:
        return
    (drawn,) = axis.plot([x for x, _, _ in pairs], [y for _, y, _ in pairs], **style)
    hollow = [(x, y) for x, y, mark in pairs if mark]
    if hollow and style.get("marker"):
        axis.plot(*zip(*hollow), linestyle="", marker=style["marker"], markerfacecolor="white",
                  markeredgecolor=drawn.get_color(), zorder=3)


def over_units(axis, rows):
    axis.set_xticks(sorted({row["units"] for row in rows}))
    axis.set_xlabel("workers (in process: threads)")
    axis.grid(alpha=0.3)


def legend(figure, axes):
    found = {}
    for axis in axes.flat:
        handles, labels = axis.get_legend_handles_labels()
        found.update(zip(labels, handles))
    if found:
        figure.legend(found.values(), found.keys(), loc="upper center", bbox_to_anchor=(0.5, 0), ncols=max(2, int(figure.get_figwidth() / 1.6)),
                      fontsize="small", frameon=False)


def throughput(results):
    """tokens/s at a fixed batch, and the machine's ceiling"""
    rows = [row for row in results["points"] if row["kind"] == "engine"]
    lens, batches = sorted({row["input_len"] for row in rows}), results["settings"]["batch_sizes"]
    figure, axes = panels(len(lens), len(batches))
    for y, input_len in enumerate(lens):
        for x, batch in enumerate(batches):
            axis, here = axes[y][x], [row for row in rows if (row["input_len"], row["batch"]) == (input_len, batch)]
            for name, colour in COLOURS.items():
                of = sorted((row for row in here if row["transport"] == name), key=lambda row: row["units"])
                line(axis, of, lambda row: row["tokens_per_second"], color=colour, marker="o", label=name)
                line(axis, of, lambda row: row["ceiling_tokens_per_second"], color=colour, linestyle=":",
                     label=f"ceiling, {name}")
            axis.set_title(f"batch {batch}, prompts of {input_len}", fontsize="small")
            axis.set_yscale("log")
            logarithmic(axis.yaxis)
            over_units(axis, here)
        axes[y][0].set_ylabel("decode tokens/s")
    legend(figure, axes)
    return figure


def efficiency(results):
    """throughput a unit, of that of one unit"""
    at = {row["key"]: row for row in results["points"]}
    kinds = [kind for kind in ("engine", "serve") if any(one["kind"] == kind for one in results["series"])]
    batches = sorted({one["batch"] for one in results["series"]})
    figure, axes = panels(len(kinds), 2)
    for y, kind in enumerate(kinds):
        for x, mode in enumerate(("strong", "weak")):
            axis, here = axes[y][x], [one for one in results["series"] if (one["kind"], one["mode"]) == (kind, mode)]
            longest = max(results["settings"]["input_lens"])
            for one in (one for one in here if one["input_len"] == longest):
                mark = MARKS[batches.index(one["batch"]) % len(MARKS)]
                line(axis, [at[key] for key in one["points"]], lambda row, mode=mode: row[f"{mode}_efficiency"],
                     color=COLOURS[one["transport"]], marker=mark, label=f"{one['transport']}, batch {one['batch']}")
            axis.axhline(1, color="black", linewidth=0.6)
            axis.set_ylim(bottom=0)
            axis.set_title(f"{mode}, {kind}, prompts of {longest}", fontsize="small")
            over_units(axis, [at[key] for one in here for key in one["points"]] or results["points"])
        axes[y][0].set_ylabel("efficiency")
    legend(figure, axes)
    return figure


def stages(results):
    """what a decode step is made of"""
    rows = [row for row in results["points"] if row["kind"] == "engine" and row["batch"] in results["settings"]["batch_sizes"]
            and row["input_len"] == max(results["settings"]["input_lens"])]
    batches = sorted({row["batch"] for row in rows})
    figure, axes = panels(1, len(batches))
    for axis, batch in zip(axes[0], batches):
        here = [row for row in rows if row["batch"] == batch]
        names = [f"{row['transport']} {row['workers'] or row['threads']}" for row in here]
        left = [0.0] * len(here)
        for stage, colour in (*STAGES.items(), ("rest", REST)):
            widths = [1 - done if stage == "rest" else row["stage_shares"].get(stage, 0) for row, done in zip(here, left)]
            axis.barh(names, widths, left=left, color=colour, label=stage)
            left = [done + width for done, width in zip(left, widths)]
        axis.invert_yaxis()
        axis.set_xlim(0, 1)
        axis.set_title(f"batch {batch}, prompts of {here[0]['input_len']}", fontsize="small")
        axis.set_xlabel("share of a step")
    legend(figure, axes)
    return figure


def exchange(results):
    """share of a step that is exchange"""
    rows = [row for row in results["points"] if row["kind"] == "engine"]
    lens = sorted({row["input_len"] for row in rows})
    figure, axes = panels(1, len(lens))
    for axis, input_len in zip(axes[0], lens):
        here = [row for row in rows if row["input_len"] == input_len]
        for name, colour in COLOURS.items():
            for i, batch in enumerate(results["settings"]["batch_sizes"]):
                of = sorted((row for row in here if (row["transport"], row["batch"]) == (name, batch)), key=lambda row: row["units"])
                line(axis, of, lambda row: row["exchange_share"], color=colour, marker=MARKS[i % len(MARKS)], label=f"{name}, batch {batch}")
        axis.set_ylim(0, 1)
        axis.set_title(f"prompts of {input_len}", fontsize="small")
        over_units(axis, here)
    axes[0][0].set_ylabel("exchange, share of a step")
    legend(figure, axes)
    return figure


def served(results, draws, xlabel):
    """draws: [(label of y, draw)], a row of panels each; a column for each prompt length. draw(axis, rows of a setup, style)"""
    rows = [row for row in results["points"] if row["kind"] == "serve"]
    lens = sorted({row["input_len"] for row in rows})
    units = sorted({row["units"] for row in rows})
    figure, axes = panels(len(draws), len(lens))
    for y, (ylabel, draw) in enumerate(draws):
        for axis, input_len in zip(axes[y], lens):
            here = [row for row in rows if row["input_len"] == input_len]
            for transport, count in dict.fromkeys((row["transport"], row["units"]) for row in here):
                of = sorted((row for row in here if (row["transport"], row["units"]) == (transport, count)), key=lambda row: row["batch"])
                draw(axis, of, {"color": COLOURS[transport], "marker": MARKS[units.index(count) % len(MARKS)],
                                "markerfacecolor": "white" if of[0]["more_than_cores"] else COLOURS[transport],
                                "label": f"{transport} {of[0]['workers'] or of[0]['threads']}"})
            axis.set_title(f"prompts of {input_len}", fontsize="small")
            axis.set_xlabel(xlabel)
            axis.grid(alpha=0.3)
            axis.set_yscale("log")
            logarithmic(axis.yaxis)
        axes[y][0].set_ylabel(ylabel)
    legend(figure, axes)
    return figure


def frontier(results):
    """throughput against latency, a line a setup, a point a number of clients"""
    best = set(results["frontier"])

    def draw(axis, rows, style):
        axis.plot([row["latency_ms"]["tpot"]["p50"] for row in rows], [row["tokens_per_second"] for row in rows], **style)
        on = [row for row in rows if row["key"] in best]
        axis.plot([row["latency_ms"]["tpot"]["p50"] for row in on], [row["tokens_per_second"] for row in on], linestyle="", marker="o",
                  markersize=11, markerfacecolor="none", markeredgecolor="black", label="frontier")

    figure = served(results, [("tokens/s of all clients", draw)], "ms a token, p50")
    for axis in figure.axes:
        axis.set_xscale("log")
        logarithmic(axis.xaxis)
    return figure


def latency(results):
    """time to the first token, and between pieces: p50, shaded up to p99"""
    def of(name):
        def draw(axis, rows, style):
            clients, low, high = [row["batch"] for row in rows], *([row["latency_ms"][name][p] for row in rows] for p in ("p50", "p99"))
            axis.plot(clients, low, **style)
            axis.fill_between(clients, low, high, color=style["color"], alpha=0.08)

        return draw

    figure = served(results, [("first token, ms", of("ttft")), ("between pieces, ms", of("itl"))], "clients")
    for axis in figure.axes:
        axis.set_xscale("log")
        axis.set_xticks(sorted({row["batch"] for row in results["points"] if row["kind"] == "serve"}))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(ticker.NullLocator())
    return figure


def main(folder, suffix="svg"):
    results = json.loads((folder / "results.json").read_text())
    matplotlib.rcParams["svg.hashsalt"] = "expertmesh"
    kinds = {row["kind"] for row in results["points"]}
    drawn = []
    for plot, wanted in ((throughput, "engine" in kinds), (efficiency, results["series"]), (stages, "engine" in kinds),
                         (exchange, "engine" in kinds), (frontier, "serve" in kinds), (latency, "serve" in kinds)):
        if not wanted:
            continue
        figure = plot(results)
        name = f"{plot.__name__}.{suffix}"
        figure.savefig(folder / name, dpi=110, bbox_inches="tight", metadata={"Date": None} if suffix == "svg" else None)
        pyplot.close(figure)
        drawn.append((name, plot.__doc__))
    print(json.dumps(drawn))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
