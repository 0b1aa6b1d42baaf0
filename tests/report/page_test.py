"""The page holds its data whatever it says, and asks nobody for anything."""

import html.parser
import json
import re

import pytest

from jaxsae.report.page import embedded, plain, render

NASTY = "</script><script>alert(1)</script> <!-- ]]> & \u2028 @data@ @script@ \\u003c"


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self._inside, self.data = [], None, {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id") if tag == "script" else tag

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        self.data[self._inside] = self.data.get(self._inside, "") + data


def page_of(text):
    return render({"title": text, "lead": text, "foot": "", "runs": [{"vocab": [text]}]})


@pytest.mark.parametrize("text", [NASTY, "plain", "@title@", "a'b\"c", "日本 \U0001f600", "\ud800"])
def test_any_text_survives_and_breaks_nothing(text):
    page = Elements(page_of(text))
    data = json.loads(page.data["data"])
    assert data["runs"][0]["vocab"] == [text if text != "\ud800" else "?"]
    assert page.data["title"].strip() == (text if text != "\ud800" else page.data["title"].strip())
    assert [tag for tag, _ in page.found].count("script") == 2


def test_embedded_json_has_no_character_that_html_reads():
    assert not re.search("[<>&\u2028\u2029]", embedded({"a": NASTY, NASTY: 1.5}))


def test_numbers_that_json_cannot_hold_become_null():
    assert plain({"a": [float("nan"), float("inf"), 1.0]}) == {"a": [None, None, 1.0]}


def test_the_page_names_no_other_file(built):
    text = built[0].read_text(encoding="utf-8")
    page = Elements(text)
    for tag, attributes in page.found:
        assert not {"src", "srcset", "action", "poster"} & set(attributes), tag
        assert attributes.get("href", "#").startswith(("#", "data:,")), tag
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(|new Image|sendBeacon|WebSocket", text)
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    policy = next(a["content"] for t, a in page.found if t == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
