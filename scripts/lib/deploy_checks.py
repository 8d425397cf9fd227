"""What no tool knows about the files below deploy/: run by scripts/check-deploy.

usage: deploy_checks.py KUSTOMIZED... -- RULES

KUSTOMIZED are the manifests that kustomize built. RULES is written: a rule file with every expression of the
dashboards, for promtool to parse. Prints each complaint on a line; the exit code is 1 when there is any.
"""

import json
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
OPERATIONS = ROOT / "docs" / "OPERATIONS.md"
METRICS = json.loads((DEPLOY / "prometheus" / "metrics.json").read_text())

# What Prometheus adds by itself, or what our own rules record.
OTHER_METRICS = {"up", "user_activity:partitions"}
TARGET_LABELS = {"job", "instance", "pod", "node", "le"}
WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "offset", "bool"}
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

complaints = []


def complain(where, what):
    complaints.append(f"{where}: {what}")


def seconds(duration):
    number, unit = re.fullmatch(r"(\d+)(ms|[smhd])", duration).groups()
    return int(number) / 1000 if unit == "ms" else int(number) * SECONDS[unit]


def expression_names(expression):
    """The metrics and the labels that a PromQL expression names."""
    text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    labels = set()
    for matchers in re.findall(r"{([^}]*)}", text):
        labels.update(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
    text = re.sub(r"{[^}]*}|\[[^\]]*\]", "", text)
    grouping = r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)"
    for names in re.findall(grouping, text):
        labels.update(re.findall(r"\w+", names))
    text = re.sub(grouping, "", text)
    # No call, no number, no duration such as that of offset.
    metrics = set(re.findall(r"(?<![\w.])([a-zA-Z_][\w:]*)\b(?!\s*\()", text)) - WORDS
    return metrics, labels


def known_labels(metric):
    """The labels of a metric, or None when nothing exports it."""
    if metric in OTHER_METRICS:
        return set()
    if metric in METRICS and METRICS[metric]["type"] != "histogram":
        return set(METRICS[metric]["labels"])
    base = re.sub(r"_(bucket|sum|count)$", "", metric)
    if base != metric and METRICS.get(base, {}).get("type") == "histogram":
        return set(METRICS[base]["labels"])
    return None


def check_expression(where, expression):
    metrics, labels = expression_names(expression)
    if not metrics:
        complain(where, "names no metric")
    known = set(TARGET_LABELS)
    for metric in sorted(metrics):
        found = known_labels(metric)
        if found is None:
            complain(where, f"nothing exports {metric}")
        known |= found or set()
    for label in sorted(labels - known):
        complain(where, f"none of its metrics has the label {label}")


# Alerts -------------------------------------------------------------------------------------------------------------


def anchors():
    """The anchors that headings get on the page."""
    headings = re.findall(r"^#+ (.+)$", OPERATIONS.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def check_alerts():
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    tests = yaml.safe_load((DEPLOY / "prometheus" / "tests.yml").read_text())["tests"]
    fires, silent, pages = set(), set(), anchors()
    for case in (case for test in tests for case in test["alert_rule_test"]):
        (fires if case["exp_alerts"] else silent).add(case["alertname"])
    names = set()
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        name = rule.get("alert") or rule["record"]
        if "alert" not in rule:
            if name not in OTHER_METRICS:
                complain(name, "is recorded, but OTHER_METRICS does not have it")
            continue
        names.add(name)
        check_expression(name, rule["expr"])
        if rule.get("labels", {}).get("severity") not in ("page", "ticket"):
            complain(name, "its severity must be page or ticket")
        for annotation in ("summary", "description", "runbook_url"):
            if not rule.get("annotations", {}).get(annotation):
                complain(name, f"has no {annotation}")
        page, _, anchor = rule["annotations"].get("runbook_url", "").partition("#")
        if page != "docs/OPERATIONS.md" or anchor not in pages:
            complain(name, f"its runbook {page}#{anchor} is not in docs/OPERATIONS.md")
        if name not in fires:
            complain(name, "no test makes it fire")
        if name not in silent:
            complain(name, "no test leaves it silent")
    for name in sorted((fires | silent) - names):
        complain("tests.yml", f"there is no alert {name}")
    return rules


# Dashboards ---------------------------------------------------------------------------------------------------------


def dashboard_expressions(dashboard):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']!r}", target["expr"]
    for annotation in dashboard.get("annotations", {}).get("list", []):
        if "expr" in annotation:
            yield f"annotation {annotation['name']!r}", annotation["expr"]
    for variable in dashboard["templating"]["list"]:
        yield f"variable {variable['name']!r}", re.sub(r"label_values\((.*), \w+\)", r"\1", variable["definition"])


def check_dashboards():
    """Checks them, and gives their expressions with Grafana's variables put in."""
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    uids, rules = {source["uid"] for source in sources}, []
    yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/user-activity.yml").read_text())
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text())
        ids = [panel["id"] for panel in dashboard["panels"]]
        if len(ids) != len(set(ids)):
            complain(path.name, "two panels have one id")
        for panel in dashboard["panels"]:
            used = [panel.get("datasource")] + [target["datasource"] for target in panel.get("targets", [])]
            for source in filter(None, used):
                if source["uid"] not in uids:
                    complain(path.name, f"panel {panel['title']!r} asks {source['uid']}, which is not provisioned")
        for where, expression in dashboard_expressions(dashboard):
            plain = expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
            if "$" in plain:
                complain(path.name, f"{where} has a variable that is not known here: {expression}")
            check_expression(f"{path.name}, {where}", plain)
            rules.append({"record": f"dashboard:expression:{len(rules)}", "expr": plain})
    return {"groups": [{"name": "dashboards", "rules": rules}]}


# Kubernetes ---------------------------------------------------------------------------------------------------------


def settings_read():
    """The environment variables that the programs read."""
    sources = (path for crate in ("common", "api", "worker") for path in (ROOT / crate / "src").rglob("*.rs"))
    return {name for path in sources for name in re.findall(r'env = "([A-Z_0-9]+)"', path.read_text())}


def check_pod(where, pod):
    """What holds for every pod of ours."""
    security, (container,) = pod.get("securityContext", {}), pod["containers"]
    if security.get("runAsNonRoot") is not True or security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        complain(where, "needs runAsNonRoot: true and the seccomp profile RuntimeDefault")
    security = container.get("securityContext", {})
    if security.get("readOnlyRootFilesystem") is not True or security.get("allowPrivilegeEscalation") is not False:
        complain(where, "needs readOnlyRootFilesystem: true and allowPrivilegeEscalation: false")
    if security.get("capabilities", {}).get("drop") != ["ALL"]:
        complain(where, "must drop all capabilities")
    resources = container.get("resources", {})
    if not {"cpu", "memory"} <= set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
        complain(where, "must request cpu and memory, and limit memory")
    if not container["image"].partition(":")[2]:
        complain(where, "its image has no tag")
    # An optional one may be that of another version.
    optional = lambda entry: entry.get("valueFrom", {}).get("secretKeyRef", {}).get("optional", False)  # noqa: E731
    check_settings(where, [entry["name"] for entry in container["env"] if not optional(entry)])
    for entry in container["env"]:
        if entry["name"] in ("REDIS_URL", "KAFKA_SASL_PASSWORD") and "secretKeyRef" not in entry.get("valueFrom", {}):
            complain(where, f"{entry['name']} must come from a Secret")


def check_settings(where, names):
    for name in sorted(set(names) - settings_read()):
        complain(where, f"neither program reads {name}")


def check_deployment(where, deployment, settings, budgets):
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    check_pod(where, pod)
    for probe, path in (("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        if container.get(probe, {}).get("httpGet", {}).get("path") != path:
            complain(where, f"its {probe} must ask {path}")
    pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if pod["terminationGracePeriodSeconds"] <= pause + seconds(settings["SHUTDOWN_TIMEOUT"]):
        complain(where, "terminationGracePeriodSeconds must be above SHUTDOWN_TIMEOUT and what is before it")
    if not pod.get("topologySpreadConstraints"):
        complain(where, "is not spread over nodes")
    if deployment["spec"]["selector"] not in budgets:
        complain(where, "has no PodDisruptionBudget")


def check_manifests(path, partitions):
    objects = [found for found in yaml.safe_load_all(path.read_text()) if found]
    of_kind = lambda kind: [found for found in objects if found["kind"] == kind]  # noqa: E731
    for pod in of_kind("Pod"):
        check_pod(f"{path.name}, {pod['metadata']['name']}", pod["spec"])
    for config in of_kind("ConfigMap"):
        check_settings(f"{path.name}, ConfigMap", config["data"])
        if int(config["data"]["KAFKA_TOPIC_PARTITIONS"]) != partitions:
            complain(path.name, "KAFKA_TOPIC_PARTITIONS is not what the rule user_activity:partitions says")
    settings = {name: value for config in of_kind("ConfigMap") for name, value in config["data"].items()}
    budgets = [budget["spec"]["selector"] for budget in of_kind("PodDisruptionBudget")]
    for deployment in of_kind("Deployment"):
        check_deployment(f"{path.name}, {deployment['metadata']['name']}", deployment, settings, budgets)
    for scaled in of_kind("ScaledObject"):
        if scaled["spec"]["maxReplicaCount"] != partitions:
            complain(path.name, "maxReplicaCount is not the number of partitions")
        for trigger in scaled["spec"]["triggers"]:
            # Others, such as metrics-api, ask no broker.
            if trigger["type"] == "kafka" and trigger["metadata"]["bootstrapServers"] != settings["KAFKA_BROKERS"]:
                complain(path.name, "KEDA asks other brokers than KAFKA_BROKERS")


def main():
    manifests, (rules,) = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
    alerts = check_alerts()
    recorded = {rule.get("record"): rule["expr"] for group in alerts["groups"] for rule in group["rules"]}
    partitions = int(re.fullmatch(r"vector\((\d+)\)", recorded["user_activity:partitions"]).group(1))
    Path(rules).write_text(yaml.safe_dump(check_dashboards()))
    for path in manifests:
        check_manifests(Path(path), partitions)
    print("\n".join(complaints), end="\n" if complaints else "")
    return 1 if complaints else 0


sys.exit(main())
