"""The dashboard asks for nothing that is not there, and leaves nothing out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
from prometheus_client.parser import text_string_to_metric_families

import server.metrics
from tests.harness import Service, refused
from tests.metrics.scrapes import appears, measured, scrape, tell_of_a_lease
from tests.operate.drive import METHODS
from tests.wire.test_deadlines import LIST

DASHBOARD = json.loads((Path(server.metrics.__file__).parent / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [
    pytest.param(target["expr"], target["legendFormat"], id=f"{panel['title']} {target['refId']}")
    for panel in PANELS
    for target in panel["targets"]
]
# What Prometheus itself adds to what it scrapes.
TARGET_LABELS = {"job", "instance"}

Series = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Series:
    """The labels of every sample of a real scrape, by the name of the sample."""
    with measured(tmp_path_factory.mktemp("served")) as service:
        text = after_some_work(service)
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def after_some_work(service: Service) -> str:
    tell_of_a_lease(service)
    service.operator.workspaces.ListWorkspaces(LIST)
    refused(service.client(None).workspaces.ListWorkspaces, LIST)
    service.app._housekeeper.run_once()
    appears(service.app.metrics_address, "chores_total", chore="rehash secrets")
    return scrape(service.app.metrics_address)


def parsed(expression: str) -> Any:
    """Return a query as Grafana sends it. Raises where Prometheus would refuse it."""
    return promql.parse(expression.replace("$__rate_interval", "1m").replace("$instance", ".*"))


def selectors(expression: Any) -> list[Any]:
    found: list[Any] = []
    promql.walk(expression, lambda node: found.append(node) if isinstance(node, promql.VectorSelector) else None)
    return found


def labels_of(node: Any, series: Series) -> set[str]:
    """Return the labels that the result of a query has, after making sure that those it names are there."""
    match node:
        case promql.MatrixSelector():
            return labels_of(node.vector_selector, series)
        case promql.VectorSelector():
            return {name for labels in series[str(node.name)] for name in labels} | TARGET_LABELS
        case promql.AggregateExpr():
            inner = labels_of(node.expr, series)
            kept = set(node.modifier.labels) if node.modifier else set()
            assert kept <= inner, f"{kept - inner} is not in {node.expr.prettify()}"
            return inner if node.param is not None else kept
        case promql.Call(func=function) if function.name == "label_replace":
            inner = labels_of(node.args[0], series)
            assert node.args[3].val in inner
            return inner | {node.args[1].val}
        case promql.Call(func=function) if function.name == "histogram_quantile":
            inner = labels_of(node.args[1], series)
            assert "le" in inner, "without it there are no buckets"
            return inner - {"le"}
        case promql.Call():
            return {name for argument in node.args for name in labels_of(argument, series)}
        case promql.BinaryExpr():
            left, right = labels_of(node.lhs, series), labels_of(node.rhs, series)
            matching = node.modifier.matching if node.modifier else None
            assert matching is None or set(matching.labels) <= left & right
            return right if "group_right" in node.prettify() else left | right
        case promql.ParenExpr():
            return labels_of(node.expr, series)
        case promql.NumberLiteral() | promql.StringLiteral():
            return set()
    raise NotImplementedError(type(node))


@pytest.mark.parametrize(("expression", "legend"), TARGETS)
def test_every_query_is_one_and_names_what_a_scrape_has(expression: str, legend: str, series: Series) -> None:
    tree = parsed(expression)
    for selector in selectors(tree):
        assert selector.name in series
        for matcher in selector.matchers.matchers:
            if matcher.name not in TARGET_LABELS:
                shown = {labels.get(matcher.name) for labels in series[selector.name]}
                assert shown != {None}, f"{selector.name} has no {matcher.name}"
                if matcher.op in (promql.MatchOp.Equal, promql.MatchOp.NotEqual) and matcher.name != "method":
                    assert matcher.value in shown
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= labels_of(tree, series)


def test_every_rpc_that_a_query_names_exists() -> None:
    named = set(
        re.findall(r'method="([^"]+)"', json.dumps([target.values[0] for target in TARGETS]).replace('\\"', '"'))
    )
    assert named
    assert named <= METHODS.keys()


def test_every_metric_is_shown_somewhere(series: Series) -> None:
    shown = {selector.name for target in TARGETS for selector in selectors(parsed(str(target.values[0])))}
    families = {re.sub("_(bucket|count|sum)$", "", name) for name in series}
    assert {re.sub("_(bucket|count|sum)$", "", name) for name in shown} == families


def test_a_query_that_names_what_is_not_there_is_found_out(series: Series) -> None:
    for wrong in ("sum by (key_id) (texture_auth_decisions_total)", 'label_replace(up, "a", "$1", "b", ".*")'):
        with pytest.raises((AssertionError, KeyError)):
            labels_of(parsed(wrong), series)
    for nonsense in ("rate(texture_auth_decisions_total)", "nosuch(texture_auth_threads)", "sum("):
        with pytest.raises(ValueError, match=r"."):
            parsed(nonsense)


def test_panels_have_places_of_their_own_and_say_what_they_show() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    cells = [cell for panel in DASHBOARD["panels"] for cell in _cells(panel["gridPos"])]
    assert len(cells) == len(set(cells))
    assert all(0 <= x < 24 for x, _ in cells)
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}"
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(PANELS))) - {"__rate_interval", "1"}
    assert used == variables


def _cells(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            yield x, y
