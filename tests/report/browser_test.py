"""The page in a real browser: cards, filter, links, no request to anywhere."""

import html
import json
import re
import shutil
import subprocess

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(BROWSER is None, reason="no headless Chromium is installed")]

FLAGS = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
FLAGS += " --disable-dev-shm-usage --disable-component-update --virtual-time-budget=20000 --dump-dom"

#: Runs in the page after its own script; what it returns comes back as JSON.
HARNESS = """
<script>
window.violations = [];
document.addEventListener("securitypolicyviolation", (e) => violations.push(e.blockedURI));
window.addEventListener("error", (e) => violations.push(String(e.message)));
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const all = (selector) => [...document.querySelectorAll(selector)];
const type = async (id, value, event = "input") => {
  const node = document.getElementById(id);
  node.value = value;
  node.dispatchEvent(new Event(event, { bubbles: true }));
  await wait(400);
};
const ids = () => all(".card").map((c) => Number(c.id.split("-")[1]));
(async () => {
  const out = {};
  await wait(200);
  try { %s } catch (e) { violations.push(String(e)); }
  out.violations = violations;
  out.requests = performance.getEntriesByType("resource").map((e) => e.name);
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(out);
  document.body.append(result);
})();
</script>
"""


def drive(page, script, tmp_path):
    """Opens a copy of the page, runs the script in it, and returns what it found."""
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", HARNESS % script + "</body>"), encoding="utf-8")
    command = [BROWSER, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    out = json.loads(html.unescape(found[1]))
    assert out["violations"] == []
    assert out["requests"] == []
    return out


def test_cards_filter_sort_and_links(built, tmp_path):
    script = """
    out.title = document.querySelector("h1").textContent;
    out.bold = all("h1 b").length;
    out.cards = all(".card").length;
    out.sections = all("main > section:not([hidden])").map((s) => s.id);
    out.charts = all(".chart path.line").length;
    out.bars = all("#histogram rect").length;
    out.rows = all(".card:first-child .row").length;
    out.peaks = all(".card").every((c) => c.querySelector("mark.peak"));
    out.words = all(".card:first-child .words span").length;
    out.all = ids();
    await type("search", "#" + out.all[7]);
    out.byNumber = ids();
    await type("search", "LOAVES");
    out.byText = all(".card").map((c) => c.textContent.toLowerCase().includes("loaves"));
    out.count = document.getElementById("count").textContent;
    await type("search", "no such text anywhere");
    out.none = [all(".card").length, document.getElementById("none").hidden];
    document.getElementById("clear").click();
    await wait(300);
    out.cleared = all(".card").length;
    await type("high", 60);
    const run = JSON.parse(document.getElementById("data").textContent).runs[0];
    const density = new Map(run.latents.map((l) => [l.i, l.d]));
    out.densest = Math.max(...ids().map((i) => density.get(i)));
    out.limit = Math.max(...density.values());
    out.below = ids().length;
    await type("high", 100);
    await type("sort", "dense", "change");
    out.dense = ids().map((i) => density.get(i));
    document.querySelector(".unfold").click();
    out.unfolded = getComputedStyle(document.querySelector(".card.all .row.extra")).display;
    location.hash = "#latent-" + out.all[3];
    await wait(200);
    out.here = all(".card.here").map((c) => c.id);
    """
    out = drive(built[0], script, tmp_path)
    assert out["title"] == "a <b>run</b>"
    assert out["bold"] == 0
    assert out["cards"] >= 200
    assert out["sections"] == ["overview", "training", "density", "latents"]
    assert out["charts"] >= 4
    assert out["bars"] > 3
    assert out["rows"] >= 6
    assert out["peaks"] is True
    assert out["words"] == 16
    assert out["byNumber"] == [out["all"][7]]
    assert 0 < len(out["byText"]) < built[1]["latents_shown"]
    assert all(out["byText"])
    assert out["count"] == f"{len(out['byText'])} of {built[1]['latents_shown']}"
    assert out["none"] == [0, False]
    assert out["cleared"] == out["cards"]
    assert out["densest"] < out["limit"]
    assert 0 < out["below"] < built[1]["latents_shown"]
    assert out["dense"] == sorted(out["dense"], reverse=True)
    assert out["unfolded"] == "grid"
    assert out["here"] == [f"latent-{out['all'][3]}"]


def test_two_runs_side_by_side(compared, tmp_path):
    script = """
    out.columns = all("#table thead th").length;
    out.which = all("#which button").length;
    out.curves = all(".chart .run-1 path.line").length;
    const link = document.querySelector('a[data-run="1"]');
    out.target = link.hash;
    link.click();
    await wait(300);
    out.pressed = all("#which button").map((b) => b.getAttribute("aria-pressed"));
    out.here = all(".card.here").map((c) => "#" + c.id);
    """
    out = drive(compared[0], script, tmp_path)
    assert (out["columns"], out["which"]) == (5, 2)
    assert out["curves"] >= 2
    assert out["pressed"] == ["false", "true"]
    assert out["here"] == [out["target"]]
