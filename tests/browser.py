"""A page in a real browser: where its blocks are, and what it looks like."""

import base64
import html
import json
import re
import shutil
import subprocess

import pytest
from PIL import Image

WIDTHS = (1400, 420)
LAYOUT = """
const shown = [...document.querySelectorAll(
  "h1, h2, h3, .lead, nav li, dt, dd, li, th, td, .prompt > p, .text, figure, figcaption, .error, footer p")]
  .filter(e => e.getClientRects().length && !e.closest("thead"));
const box = e => e.getBoundingClientRect();
const name = e => e.tagName + "." + e.className;
const wrong = [];
for (const [i, a] of shown.entries()) {
  const r = box(a);
  if (r.right > innerWidth + 0.5 || r.left < -0.5) wrong.push("too wide: " + name(a));
  if (a.scrollWidth > a.clientWidth + 1 && a.clientWidth) wrong.push("runs over: " + name(a));
  for (const b of shown.slice(i + 1)) {
    if (a.contains(b) || b.contains(a)) continue;
    const s = box(b);
    const across = Math.min(r.right, s.right) - Math.max(r.left, s.left);
    const down = Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top);
    if (across > 1 && down > 1) wrong.push(name(a) + " over " + name(b));
  }
}
const page = document.documentElement;
if (page.scrollWidth > innerWidth) wrong.push("the page is " + page.scrollWidth);
for (const art of document.querySelectorAll("figure svg")) {
  if (box(art).width < 10 || box(art).height < 4) wrong.push("invisible: " + art.viewBox.baseVal.width);
}
const columns = new Set([...document.querySelectorAll(".sample:first-of-type .prompt")].map(e => box(e).left)).size;
const result = {wrong, columns, height: page.scrollHeight, count: shown.length};
frameElement.height = page.scrollHeight;
parent.document.getElementById("w" + innerWidth).textContent = btoa(JSON.stringify(result));
"""


def laid_out(page, folder):
    """What Chromium makes of the file `page` at WIDTHS: width -> `wrong` (overlaps, blocks that are too wide), `count`
    of blocks, `columns` of prompts. A screenshot is kept in `folder`. Skips where there is no browser.

    The widths are those of frames: a browser's window is never narrower than 500 px.
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium or google-chrome on the PATH to measure the page in")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    inner = html.escape(text.replace("</body>", f"<script>{LAYOUT}</script></body>"))
    frames = [f'<i id="w{w}"></i><iframe width={w} height=900 srcdoc="{inner}"></iframe>' for w in WIDTHS]
    both = folder / "both.html"
    style = "iframe {border: 0; vertical-align: top} i {display: none}"
    both.write_text(f"<meta charset=utf-8><style>{style}</style>{''.join(frames)}", encoding="utf-8")
    base = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    base += [f"--user-data-dir={folder / 'profile'}", both.as_uri()]
    dom = subprocess.run([*base, "--dump-dom"], capture_output=True, text=True, timeout=900, check=True).stdout
    found = {
        int(width): json.loads(base64.b64decode(code)) for width, code in re.findall(r'<i id="w(\d+)">([^<]+)<', dom)
    }
    shot, tall = folder / "both.png", min(4000, found[WIDTHS[0]]["height"])
    size = f"--window-size={sum(WIDTHS) + 40},{tall}"
    subprocess.run([*base, size, f"--screenshot={shot}"], capture_output=True, timeout=900, check=True)
    assert Image.open(shot).height == tall
    return found
