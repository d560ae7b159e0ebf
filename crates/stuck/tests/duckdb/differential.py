"""A second implementation of the stuck report, in SQL, and a generator of logs with known events.

Usage: differential.py REPORT [--events N] [--seed N] [--formats a,b,…] [--quiet]

REPORT is the command that runs the report, e.g. "target/debug/conman stuck report".
For every format and every kind of input (in order, disordered, newest first, several files, gzip, zstd,
standard input) it writes the same events as a log, lets the report find the episodes, finds them in DuckDB
as gaps and islands over the events themselves, and compares episode by episode. It prints one line per
case (with --quiet one in all) and exits with 1 at the first difference.
"""

import argparse
import datetime
import gzip
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile

import duckdb

GAP_S = 600
BASE_US = 1_709_251_200_000_000  # 2024-03-01T00:00:00Z: no log here crosses a new year
MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()


# ------------------------------------------------------------------ events


def make_events(count, seed, entities, span_s):
    """Events as (time in µs, entity, outcome), in order, with ties, duplicates and gaps at the boundary."""
    rng = random.Random(seed)
    events = []
    while len(events) < count:
        entity = f"r-{rng.randrange(entities)}"
        time = BASE_US + rng.randrange(span_s * 1_000_000)
        kind = rng.random()
        if kind < 0.80:
            events.append((time, entity, rng.choice(["ok"] * 8 + ["user_fail"])))
        elif kind < 0.84:
            events.append((time, entity, "client_abort"))
        elif kind < 0.90:
            events.append((time, entity, "platform_fail"))
        elif kind < 0.97:
            # A run of failures with an end, or with none.
            for _ in range(rng.randrange(1, 9)):
                events.append((time, entity, "platform_fail"))
                time += rng.choice([1_000, 250_000, 5_000_000, 60_000_000, 300_000_000, rng.randrange(700_000_000)])
            if rng.random() < 0.6:
                events.append((time, entity, "ok"))
        elif kind < 0.99:
            # Exactly at the gap, half and double of it, and one millisecond beside.
            for step in rng.choices([300, 600, 1200], k=3):
                events.append((time, entity, "platform_fail"))
                time += step * 1_000_000 + rng.choice([-1_000, 0, 0, 1_000])
            events.append((time, entity, rng.choice(["ok", "platform_fail"])))
        else:
            # Ties, in an order that matters, and whole duplicates.
            for outcome in rng.choices(["ok", "platform_fail", "platform_fail", "client_abort"], k=4):
                events.append((time, entity, outcome))
            events.append(events[-1])
    # Logs of the field hold milliseconds at least, so that every format can tell the same time.
    events = [(time // 1000 * 1000, entity, outcome) for time, entity, outcome in events[:count]]
    order = list(range(len(events)))
    order.sort(key=lambda index: events[index][0])
    return [events[index] for index in order]


# ------------------------------------------------------------------ formats


def iso(us, digits=6):
    moment = datetime.datetime.fromtimestamp(us // 1_000_000, datetime.timezone.utc)
    fraction = f"{us % 1_000_000:06d}"[:digits]
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + (f".{fraction}" if digits else "") + "Z"


def parts(us):
    return datetime.datetime.fromtimestamp(us // 1_000_000, datetime.timezone.utc), f"{us % 1_000_000:06d}"[:3]


def compact(value):
    return json.dumps(value, separators=(",", ":"))


REASONS = {"ok": "none", "user_fail": "refused", "platform_fail": "owner_gone", "client_abort": "closed"}
STATUS = {"ok": 200, "user_fail": 500, "platform_fail": 503, "client_abort": 499}


def conman(us, entity, outcome, index):
    return compact({"time": iso(us), "repl": entity, "session": f"s-{index}", "outcome": outcome,
                    "reason": REASONS[outcome], "host": "h-1", "epoch": index, "attempt_ms": index % 997})


def ndjson(us, entity, outcome, index):
    # Another order of keys now and then, spaces, nesting, escapes.
    value = {"ts": us, "user": {"id": entity, "name": "a \"b\" é"}, "status": STATUS[outcome], "n": index}
    if index % 7 == 0:
        value = dict(reversed(list(value.items())))
    return json.dumps(value) if index % 3 else compact(value)


def tracing(us, entity, outcome, index):
    return compact({"timestamp": iso(us), "level": "ERROR" if outcome == "platform_fail" else "INFO",
                    "fields": {"message": "session ended", "repl": entity, "outcome": outcome}, "target": "gateway",
                    "span": {"name": "session", "n": index}, "spans": [{"name": "root"}]})


def gcloud(us, entity, outcome, index):
    details = {"ok": "response_sent_by_backend", "user_fail": "response_sent_by_backend",
               "platform_fail": "failed_to_connect_to_backend", "client_abort": "client_disconnected_before_any_response"}
    return {"insertId": str(index), "timestamp": iso(us), "logName": "projects/p/logs/requests",
            "httpRequest": {"requestMethod": "GET", "requestUrl": f"https://{entity}/x", "status": STATUS[outcome]},
            "jsonPayload": {"statusDetails": details[outcome]}}


def gcloud_lines(us, entity, outcome, index):
    return compact(gcloud(us, entity, outcome, index))


def logcli(us, entity, outcome, index):
    inner = f'level=info repl={entity} outcome={outcome} msg="a b"'
    return compact({"labels": {"app": "gateway"}, "line": inner, "timestamp": iso(us)})


def journal(us, entity, outcome, index):
    message = compact({"repl": entity, "outcome": outcome, "reason": REASONS[outcome]})
    if index % 50 == 0:
        message = list(message.encode())
    return compact({"__CURSOR": f"s={index}", "__REALTIME_TIMESTAMP": str(us), "_SYSTEMD_UNIT": "gw.service", "MESSAGE": message})


def docker(us, entity, outcome, index):
    inner = compact({"repl": entity, "outcome": outcome}) + "\n"
    return compact({"log": inner, "stream": "stdout", "time": iso(us)})


def logfmt(us, entity, outcome, index):
    return f'time={iso(us)} level=info msg="a \\"session\\" ended" repl={entity} outcome={outcome} n={index}'


def nginx_error(us, entity, outcome, index):
    moment, _ = parts(us)
    return (moment.strftime("%Y/%m/%d %H:%M:%S") + f" [error] 31#31: *{index} connect() failed (111: Connection refused) while connecting "
            f'to upstream, client: 10.0.0.1, server: _, request: "GET / HTTP/1.1", upstream: "http://{entity}/", host: "example.com"')


def access(us, entity, outcome, index):
    moment, _ = parts(us)
    stamp = f"{moment.day:02d}/{MONTHS[moment.month - 1]}/{moment.year}:{moment:%H:%M:%S} +0000"
    return f'{entity} - - [{stamp}] "GET /a HTTP/1.1" {STATUS[outcome]} 12 "-" "curl/8 \\"x\\""'


def haproxy(us, entity, outcome, index):
    moment, ms = parts(us)
    state = {"ok": "----", "user_fail": "----", "platform_fail": "SC--", "client_abort": "CD--"}[outcome]
    syslog = f"{MONTHS[moment.month - 1]} {moment.day:2d} {moment:%H:%M:%S}"
    stamp = f"{moment.day:02d}/{MONTHS[moment.month - 1]}/{moment.year}:{moment:%H:%M:%S}.{ms}"
    status = -1 if outcome == "client_abort" else STATUS[outcome]
    return (f"{syslog} lb haproxy[77]: 10.0.0.1:{index % 60000} [{stamp}] front {entity}/srv1 0/0/1/2/3 {status} 212 - - {state} "
            '1/1/0/0/0 0/0 "GET / HTTP/1.1"')


def envoy(us, entity, outcome, index):
    flags = {"ok": "-", "user_fail": "-", "platform_fail": "UF,URX", "client_abort": "DC"}[outcome]
    status = 0 if outcome == "client_abort" else STATUS[outcome]
    return f'[{iso(us, 3)}] "GET /a HTTP/1.1" {status} {flags} 0 5 10 9 "-" "curl" "id-{index}" "{entity}" "10.0.0.2:80"'


def jupyterhub(us, entity, outcome, index):
    moment, ms = parts(us)
    return f"[I {moment:%Y-%m-%d %H:%M:%S}.{ms} JupyterHub log:192] {STATUS[outcome]} GET /user/{entity}/api (x@::1) 1.5ms"


def jupyterhub_proxy(us, entity, outcome, index):
    moment, ms = parts(us)
    rest = "connect ECONNREFUSED 10.0.0.1:8888" if outcome == "platform_fail" else ""
    return f"{moment:%H:%M:%S}.{ms} [ConfigProxy] error: {STATUS[outcome]} GET /user/{entity}/api {rest}".rstrip()


def compose(us, entity, outcome, index):
    return "gateway-1  | " + compact({"time": iso(us), "repl": entity, "outcome": outcome, "reason": REASONS[outcome]})


def pattern(us, entity, outcome, index):
    return f"{us} <{entity}> {outcome}!"


class Form:
    """A format: how a line is written, and what of the events such lines can tell."""

    def __init__(self, line_of, named, *arguments, is_seconds=False, is_failures=False, is_dateless=False):
        self.line_of, self.named, self.arguments = line_of, named, list(arguments)
        self.is_seconds, self.is_failures, self.is_dateless = is_seconds, is_failures, is_dateless

    def events(self, events):
        if self.is_seconds:
            events = [(time // 1_000_000 * 1_000_000, entity, outcome) for time, entity, outcome in events]
        if self.is_failures:
            events = [event for event in events if event[2] == "platform_fail"]
        return events

    def key(self):
        return self.is_seconds, self.is_failures


FORMATS = {
    "conman": Form(conman, "conman"),
    "ndjson": Form(ndjson, "ndjson", "--entity", "user.id"),
    "tracing": Form(tracing, "tracing"),
    "gcloud": Form(gcloud_lines, "gcloud"),
    "loki": Form(logcli, "loki"),
    "journal": Form(journal, "journal"),
    "docker": Form(docker, "docker"),
    "logfmt": Form(logfmt, "logfmt"),
    "nginx-error": Form(nginx_error, "nginx-error", is_seconds=True, is_failures=True),
    "access": Form(access, "access", is_seconds=True),
    "haproxy": Form(haproxy, "haproxy"),
    "envoy": Form(envoy, "envoy"),
    "jupyterhub": Form(jupyterhub, "jupyterhub"),
    # Stamps without a date can be completed only where the lines keep their order.
    "jupyterhub-proxy": Form(jupyterhub_proxy, "jupyterhub", "--date", "2024-03-01", is_dateless=True),
    "compose": Form(compose, None),
    "pattern": Form(pattern, None, "--pattern", r"^(?<time>\d+) <(?<entity>[^>]+)> (?<outcome>\w+)!$"),
}


# ------------------------------------------------------------------ the second implementation

EPISODES = """
WITH attempts AS (
    SELECT *, outcome = 'platform_fail' AS failed FROM events WHERE outcome <> 'client_abort'
), newest AS (
    SELECT max(time) AS time FROM attempts
), marked AS (
    -- A run begins at a failure that follows no attempt, a success, or a silence longer than the gap.
    SELECT *,
        lag(failed) OVER entity AS was_failed,
        lag(time) OVER entity AS was_at,
        lead(time) OVER entity AS next_at,
        lead(failed) OVER entity AS next_failed
    FROM attempts WINDOW entity AS (PARTITION BY entity ORDER BY time, file, line)
), numbered AS (
    SELECT *,
        sum(CASE WHEN was_failed AND time - was_at <= {gap} THEN 0 ELSE 1 END)
            OVER (PARTITION BY entity ORDER BY time, file, line) AS island
    FROM marked WHERE failed
), runs AS (
    SELECT entity, island, min(time) AS start, max(time) AS last_failure, count(*) AS attempts,
        arg_min(file, (time, file, line)) AS file, arg_min(line, (time, file, line)) AS line,
        arg_max(next_at, (time, file, line)) AS after_at, arg_max(next_failed, (time, file, line)) AS after_failed
    FROM numbered GROUP BY entity, island
), ended AS (
    SELECT runs.*,
        CASE WHEN after_at IS NOT NULL AND NOT after_failed AND after_at - last_failure <= {gap} THEN 'recovered'
             WHEN newest.time - last_failure <= {gap} THEN 'open' ELSE 'abandoned' END AS ending
    FROM runs, newest
)
SELECT entity, start, last_failure, CASE WHEN ending = 'recovered' THEN after_at END AS recovered_at,
    CASE WHEN ending = 'recovered' THEN after_at - start ELSE last_failure - start END AS stuck,
    attempts, ending, file, line
FROM ended ORDER BY start, entity, file, line
"""


def oracle(rows, gap_s):
    """Episodes and blips of rows (time, entity, outcome, file, line)."""
    connection = duckdb.connect()
    connection.execute("SET threads = 2")
    with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        for time, entity, outcome, name, line in rows:
            file.write(f"{time},{entity},{outcome},{name},{line}\n")
        file.flush()
        connection.execute(
            "CREATE TABLE events AS SELECT * FROM read_csv(?, header=false, columns={'time':'BIGINT','entity':'VARCHAR',"
            "'outcome':'VARCHAR','file':'INTEGER','line':'BIGINT'})", [file.name])
    runs = connection.execute(EPISODES.format(gap=int(gap_s * 1_000_000))).fetchall()
    attempts, failed, entities, first, last = connection.execute(
        "SELECT count(*), count(*) FILTER (outcome = 'platform_fail'), count(DISTINCT entity), min(time), max(time) "
        "FROM events WHERE outcome <> 'client_abort'").fetchone()
    neutral = connection.execute("SELECT count(*) FROM events WHERE outcome = 'client_abort'").fetchone()[0]
    return {
        "episodes": [run for run in runs if run[5] >= 2],
        "blips": sum(1 for run in runs if run[5] == 1),
        "attempts": attempts, "failed_attempts": failed, "entities": entities, "neutral": neutral,
        "first": first, "last": last,
    }


def microseconds(text):
    moment = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    return round(moment.timestamp()) * 1_000_000 if moment.microsecond == 0 else (
        int(moment.replace(microsecond=0).timestamp()) * 1_000_000 + moment.microsecond)


def truths(rows):
    """What is true of rows under the gap, half of it and twice it."""
    return [oracle(rows, gap_s) for gap_s in (GAP_S, GAP_S / 2, GAP_S * 2)]


def compare(name, command, paths, truth, named=None, stdin=None):
    truth, half, double = truth
    with tempfile.TemporaryDirectory() as folder:
        found_path = os.path.join(folder, "episodes.ndjson")
        arguments = command + ["--json", "--all-episodes", found_path, "--gap", f"{GAP_S}s"] + paths
        with open(stdin, "rb") if stdin else open(os.devnull, "rb") as source:
            run = subprocess.run(arguments, stdin=source, capture_output=True, text=True)
        if run.returncode != 0:
            sys.exit(f"{name}: exit code {run.returncode}\n{run.stderr}")
        report = json.loads(run.stdout)
        names = {path: index for index, path in enumerate(paths)}
        names["-"] = 0
        found = []
        for line in open(found_path, encoding="utf-8"):
            episode = json.loads(line)
            recovered = episode["recovered_at"]
            found.append((episode["entity"], microseconds(episode["start"]), microseconds(episode["last_failure"]),
                          microseconds(recovered) if recovered else None, round(episode["stuck_seconds"] * 1e6),
                          episode["attempts"], episode["end"], names[episode["file"]], episode["line"]))
    found.sort(key=lambda episode: (episode[1], episode[0], episode[7], episode[8]))
    formats = {entry["format"].split(" > ")[0] for entry in report["inputs"]}
    if named and formats != {named}:
        sys.exit(f"{name}: taken for {formats}")
    if found != truth["episodes"]:
        mine, theirs = set(found), set(truth["episodes"])
        sys.exit(f"{name}: episodes differ\n only the report: {sorted(mine - theirs)[:3]}\n only the oracle: {sorted(theirs - mine)[:3]}")
    for key in ("attempts", "failed_attempts", "entities", "neutral", "blips"):
        if report[key] != truth[key]:
            sys.exit(f"{name}: {key} is {report[key]}, the oracle says {truth[key]}")
    for key, other in (("half", half), ("double", double)):
        if report["gaps"][key]["episodes"] != len(other["episodes"]) or report["gaps"][key]["blips"] != other["blips"]:
            sys.exit(f"{name}: the totals under {key} the gap differ")
    if (microseconds(report["first_time"]), microseconds(report["last_time"])) != (truth["first"], truth["last"]):
        sys.exit(f"{name}: first or last time differ")
    check_sums(name, report, truth["episodes"])
    endings = {end: report[end] for end in ("recovered", "abandoned", "open")}
    tell(f"{name}: {report['lines']} lines, {len(found)} episodes {endings}, {report['passes']}")
    return report


def check_sums(name, report, episodes):
    stuck = [episode[4] / 1e6 for episode in episodes]
    bounds = [bucket["le"] for bucket in report["buckets"]]
    counts = [0] * len(bounds)
    for seconds in stuck:
        counts[next(index for index, bound in enumerate(bounds) if bound is None or seconds <= bound)] += 1
    if counts != [bucket["count"] for bucket in report["buckets"]]:
        sys.exit(f"{name}: buckets differ")
    classes = {"A": sum(s < 120 for s in stuck), "B": sum(s >= 3600 for s in stuck)}
    classes["middle"] = len(stuck) - classes["A"] - classes["B"]
    if classes != report["classes"]:
        sys.exit(f"{name}: classes differ")
    if abs(sum(stuck) - report["stuck_seconds_total"]) > 1e-3 * max(1, len(stuck)):
        sys.exit(f"{name}: total time stuck differs")
    ordered = sorted(stuck)
    for percent in (50, 90, 95, 99):
        if ordered:
            exact = ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
            if abs(exact - report["percentiles"][f"p{percent}"]) > 1e-6:
                sys.exit(f"{name}: p{percent} differs")
    worst = [episode["stuck_seconds"] for episode in report["worst"]]
    if worst != sorted(stuck, reverse=True)[:10]:
        sys.exit(f"{name}: the worst differ")


# ------------------------------------------------------------------ cases

IS_QUIET = False
CASES = 0


def tell(text):
    global CASES
    CASES += 1
    if not IS_QUIET:
        print(text, flush=True)


def write_lines(path, lines, crlf=False, half=False):
    end = "\r\n" if crlf else "\n"
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(end.join(lines) + ("" if half else end))


class Kinds:
    """The kinds of input, each as the indices of the events in each of its files, and what is true of them."""

    def __init__(self, events, seed):
        rng = random.Random(seed)
        self.events = events
        count = len(events)
        order = list(range(count))
        third = count // 3
        machines = ([], [])
        for index in order:
            machines[rng.randrange(2)].append(index)
        self.files = {
            "in order": [order],
            "20 s late, CRLF": [self.moved(rng, 20)],
            "a day out of order": [self.moved(rng, 90_000)],
            "newest first, gzip": [order[::-1]],
            # Rotated: the newest first on the command line.
            "three files": [order[2 * third:], order[third:2 * third], order[:third]],
            # Each in order, line by line from either.
            "two machines": list(machines),
        }
        self.known = {}

    def moved(self, rng, reach_s):
        """Moves events by up to so many seconds; ties keep no order."""
        keys = [event[0] + rng.randrange(-reach_s, reach_s + 1) * 1_000_000 for event in self.events]
        return sorted(range(len(keys)), key=keys.__getitem__)

    def truth(self, kind):
        if kind not in self.known:
            self.known[kind] = truths([
                (*self.events[index], file, line + 1)
                for file, indices in enumerate(self.files[kind])
                for line, index in enumerate(indices)
            ])
        return self.known[kind]


def main():
    global IS_QUIET
    parser = argparse.ArgumentParser()
    parser.add_argument("report")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args()
    IS_QUIET = options.quiet
    command = shlex.split(options.report)
    folder = tempfile.mkdtemp(prefix="stuck-differential-")
    try:
        cases(options, command, folder)
    finally:
        shutil.rmtree(folder)
    print(f"stuck report and DuckDB agree on {CASES} inputs of {options.events} events each, in {options.formats}")


def cases(options, command, folder):
    # Dense enough for ties and long runs, wide enough for many entities and gaps.
    all_events = make_events(options.events, options.seed, max(20, options.events // 50), 6 * 86_400)
    kinds_by_key = {}
    for name in options.formats.split(","):
        form = FORMATS[name]
        if form.key() not in kinds_by_key:
            kinds_by_key[form.key()] = Kinds(form.events(all_events), options.seed)
        cases_of(name, form, kinds_by_key[form.key()], command, folder)
        for left in os.listdir(folder):
            os.unlink(os.path.join(folder, left))
    few = all_events[: options.events // 4]
    if "gcloud" in options.formats:
        gcloud_array(few, command, os.path.join(folder, "array.json"))
    if "loki" in options.formats:
        loki_answer(few, command, os.path.join(folder, "loki.json"))


def cases_of(name, form, kinds, command, folder):
    lines = [form.line_of(*event, index) for index, event in enumerate(kinds.events)]

    def check(kind, told, paths, stdin=None, extra=()):
        arguments = command + form.arguments + list(extra)
        compare(f"{name}, {told}", arguments, paths, kinds.truth(kind), form.named, stdin)

    def write(kind, suffixes, **how):
        paths = [os.path.join(folder, name + suffix) for suffix in suffixes]
        for path, indices in zip(paths, kinds.files[kind], strict=True):
            write_lines(path, [lines[index] for index in indices], **how)
        return paths

    ordered = write("in order", [".log"])
    check("in order", "in order", ordered)
    # Recognised above, named here.
    extra = ["--format", form.named] if form.named else []
    check("in order", "standard input", [], stdin=ordered[0], extra=extra)
    check("20 s late, CRLF", "20 s late, CRLF", write("20 s late, CRLF", [".late"], crlf=True))
    if form.is_dateless:
        return
    mixed = write("a day out of order", [".mixed"], half=True)
    check("a day out of order", "a day out of order", mixed)
    check("a day out of order", "the same by standard input", [], stdin=mixed[0])
    backwards = os.path.join(folder, f"{name}.gz")
    with gzip.open(backwards, "wt", compresslevel=1) as file:
        file.write("\n".join(lines[::-1]) + "\n")
    check("newest first, gzip", "newest first, gzip", [backwards])
    paths = write("three files", [".0", ".1", ".2"])
    subprocess.run(["zstd", "-q", "--rm", "-1", paths[1]], check=True)
    paths[1] += ".zst"
    check("three files", "three files, one by zstd", paths)
    check("two machines", "two machines", write("two machines", [".m0", ".m1"]))


def gcloud_array(events, command, path):
    backwards = events[::-1]
    text = json.dumps([gcloud(*event, index) for index, event in enumerate(backwards)], indent=2)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    # Each object begins on its own line, after a bracket and those before it.
    height = text[: text.index("\n  },") + 1].count("\n")
    rows = [(*event, 0, 2 + index * height) for index, event in enumerate(backwards)]
    compare("gcloud, an array, newest first", command, [path], truths(rows), "gcloud")


def loki_answer(events, command, path):
    """An answer of the API, newest first in each of three streams, all on one line: ties have no order that
    lines could tell, so that of each time only one event is taken."""
    taken = {time: (time, entity, outcome) for time, entity, outcome in events}
    streams = [{"stream": {"app": "gw", "n": str(n)}, "values": []} for n in range(3)]
    for index, (time, entity, outcome) in enumerate(list(taken.values())[::-1]):
        streams[index % 3]["values"].append([str(time * 1000), f"repl={entity} outcome={outcome} n={index}"])
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"status": "success", "data": {"resultType": "streams", "result": streams}}, file)
    rows = [(*event, 0, 1) for event in taken.values()]
    compare("loki, an answer of the API", command, [path], truths(rows), "loki")


if __name__ == "__main__":
    main()
