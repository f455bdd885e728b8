"""Dashboard and rules: they parse, they compute what they say, and they name only what is published."""

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.grafana.promql import used
from tests.support.tools import REPOSITORY, free_port, run, tool

from jouled.outputs.metrics.catalogue import CATALOGUE, Metric

GRAFANA = REPOSITORY / "grafana"
RULES = [GRAFANA / "rules/recording.yml", GRAFANA / "rules/alerts.yml"]
SCRAPE_LABELS = {"job", "instance"}
COMPARES_THE_TWO_CLOCKS = "instance_engine:jouled_event_coverage:ratio_rate30m"


@dataclass(frozen=True)
class Expression:
    """One PromQL expression and where it stands."""

    place: str
    promql: str


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that has loaded the rules and scrapes nothing; its address."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = folder / "prometheus.yml"
    config.write_text(json.dumps({"rule_files": [str(path) for path in RULES]}))
    address = f"127.0.0.1:{free_port()}"
    command = [tool("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    with subprocess.Popen(
        [*command, f"--web.listen-address={address}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        log = []
        for line in process.stderr:
            log.append(line)
            if "Server is ready to receive web requests" in line:
                break
        assert process.poll() is None, "".join(log)
        yield f"http://{address}"
        process.terminate()
        process.stderr.read()


def ask(address: str, path: str, **query: str) -> Any:
    url = f"{address}{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]


@pytest.fixture(scope="module")
def rules(prometheus: str) -> list[dict[str, Any]]:
    return [rule for group in ask(prometheus, "/api/v1/rules")["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def recorded(rules: list[dict[str, Any]]) -> dict[str, str]:
    return {rule["name"]: rule["query"] for rule in rules if rule["type"] == "recording"}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    [path] = (GRAFANA / "dashboards").glob("*.json")
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def panel_expressions(dashboard: dict[str, Any]) -> list[Expression]:
    return [
        Expression(panel["title"], with_values(target["expr"]))
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]


def with_values(promql: str) -> str:
    """As Grafana sends it."""
    return re.sub(r"\$\w+", ".*", promql.replace("$__rate_interval", "1m").replace("$__range", "1h"))


@pytest.fixture(scope="module")
def expressions(rules: list[dict[str, Any]], dashboard: dict[str, Any]) -> list[Expression]:
    return [*(Expression(rule["name"], rule["query"]) for rule in rules), *panel_expressions(dashboard)]


def published() -> dict[str, tuple[Metric, set[str]]]:
    """Series name -> its metric and its labels, as they stand on the page."""
    series = {}
    for metric in CATALOGUE.values():
        labels = {*metric.labels, *SCRAPE_LABELS}
        if metric.type == "histogram":
            for suffix, more in (("_bucket", {"le"}), ("_sum", set()), ("_count", set())):
                series[metric.full_name + suffix] = (metric, labels | more)
        else:
            series[metric.full_name] = (metric, labels | ({metric.full_name} if metric.type == "stateset" else set()))
    return series


SERIES = published()


def test_promtool_accepts_the_rules_and_the_scrape_configuration() -> None:
    checked = run([tool("promtool"), "check", "config", GRAFANA / "prometheus.yml"])
    assert checked.returncode == 0, checked.stdout
    assert "FAILED" not in checked.stdout


def test_the_rules_compute_what_they_say() -> None:
    tested = run([tool("promtool"), "test", "rules", GRAFANA / "rules/tests.yml"])
    assert tested.returncode == 0, tested.stdout


def test_every_rule_is_tested_or_part_of_one_that_is(rules: list[dict[str, Any]]) -> None:
    tests = (GRAFANA / "rules/tests.yml").read_text()
    parts = {name for rule in rules for name in used(rule["query"]).selectors}
    assert [rule["name"] for rule in rules if rule["name"] not in tests and rule["name"] not in parts] == []


def test_every_expression_parses(prometheus: str, expressions: list[Expression]) -> None:
    assert len(expressions) > 60
    for expression in expressions:
        ask(prometheus, "/api/v1/format_query", query=expression.promql)


def test_expressions_name_only_published_series(expressions: list[Expression], recorded: dict[str, str]) -> None:
    for expression in expressions:
        for name, labels in used(expression.promql).selectors.items():
            if name in recorded or name == "up":
                continue
            assert name in SERIES, f"{expression.place}: {name} is not in the catalogue"
            assert labels <= SERIES[name][1], f"{expression.place}: {name} has no {labels - SERIES[name][1]}"


def test_expressions_group_by_labels_that_their_series_have(
    expressions: list[Expression], recorded: dict[str, str]
) -> None:
    for expression in expressions:
        known = labels_in(expression.promql, recorded)
        unknown = used(expression.promql).grouping - known
        assert not unknown, f"{expression.place}: no series here has {unknown}"


def labels_in(promql: str, recorded: dict[str, str]) -> set[str]:
    """Labels that series of this expression can have, those of recorded ones followed to their source."""
    labels = set(SCRAPE_LABELS)
    for name in used(promql).selectors:
        labels |= (
            labels_in(recorded[name], recorded) if name in recorded else SERIES[name][1] if name in SERIES else set()
        )
    return labels


def clocks_in(promql: str, recorded: dict[str, str]) -> set[str]:
    clocks: set[str] = set()
    for name in used(promql).selectors:
        if name in recorded:
            clocks |= clocks_in(recorded[name], recorded)
        elif name in SERIES:
            clocks.add(SERIES[name][0].clock)
    return clocks


def test_live_and_book_series_are_never_divided_by_each_other(
    expressions: list[Expression], recorded: dict[str, str]
) -> None:
    mixed = {
        expression.place
        for expression in expressions
        if " / " in expression.promql and {"live", "book"} <= clocks_in(expression.promql, recorded)
    }
    assert mixed == {COMPARES_THE_TWO_CLOCKS, "Event coverage"}


def test_every_alert_says_what_to_do(rules: list[dict[str, Any]]) -> None:
    headings = {
        "#" + re.sub(r"[^\w-]", "", line.lstrip("#").strip().lower().replace(" ", "-"))
        for line in (REPOSITORY / "docs/operations.md").read_text().splitlines()
        if line.startswith("#")
    }
    alerts = [rule for rule in rules if rule["type"] == "alerting"]
    assert alerts
    for alert in alerts:
        page, anchor = re.fullmatch(r"([^#]+)(#.+)", alert["annotations"]["runbook"]).groups()
        assert (REPOSITORY / page).name == "operations.md"
        assert anchor == f"#{alert['name'].lower()}"
        assert anchor in headings
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}


def test_panels_have_places_of_their_own(dashboard: dict[str, Any]) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for cell in (
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ):
            assert cell not in taken, f"{panel['title']} lies on {taken.get(cell)}"
            taken[cell] = panel["title"]
    identifiers = [panel["id"] for panel in dashboard["panels"]]
    assert len(identifiers) == len(set(identifiers))


def test_the_dashboard_works_with_any_data_source(dashboard: dict[str, Any]) -> None:
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    sources = [
        holder["datasource"]
        for panel in dashboard["panels"]
        for holder in (panel, *panel.get("targets", ()))
        if "datasource" in holder
    ]
    assert sources
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    for expression in (target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])):
        assert set(re.findall(r"\$(\w+)", expression)) - {"__rate_interval", "__range"} <= names
