"""The page: well-formed, without scripts, with its text escaped and each chart told in words."""

from __future__ import annotations

import base64
import hashlib
import re
from xml.etree import ElementTree

import pytest

from services.analytics.domain import Tag
from services.analytics.page import CEILING, FLOOR, POLICY, WIDTH, draw, render

DAY_S = 86_400
STARTS = range(20_000 * DAY_S, 20_030 * DAY_S, DAY_S)
TOTALS = {"users": 3, "posts": 2, "comments": 1}
HOSTILE = [
    "<script>alert(1)</script>", "</table></main>", "\"'><img src=x onerror=alert(1)>", "{{ 7*7 }}{% raw %}", "&amp;&#60;", "]]>", "‮abc", "é",
]  # fmt: skip


def page(tags: list[str] | None = None, counts: dict[int, int] | None = None) -> str:
    charts = [draw(kind, STARTS, counts or {}) for kind in ("user.created", "post.published")]
    return render(TOTALS, "2026-03-01T00:00:00.000000Z", charts, [Tag(tag, 1) for tag in tags or []])


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def test_text_of_others_stays_text() -> None:
    text = page(HOSTILE)
    shown = [each.text for each in parsed(text).iter("bdi")]
    assert shown == HOSTILE
    assert "<script" not in text
    assert {each.tag for each in parsed(text).iter()}.isdisjoint({"script", "img", "link", "iframe", "a"})


def test_policy_lets_nothing_in_but_the_style_that_is_there() -> None:
    text = page()
    (style,) = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in POLICY
    assert POLICY.startswith("default-src 'none';")
    assert "unsafe" not in POLICY
    attributes = {name for each in parsed(text).iter() for name in each.attrib}
    assert not {name for name in attributes if name == "style" or name.startswith("on")}
    assert "http" not in text.replace('http-equiv="', "")


def test_each_chart_has_a_name_a_description_and_a_table() -> None:
    root = parsed(page(counts={STARTS[3]: 5, STARTS[29]: 2}))
    ids = [each.attrib["id"] for each in root.iter() if "id" in each.attrib]
    assert len(ids) == len(set(ids))
    figures = list(root.iter("figure"))
    assert len(figures) == 2
    for figure in figures:
        (svg,) = figure.iter("svg")
        assert svg.attrib["role"] == "img"
        named = {each.attrib["id"]: each.tag for each in svg.iter() if "id" in each.attrib}
        assert [named[one] for one in svg.attrib["aria-labelledby"].split()] == ["title", "desc"]
        assert "7 in all, at most 5 on 2024-10-07" in (svg.findtext("desc") or "")
        rows = figure.findall(".//tbody/tr")
        assert [row.findtext("td") for row in rows][3] == "5"
        assert len(rows) == len(STARTS)
    assert root.attrib["lang"] == "en"
    assert root.findtext("head/title")


@pytest.mark.parametrize(
    "counts", [{}, {STARTS[0]: 1}, dict.fromkeys(STARTS, 10**15), {STARTS[0]: 1, STARTS[1]: 10**9}]
)
def test_bars_stay_inside_the_drawing(counts: dict[int, int]) -> None:
    bars = draw("post.published", STARTS, counts).bars
    for bar in bars:
        assert 0 <= bar.x <= bar.x + bar.width <= WIDTH
        assert CEILING <= bar.y <= bar.y + bar.height <= FLOOR + 0.1
        assert (bar.height > 0) == (bar.count > 0)
