"""Debian's Prometheus and Alertmanager with this project's rules, on free ports and a directory of their own; used by
scripts/test-observing and scripts/drill-stuck. Needs no root, where they are installed."""

import http.server
import json
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
OBSERVING = ROOT / "packaging" / "observing"
PATIENCE_SECONDS = 60
# The panels of the dashboard that are about a fleet and its prober.
FLEET_PANELS = ("Probes", "Probes, time out of reach: more than 5 s", "Probes, time out of reach: up to 5 s", "Drains by phase",
                "Containers' ends by phase", "Lease margin", "Stuck operations")


def free_port():
    """A free port outside the range that the kernel gives to outgoing connections."""
    while True:
        with socket.socket() as held:
            try:
                held.bind(("127.0.0.1", random.randrange(20000, 32000)))
                return held.getsockname()[1]
            except OSError:
                pass


def until(what, ask, seconds=PATIENCE_SECONDS):
    """Asks again until there is an answer: it is another process's state, which has no event."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            answer = ask()
        except OSError:
            answer = None
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {seconds} s: {what}")
        time.sleep(0.1)


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


class Receiver:
    """Takes what Alertmanager sends: the names of alerts by the state that they were last told in."""

    def __init__(self):
        told = self.told = {}

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                for alert in body["alerts"]:
                    told.setdefault(alert["labels"]["alertname"], []).append(alert["status"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Server:
    """One of the two, ended at the end."""

    def __init__(self, log, *command):
        self.log = open(log, "wb")
        self.child = subprocess.Popen([*map(str, command)], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.log.close()


class Alertmanager(Server):
    """With the project's example, whose waits are short here and whose receiver is ours."""

    def __init__(self, directory, receiver):
        text = (OBSERVING / "alertmanager.yml").read_text()
        text = text.replace("http://127.0.0.1:9999", receiver.url)
        text = re.sub(r"group_(wait|interval): \w+", r"group_\1: 1s", text)
        config = directory / "alertmanager.yml"
        config.write_text(text)
        self.address = f"127.0.0.1:{free_port()}"
        super().__init__(
            directory / "alertmanager.log",
            shutil.which("prometheus-alertmanager") or "alertmanager",
            f"--config.file={config}",
            f"--storage.path={directory / 'alertmanager'}",
            f"--web.listen-address={self.address}",
            "--cluster.listen-address=",
        )
        until("Alertmanager is ready", lambda: get(f"http://{self.address}/-/ready"))


class Prometheus(Server):
    """Scrapes one page every second and evaluates the project's rules as often."""

    def __init__(self, directory, target, alertmanager=None):
        config = directory / "prometheus.yml"
        alerting = ""
        if alertmanager:
            alerting = f"alerting: {{alertmanagers: [{{static_configs: [{{targets: ['{alertmanager.address}']}}]}}]}}\n"
        config.write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            f"rule_files: ['{OBSERVING / 'conman.rules.yml'}']\n{alerting}"
            f"scrape_configs: [{{job_name: conman, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        self.address = f"127.0.0.1:{free_port()}"
        super().__init__(
            directory / "prometheus.log",
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={directory / 'prometheus'}",
            f"--web.listen-address={self.address}",
            "--log.level=warn",
        )
        until("Prometheus is ready", lambda: get(f"http://{self.address}/-/ready"))

    def query(self, expression):
        """The answer now: pairs of labels and value."""
        url = f"http://{self.address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        answer = json.loads(get(url))
        assert answer["status"] == "success", answer
        return [(sample["metric"], float(sample["value"][1])) for sample in answer["data"]["result"]]

    def number(self, expression):
        """The one number that the answer is; None if there is none."""
        answer = self.query(expression)
        assert len(answer) <= 1, answer
        return answer[0][1] if answer else None


def panels(interval):
    """Every query of the dashboard with the title of its panel."""
    dashboard = json.loads((OBSERVING / "conman.dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", interval)


def check_files():
    """The rules and the examples, as the tools that read them see them."""
    for command in (
        ["promtool", "check", "rules", "conman.rules.yml"],
        ["promtool", "check", "config", "prometheus.yml"],
        ["promtool", "test", "rules", "conman.rules.test.yml"],
        ["amtool", "check-config", "alertmanager.yml"],
    ):
        done = subprocess.run(command, cwd=OBSERVING, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")


GRAFANA = pathlib.Path(__file__).resolve().parent / "grafana-schema"


def is_of_schema(dashboard):
    """What the schema that Grafana publishes says of a dashboard: whether it is one, and what is wrong with it."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(dashboard, file)
        file.flush()
        done = subprocess.run(["node", "check.mjs", file.name], cwd=GRAFANA, capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr


def check_dashboard():
    """The dashboard against Grafana's schema, and what this project asks of every panel."""
    if not (GRAFANA / "node_modules").is_dir():
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--silent"], cwd=GRAFANA, check=True)
    dashboard = json.loads((OBSERVING / "conman.dashboard.json").read_text())
    is_good, faults = is_of_schema(dashboard)
    if not is_good:
        raise SystemExit(f"the dashboard is not what Grafana's schema says:\n{faults}")
    for change in ({"graphTooltip": 3}, {"panels": [{**dashboard["panels"][0], "gridPos": {"x": "left"}}]}):
        assert not is_of_schema({**dashboard, **change})[0], f"the schema has nothing against {change}"
    assert 8 <= len(dashboard["uid"]) <= 40, "a uid has 8 to 40 letters"
    numbers, taken = set(), set()
    for panel in dashboard["panels"]:
        title = panel["title"]
        assert panel["id"] not in numbers, (title, "its id is another's")
        numbers.add(panel["id"])
        place = panel["gridPos"]
        assert place["h"] > 0 and 0 < place["w"] and 0 <= place["x"] and place["x"] + place["w"] <= 24, (title, place)
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, (title, "lies over another panel")
        taken |= cells
        assert panel["type"] in ("timeseries", "stat", "heatmap"), title
        assert panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"], title
        steps = panel["fieldConfig"]["defaults"].get("thresholds", {"steps": []})
        values = [step["value"] for step in steps["steps"]]
        assert not values or values[0] is None and values[1:] == sorted(values[1:]), (title, values)
        letters = [target["refId"] for target in panel["targets"]]
        assert letters and len(set(letters)) == len(letters), title


def check_page(page):
    """The page as promtool's linter sees it."""
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True)
    if done.returncode or done.stdout or done.stderr:
        raise SystemExit(f"promtool check metrics:\n{done.stdout}{done.stderr}")
