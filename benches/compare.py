#!/usr/bin/env python3
"""Times this crate and the peers in turn and prints the table of ratios.

    python3 -m venv benches/peers/venv
    benches/peers/venv/bin/pip install -r benches/peers/requirements.txt
    python3 benches/compare.py [--rounds 3] [--runs 7] [--only WORKLOAD ...] [--peers PEER ...]

Workload by workload and round by round, ours first and then each peer, never two programs at once: what
is compared was measured in the same minutes. A ratio is the peer's time over ours, of the medians of the
rounds that both took part in. Needs nothing but Python's standard library itself; the peers run in the
environment above or in that of `--python`.
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import signal
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))

from workloads import CHANNELS_LAST, COMPILED, PACKAGES, WORKLOADS, peers_of  # noqa: E402

OURS = "burn-flows"
OPERATIONS = ("train", "log_prob", "sample")
VENV = HERE / "peers" / "venv"
INSTALL = f"python3 -m venv {VENV} && {VENV}/bin/pip install -r {HERE / 'peers' / 'requirements.txt'}"
INTERRUPTED = 128 + signal.SIGINT  # exit status, as a shell has it
IDLE_LOAD = 0.5  # of the last minute
IDLE_SHARE = 0.05  # of one processor, taken by other processes during a measurement


class Failure(Exception):
    """Ends the program with one line."""


def warn(text):
    print(f"warning: {text}", file=sys.stderr, flush=True)


# What a program takes: its peak of memory, and the processor's time that others take beside it.


def processor_seconds():
    """Of every process but this one: name and seconds, those of its reaped children included.

    What a process took goes to its parent when it ends, so the sum loses nothing. Empty where there is
    no `/proc`.
    """
    ticks, seconds = os.sysconf("SC_CLK_TCK"), {}
    for entry in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            stat = entry.read_text()
        except OSError:
            continue  # it has ended
        name, fields = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2 :].split()
        if entry.parent.name != str(os.getpid()):
            seconds[int(entry.parent.name)] = (name, sum(map(int, fields[11:15])) / ticks)
    return seconds


class Others:
    """Processors that other processes kept busy since this was made, on the average."""

    def __init__(self):
        self.start, self.before = time.monotonic(), processor_seconds()

    def share(self):
        """The share, None where the system does not tell, and the name of the process that took the most."""
        after, wall = processor_seconds(), time.monotonic() - self.start
        if not after:
            return None, ""
        total = sum(s for _, s in after.values()) - sum(s for _, s in self.before.values())
        taken = {pid: s - self.before.get(pid, ("", 0.0))[1] for pid, (_, s) in after.items()}
        return max(0.0, total) / wall, after[max(taken, key=taken.get)][0]


def warn_unless_idle():
    load = os.getloadavg()[0]
    others = Others()
    time.sleep(1)
    share, name = others.share()
    if load > IDLE_LOAD:
        warn(f"the load average is {load:.1f}; wait until it is below {IDLE_LOAD} for figures that count")
    if share is not None and share > IDLE_SHARE:
        warn(f"other processes take {share:.0%} of a processor, '{name}' the most of it")
    return load


def peak_mib_of_start(command):
    """Peak resident MiB of a program that ends by itself at once; a little less where it ends too fast."""
    peak = 0.0
    for _ in range(5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            try:
                status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                break
            found = re.search(r"VmHWM:\s*(\d+)", status)
            peak = max(peak, int(found[1]) / 1024 if found else 0.0)
        process.wait()
    return round(peak, 1)


# The programs.


def build_ours(features):
    command = ["cargo", "bench", "--bench", "peers", "--no-run", "--message-format=json-render-diagnostics"]
    command += ["--features", features] if features else []
    print(f"building: {' '.join(command)}", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        raise Failure("cargo is not on the PATH: install Rust from https://rustup.rs or give --ours PATH")
    if done.returncode:
        raise Failure(f"cargo ended with status {done.returncode}, see above")
    messages = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    for message in messages:
        if message.get("executable") and message["target"]["name"] == "peers" and "bench" in message["target"]["kind"]:
            return pathlib.Path(message["executable"])
    raise Failure("cargo built no executable for the benchmark 'peers'")


def check_python(python, peers):
    """That the interpreter runs and has what the peers import."""
    modules = list(dict.fromkeys(module for peer in peers for module in PACKAGES[peer]))
    code = "import sys, importlib.util as u; print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])"
    try:
        done = subprocess.run([python, "-c", code, *modules], capture_output=True, text=True)
    except OSError as error:
        raise Failure(f"no Python at {python} ({error.strerror}): {INSTALL}")
    if done.returncode:
        raise Failure(f"{python} does not run: {last_line(done.stderr)}")
    missing = done.stdout.split()
    if missing:
        without = [peer for peer in peers if not set(missing) & set(PACKAGES[peer])]
        instead = f", or leave them out: --peers {' '.join(without)}" if without else ""
        raise Failure(f"{python} lacks {', '.join(missing)}: {python} -m pip install {' '.join(missing)}{instead}")


def last_line(text):
    """What a program said last, but for the note under a panic."""
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line and not line.startswith("note:")), "it said nothing")


def rows_of(command):
    """The JSON lines of a program; a `Failure` says how it ended if it did not end well."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode < 0:
        raise Failure(f"was ended by {signal.Signals(-done.returncode).name}: {last_line(done.stderr)}")
    if done.returncode:
        raise Failure(f"ended with status {done.returncode}: {last_line(done.stderr)}")
    try:
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    except ValueError as error:
        raise Failure(f"printed what is not JSON: {error}")
    if not any(row.get("op") in OPERATIONS for row in rows):
        raise Failure("printed no figures")
    return rows


# The tables.


class Results:
    """Rows of a run, by workload, program and operation."""

    def __init__(self, rows):
        self.rows = [row for row in rows if row.get("workload")]
        self.machine = next((row for row in rows if row.get("op") == "machine"), {})
        self.ms = {}
        for row in self.rows:
            if "ms" in row:
                self.ms.setdefault((row["workload"], row["peer"], row["op"]), {})[row["round"]] = row["ms"]

    def workloads(self):
        return [name for name in WORKLOADS if any(row["workload"] == name for row in self.rows)]

    def peers(self, workload):
        names = dict.fromkeys(row["peer"] for row in self.rows if row["workload"] == workload)
        return [name for name in names if name != OURS]

    def median(self, workload, peer, op):
        rounds = self.ms.get((workload, peer, op))
        return statistics.median(rounds.values()) if rounds else None

    def ratio(self, workload, peer, op):
        """The peer's time over ours, of the rounds that both took part in."""
        theirs, ours = (self.ms.get((workload, name, op), {}) for name in (peer, OURS))
        shared = theirs.keys() & ours.keys()
        if not shared:
            return None
        return statistics.median(theirs[r] for r in shared) / statistics.median(ours[r] for r in shared)

    def fastest(self, workload, op):
        eager = [peer for peer in self.peers(workload) if peer != COMPILED]
        ratios = {peer: self.ratio(workload, peer, op) for peer in eager}
        return min((peer for peer in eager if ratios[peer]), key=ratios.get, default=None)

    def memory(self, workload, peer):
        """Median over the rounds of the peak beyond the runtime's own, in MiB."""
        peaks = {}
        for row in self.rows:
            if (row["workload"], row["peer"]) == (workload, peer) and row.get("peak_mib") is not None:
                beyond = row["peak_mib"] - row.get("base_mib", 0.0)
                peaks[row["round"]] = max(beyond, peaks.get(row["round"], 0.0))
        return statistics.median(peaks.values()) if peaks else None

    def noted(self, workload, peer, field):
        rows = (row for row in self.rows if (row["workload"], row["peer"]) == (workload, peer))
        return next((row[field] for row in rows if field in row), None)


def number(value):
    """Three digits that count."""
    if value is None:
        return "–"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}"


def ratio(value):
    return "–" if value is None else f"{value:.2f}"


def joined(values, form):
    return " / ".join(map(form, values))


def markdown(header, rows):
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def fastest_cell(results, workload):
    names = [results.fastest(workload, op) for op in OPERATIONS]
    times = [number(results.median(workload, name, op)) for name, op in zip(names, OPERATIONS)]
    if len(set(names)) == 1:
        return f"{names[0] or ''} {' / '.join(times)}".strip()
    return " / ".join(f"{name} {ms}" if name else ms for name, ms in zip(names, times))


def summary(results):
    has_compiled = any(COMPILED in results.peers(workload) for workload in results.workloads())
    header = ["workload", "ours", "fastest eager peer", "ratio"]
    header += ["ratio to compiled"] * has_compiled + ["MiB, ours / that peer's"]
    rows = []
    for workload in results.workloads():
        fastest = [results.fastest(workload, op) for op in OPERATIONS]
        cells = [workload, joined((results.median(workload, OURS, op) for op in OPERATIONS), number)]
        cells.append(fastest_cell(results, workload))
        ratios = (results.ratio(workload, name, op) for name, op in zip(fastest, OPERATIONS))
        cells.append(joined(ratios, ratio))
        if has_compiled:
            cells.append(joined((results.ratio(workload, COMPILED, op) for op in OPERATIONS), ratio))
        cells.append(joined((results.memory(workload, name) for name in (OURS, fastest[0])), number))
        rows.append(cells)
    return markdown(header, rows)


def details(results):
    rows = []
    for workload in results.workloads():
        for peer in results.peers(workload):
            compiling = results.median(workload, peer, "compile")
            parameters = results.noted(workload, peer, "num_parameters")
            rows.append(
                [
                    workload,
                    peer,
                    joined((results.median(workload, peer, op) for op in OPERATIONS), number),
                    joined((results.ratio(workload, peer, op) for op in OPERATIONS), ratio),
                    number(results.memory(workload, peer)),
                    "" if compiling is None else number(compiling / 1e3),
                    "" if parameters is None else f"{parameters:,}",
                ]
            )
    header = ["workload", "peer", "ms", "ratio", "MiB", "s to compile", "parameters"]
    return markdown(header, rows)


def report(results):
    machine = results.machine
    rounds = max((row["round"] for row in results.rows), default=0)
    lines = [f"{machine.get('date', '?')}: {machine.get('processor', '?')}; threads: {machine.get('threads', '?')}"]
    lines.append(f"Medians; rounds: {rounds}, runs in each: {machine.get('runs', '?')} after two that do not count.")
    versions = dict(machine.get("versions", {}))
    for row in results.rows:
        versions |= row.get("versions", {})
    lines.append(", ".join(f"{name} {version}" for name, version in versions.items()))
    shares = [row["others"] for row in results.rows if "others" in row]
    if shares:
        lines.append(
            f"Other processes took {statistics.median(shares):.0%} of a processor, at most {max(shares):.0%};"
            f" load average before: {machine.get('load', '?')}."
        )
        if max(shares) > IDLE_SHARE:
            lines.append("**The machine was not idle: these figures do not count.**")
    lines.append("")
    lines.append("train / log_prob / sample of a batch, milliseconds; ratio: the peer's time over ours.")
    lines.append("MiB: peak resident memory beyond what the runtime takes before there is a model.")
    print("\n".join(lines), summary(results), details(results), sep="\n\n", flush=True)


# The run.


def processor():
    """Its name and the widest of its instruction sets."""
    try:
        fields = re.findall(r"^(model name|flags)\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        fields = []
    found = dict(fields)
    name = found.get("model name") or platform.processor() or platform.machine()
    flags = found.get("flags", "").split()
    sets = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX512-BF16", "amx_tile": "AMX"}
    return ", ".join([name.strip(), *(label for flag, label in sets.items() if flag in flags)])


def our_version():
    manifest = (HERE.parent / "Cargo.toml").read_text()
    version = re.search(r'^version = "(.*)"', manifest, re.MULTILINE)[1]
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return version
    return f"{version} ({done.stdout.strip()})" if done.returncode == 0 else version


def measure(arguments, ours, peers, write):
    """Runs everything; what failed is the answer."""
    base = peak_mib_of_start([ours, "--only", "none"])
    failed = {}
    for workload in arguments.only:
        for turn in range(1, arguments.rounds + 1):
            for peer in [OURS, *peers[workload]]:
                if (workload, peer) in failed or (workload, OURS) in failed:
                    continue
                if peer == COMPILED and arguments.compile and turn > arguments.compile:
                    continue
                if peer == OURS:
                    command = [ours, "--only", workload, "--runs", str(arguments.runs)]
                    command += ["--device", arguments.device] if arguments.device else []
                else:
                    command = [arguments.python, HERE / "peers" / "measure.py", "--only", workload, "--peer", peer]
                    command += ["--runs", str(arguments.runs), "--threads", str(arguments.threads)]
                others = Others()
                try:
                    rows = rows_of([str(part) for part in command])
                except (Failure, OSError) as failure:
                    failed[workload, peer] = str(failure)
                    warn(f"{peer} in {workload}, round {turn}: {failure}")
                    continue
                share, name = others.share()
                for row in rows:
                    if peer == OURS:
                        row.setdefault("base_mib", base)
                    write(row | {"round": turn} | ({} if share is None else {"others": round(share, 3)}))
                times = {row["op"]: row["ms"] for row in rows if "ms" in row}
                busy = f"; others took {share:.0%} of a processor ('{name}')" if (share or 0.0) > IDLE_SHARE else ""
                shown = joined((times.get(op) for op in OPERATIONS), number)
                print(f"{workload}, round {turn}, {peer}: {shown} ms{busy}", file=sys.stderr, flush=True)
    return failed


def natural(text):
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=natural, default=3, help="default 3")
    parser.add_argument("--runs", type=natural, default=7, help="timed runs of an operation in a round (default 7)")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--peers", nargs="+", choices=PACKAGES, metavar="PEER", help=", ".join(PACKAGES))
    parser.add_argument(
        "--compile",
        nargs="?",
        type=natural,
        const=10**9,
        metavar="ROUNDS",
        help="torch.compile as well, a minute or more each time; in the first ROUNDS rounds, or in all",
    )
    parser.add_argument("--channels-last", action="store_true", help="Glow in that memory format as well")
    parser.add_argument("--threads", type=natural, help="of every program; default: one a processor")
    parser.add_argument("--python", default=VENV / "bin" / "python", help="default: that of benches/peers/venv")
    parser.add_argument("--ours", type=pathlib.Path, help="the built benchmark; default: what cargo builds")
    parser.add_argument("--features", help="of our build, as cargo takes them")
    parser.add_argument("--device", help="of ours, as the benchmark takes it")
    parser.add_argument("--out", type=pathlib.Path, help="file of the raw lines (default: out/peers-TIME.jsonl)")
    parser.add_argument("--table", type=pathlib.Path, metavar="FILE", help="print the tables of such a file again")
    arguments = parser.parse_args()
    arguments.only = arguments.only or list(WORKLOADS)
    return arguments


def wanted_peers(arguments):
    """The peers of each workload that are asked for."""
    extra = [COMPILED] * bool(arguments.compile) + [CHANNELS_LAST] * arguments.channels_last
    names = [name for name in PACKAGES if name not in (COMPILED, CHANNELS_LAST)]
    names = (arguments.peers or names) + extra
    peers = {workload: [peer for peer in peers_of(workload) if peer in names] for workload in arguments.only}
    if not any(peers.values()):
        raise Failure("none of these workloads has such a peer: see benches/peers/measure.py --list")
    return peers


def main():
    arguments = parse()
    if arguments.table:
        try:
            rows = [json.loads(line) for line in arguments.table.read_text().splitlines()]
        except (OSError, ValueError) as error:
            raise Failure(f"{arguments.table}: {error}")
        return report(Results(rows))
    peers = wanted_peers(arguments)
    check_python(arguments.python, dict.fromkeys(peer for names in peers.values() for peer in names))
    ours = arguments.ours or build_ours(arguments.features)
    if not (ours.is_file() and os.access(ours, os.X_OK)):
        raise Failure(f"no program at {ours}: cargo bench --bench peers --no-run says where it is")

    has_affinity = hasattr(os, "sched_setaffinity")
    processors = sorted(os.sched_getaffinity(0)) if has_affinity else range(os.cpu_count())
    arguments.threads = min(arguments.threads or len(processors), len(processors))
    if has_affinity:
        # All programs inherit it, and all of them count the processors that they may run on.
        os.sched_setaffinity(0, list(processors)[: arguments.threads])

    now = datetime.datetime.now()
    path = arguments.out or HERE.parent / "out" / f"peers-{now:%Y%m%d-%H%M%S}.jsonl"
    rows = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("x")
    except FileExistsError:
        raise Failure(f"{path} exists: move it away or name another --out")
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}")
    with file:

        def write(row):
            rows.append(row)
            print(json.dumps(row), file=file, flush=True)

        machine = {"op": "machine", "date": f"{now:%Y-%m-%d}", "processor": processor()}
        machine |= {"threads": arguments.threads, "runs": arguments.runs, "load": round(warn_unless_idle(), 2)}
        write(machine | {"versions": {OURS: our_version()}})
        failed, interrupted = {}, False
        try:
            failed = measure(arguments, ours.resolve(), peers, write)
        except KeyboardInterrupt:
            interrupted = True
            warn("interrupted; the tables are those of what was measured")
    if len(rows) > 1:
        report(Results(rows))
    print(f"\nraw lines: {path}", file=sys.stderr)
    if failed:
        raise Failure("failed: " + ", ".join(f"{peer} in {workload}" for workload, peer in failed))
    if interrupted:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"compare.py: {failure}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
