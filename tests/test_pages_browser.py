"""The pages in a real browser: run page, token page, preview and comparison of real demo runs with planted texts.

What is locked: 1) nothing is asked of the network, and nothing stands in the console; 2) what a page shows is what its
JSON says; 3) pointer and keyboard reach every token; 4) axe finds nothing serious: light, dark, mobile; 5) text of a
data set never runs; 6) the largest token page is fluid. Skips, and says so, without Playwright or a Chromium.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import statistics
from itertools import cycle
from pathlib import Path

import pytest

from tests import test_report_tokens, tiny
from vlm_dopd.config import load_config
from vlm_dopd.data import SampleDataset
from vlm_dopd.demo import RECIPE, demo
from vlm_dopd.report import write_report
from vlm_dopd.report.page import percent, points

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e .[browser]")
axe_core = pytest.importorskip("axe_playwright_python.base", reason="no axe: pip install -e .[browser]")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: make test-browser installs it")

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PLANTED = (
    "<script>window.ran=1</script>",
    "</script><script>window.ran=1</script><!--",
    '<img src=x onerror="window.ran=1">',
    "<svg onload=window.ran=1><a xlink:href='javascript:window.ran=1'>x</a></svg>",
    "</style><style>*{display:none!important}</style>",
    "\" onmouseover=window.ran=1 autofocus onfocus=window.ran=1 x='",
    "\u202eright to left\u2066 isolate \u200f mark",
    "{{ 7*7 }}{% include 'page.css' %}",
)
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Held-out and training rows of the bundled scenes with a planted text in every field, file names included."""
    folder = tmp_path_factory.mktemp("rows")
    data = SampleDataset(tiny.SCENES, limit=20)
    lines = []
    for index, planted in zip(range(len(data)), cycle(PLANTED), strict=False):
        sample = data[index]
        name = f"{index} {planted}.png".replace("/", "∕")
        sample.images[0].save(folder / name, format="PNG")
        record = json.loads(sample.privileged.to_json()) | {"sample_id": f"s{index} {planted}"}
        record.pop("images", None)
        record["regions"][0]["label"] += f" {planted}"
        clear = index >= 8  # questions that the models can answer, so that some flip
        lines.append(
            {
                "id": f"s{index} {planted}",
                "question": sample.question if clear else f"{sample.question} {planted}",
                "answer": sample.answer if clear else f"{sample.answer} {planted}",
                "image": name,
                "kind": planted,
                "privileged": json.dumps(record),
            }
        )
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def runs(rows, tmp_path_factory) -> tuple[Path, Path]:
    """Two short demo runs on `rows`, of DOPD and of OPD, the first with the second beside it on its page."""
    folder = tmp_path_factory.mktemp("runs")
    found = []
    for method in ("dopd", "opd"):
        run = folder / method
        short = [
            f"data.train={rows}", f"data.eval={rows}", "data.max_prompt_tokens=2048", "rollout.siblings=2",
            "rollout.max_new_tokens=24", f"method.name={method}", "train.max_steps=4", "report.every=2",
            "train.per_device_train_batch_size=4", "train.logging_steps=1", "train.eval_steps=2", f"output_dir={run}",
        ]  # fmt: skip
        demo(load_config(RECIPE, short))
        found.append(run)
    held_out = SampleDataset(rows)
    write_report(found[0], [held_out[index] for index in range(len(held_out))], found[1:])
    return found[0], found[1]


@pytest.fixture(scope="module")
def pages(rows, runs, tmp_path_factory) -> dict[str, Path]:
    """By name; all are made by the functions that the commands call."""
    from privileged import get_builder
    from vlm_dopd.annotate.counting import encoder_of
    from vlm_dopd.annotate.preview import preview
    from vlm_dopd.annotate.preview_page import write_page
    from vlm_dopd.comparing import write_comparison

    run, other = runs
    out = tmp_path_factory.mktemp("pages")
    held_out, encoder = SampleDataset(rows), encoder_of(str(tiny.ASSETS / "student"))
    previews = [
        preview(held_out[index], get_builder("crops"), {"student": encoder, "teacher": encoder}, 4096)
        for index in range(len(held_out))
    ]
    # The teacher in place of the student after so few steps: some answers flip.
    write_comparison(run / "evals/before.jsonl", run / "evals/teacher.jsonl", None, rows, out)
    return {
        "run": run / "report.html",
        "other run": other / "report.html",
        "tokens": run / "tokens.html",
        "other tokens": other / "tokens.html",
        "preview": write_page(previews, out / "preview.html"),
        "compare": out / "compare.html",
    }


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Opens a file; what it asks for, says in the console or throws fails the test at its end."""
    contexts, wrong = [], []

    def opened(path: Path, scheme="light", width=1300, height=1000):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))

        def asked(request):
            if request.url != path.as_uri() and not request.url.startswith(("data:", "blob:")):
                wrong.append(f"request: {request.url}")

        page.on("request", asked)
        page.goto(path.as_uri())
        if "tokens" in path.name:
            page.locator("#list .response .tok").first.wait_for(timeout=60_000)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong, wrong


NAMES = ("run", "other run", "tokens", "other tokens", "preview", "compare")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_planted_runs(pages, visit, name):
    page = visit(pages[name])
    if "tokens" in name:
        page.locator("#all").check()
    for summary in page.locator("summary").all():
        summary.click(timeout=20_000)
    page.mouse.move(400, 400)
    page.keyboard.press("Tab")
    page.wait_for_timeout(100)
    assert page.evaluate("window.ran") is None
    counts = page.evaluate("""() => ({
        handlers: [...document.querySelectorAll('*')].filter(
            e => [...e.attributes].some(a => /^on/i.test(a.name))).length,
        strange: document.querySelectorAll('iframe, object, embed, base, link, form[action]').length,
        scripts: document.scripts.length, styles: document.querySelectorAll('style').length,
        away: [...document.querySelectorAll('[href], [src]')].map(e => e.getAttribute('href') ?? e.getAttribute('src'))
            .filter(u => !/^(data:image\\/|#|report\\.html$|tokens\\.html$)/.test(u)),
    })""")
    scripts = 2 if "tokens" in name else 0
    assert counts == {"handlers": 0, "strange": 0, "scripts": scripts, "styles": 1, "away": []}
    assert page.evaluate("getComputedStyle(document.body).display") != "none"
    shown = page.evaluate("document.querySelector('main').textContent")
    assert "window.ran=1" in shown and not set("\u202e\u2066\u200f") & set(shown)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("scheme", "width"), [("light", 1300), ("dark", 1300), ("light", 390)])
def test_axe_finds_nothing_serious(pages, visit, name, scheme, width):
    page = visit(pages[name], scheme, width)
    if "tokens" in name:
        page.locator(".tokens .tok").first.hover()
    page.evaluate(axe_core.AXE_FILE_PATH.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    bad = [
        f"{one['id']}: {one['nodes'][0]['html'][:160]} ({len(one['nodes'])})"
        for one in found["violations"]
        if one["impact"] in SERIOUS
    ]
    assert not bad, bad


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [1300, 390])
def test_nothing_is_wider_than_the_screen(pages, visit, name, width):
    page = visit(pages[name], width=width, height=800)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_run_page_shows_its_json(pages, visit):
    figures = json.loads(pages["run"].with_name("report.json").read_text())
    page = visit(pages["run"])
    text = page.evaluate("document.body.innerText")
    assert figures["headline"] in page.locator("h1").inner_text().replace("\u2011", "-")
    assert f"{points(figures['difference']['value'])} points" in text
    for row in figures["rows"]:
        cells = page.locator("tr", has=page.get_by_role("rowheader", name=row["name"], exact=True)).first
        assert percent(row["accuracy"]) in cells.inner_text()
    table = page.locator("#runs table.runs").first
    assert table.locator("tbody tr").count() == len(figures["runs"]) == 2
    for run, row in zip(figures["runs"], table.locator("tbody tr").all(), strict=True):
        assert run["run"] in row.inner_text() and points(run["difference"]["value"]) in row.inner_text()
        assert f"{run['cost']['tokens_per_s']:.0f}" in row.inner_text()
    apart = [one["name"] for one in figures["settings_apart"]]
    assert "method.name" in apart and "output_dir" not in apart
    assert page.locator("#runs table.runs").nth(1).locator("tbody th").all_inner_texts() == apart
    judged = [check for check in figures["health"] if check["status"] != "n.a."]
    assert page.locator("#health tbody tr").count() == len(judged) > 0
    assert page.locator("#cost svg").count() == 1  # throughput and memory were logged
    assert page.locator("section#runs figure svg[role=img]").count() >= 6


def stored(run: Path) -> list[dict]:
    return test_report_tokens.read_rows(run / "tokens")


def test_pointing_at_a_token_shows_the_files_figures(pages, visit, runs):
    rows = stored(runs[0])
    last = [row for row in rows if row["step"] == max(row["step"] for row in rows)]
    page = visit(pages["tokens"])
    assert page.locator(".response").count() == len(last)
    row, card = last[0], page.locator(".response").first
    assert card.locator(".tok").count() == len(row["token"])
    for place in (0, len(row["token"]) // 2, len(row["token"]) - 1):
        card.locator(".tok").nth(place).hover()
        detail = page.locator("#detail").inner_text()
        student, teacher = (row["logp"][role][place] for role in row["gap_of"])
        gap = float(detail.split("gap ")[1].split(" nats")[0])
        assert gap == pytest.approx(abs(teacher - student), abs=2e-3)
        assert row["component"][place] in detail and f"token {place + 1} of {len(row['token'])}" in detail
        component = next(one for one in row["components"] if one["name"] == row["component"][place])
        assert component["divergence"] in detail and f"weight {row['weight'][place]:.2f}" in detail
        cells = page.locator("#detail table").first.locator("tbody tr")
        for line, role in zip(cells.all(), ("student_plain", "student_privileged", "teacher_privileged"), strict=True):
            _, q, log_q, entropy = line.locator("th, td").all_inner_texts()
            assert float(log_q.replace("−", "-")) == pytest.approx(row["logp"][role][place], abs=2e-3)
            assert float(entropy) == pytest.approx(row["entropy"][role][place], abs=1e-2)
            share = float(q.replace("−", "-").replace("\u00a0%", ""))
            assert share == pytest.approx(100 * math.exp(row["logp"][role][place]), abs=0.06, rel=0.5)
        likeliest = page.locator("#detail table").nth(1).locator("tbody tr").count()
        assert 1 <= likeliest <= 8


def test_every_token_has_its_colour_and_a_second_cue(pages, visit):
    page = visit(pages["tokens"])
    styles = page.evaluate("""() => Object.fromEntries([...document.querySelectorAll('.keys .tok')].map(e => {
        const s = getComputedStyle(e); return [e.textContent, [s.textDecorationStyle, s.textDecorationColor]] }))""")
    assert len(styles) >= 2
    assert len({style for style, _ in styles.values()}) == len(styles) == len({paint for _, paint in styles.values()})


def test_the_keyboard_reaches_tokens_and_controls(pages, visit):
    page = visit(pages["tokens"])
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('role')") == "listbox":
            break
    active = "document.activeElement.getAttribute('aria-activedescendant')"
    first = page.evaluate(active)
    assert first and first.endswith("-0") and page.locator("#detail table").count()
    page.keyboard.press("ArrowRight")
    assert page.evaluate(active) == first[:-1] + "1"
    page.keyboard.press("End")
    count = page.locator(f"#{first}").locator("xpath=..").locator(".tok").count()
    assert page.evaluate(active).endswith(f"-{count - 1}")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")  # nowhere to go
    assert page.evaluate(active) == first
    assert page.locator(f"#{first}").get_attribute("aria-selected") == "true"


def test_steps_search_sort_and_filter(pages, visit, runs):
    rows = stored(runs[0])
    steps = sorted({row["step"] for row in rows})
    page = visit(pages["tokens"])
    page.locator("#step").focus()
    page.keyboard.press("Home")
    assert page.locator("#step-name").inner_text() == str(steps[0])
    assert page.locator(".response").count() == sum(row["step"] == steps[0] for row in rows)
    page.locator("#all").check()
    assert page.locator(".response").count() == len(rows)
    page.locator("#sort").select_option("mean")
    heads = page.locator(".response > p:first-child").all_text_contents()
    means = [float(head.split("mean gap ")[1].split()[0]) for head in heads]
    assert means == sorted(means, reverse=True)
    page.locator("#search").fill("ONERROR")
    wanted = sum("onerror" in f"{row['question']}{row['answer']}{row['sample']}".lower() for row in rows)
    assert wanted > 0
    sync_api.expect(page.locator(".response")).to_have_count(wanted)
    page.locator("#search").fill("")
    for box in page.locator(".keys input").all()[1:]:
        box.uncheck()
    code = page.locator(".keys .tok").first.inner_text()
    page.wait_for_timeout(200)
    assert page.locator(".response").count() == sum(code in row["component"] for row in rows)
    if page.locator(".tokens .k1").count():
        assert page.locator(".tokens .k1").first.evaluate("e => getComputedStyle(e).textDecorationLine") == "none"


def test_pictures_have_boxes_and_words(pages, visit):
    page = visit(pages["tokens"])
    picture = page.locator(".response .picture").first
    assert "with labelled boxes: " in picture.locator("img").get_attribute("alt")
    assert picture.locator(".box").count() >= 1
    assert picture.locator("img").evaluate("e => e.complete && e.naturalWidth") > 0


def test_print_has_every_token_and_no_controls(pages, visit):
    page = visit(pages["tokens"])
    page.locator("#all").check()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".response:not([data-filled])").count() == 0
    assert not page.locator("aside").is_visible() and not page.locator("#search").is_visible()
    assert page.pdf()[:5] == b"%PDF-"


HOVER = """() => new Promise(done => {
  const tokens = [...document.querySelectorAll('.tokens > .tok')].slice(0, 400), took = [];
  const next = () => {
    if (took.length === 40) return done(took);
    const began = performance.now();
    tokens[took.length * 7 % tokens.length].dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));
    requestAnimationFrame(() => setTimeout(() => { took.push(performance.now() - began); next(); }));
  };
  next();
})"""


def test_two_hundred_responses_of_five_hundred_tokens_are_fluid(tmp_path, visit):
    """The best of three, for a busy machine is not the page: quiet, a paint takes 0.2 s, and a hover one frame."""
    chance = random.Random(0)
    vocabulary = ["".join(chance.choices("abcdefghijklmnop", k=chance.randint(1, 7))) for _ in range(5000)]
    roles = test_report_tokens.ROLES
    rows = []

    def nats(scale=1.0):
        return -round(chance.expovariate(scale), 3)

    for number in range(200):
        words = [f" {chance.choice(vocabulary)}" for _ in range(500)]
        logp = {role: [nats() for _ in words] for role in roles}
        candidates = [
            [[word, *(logp[role][n] for role in roles)]]
            + [[chance.choice(vocabulary), *(nats(0.3) for _ in roles)] for _ in range(chance.choice((0, 0, 1, 3)))]
            for n, word in enumerate(words)
        ]
        entropy = {role: [-nats() for _ in words] for role in roles}
        component = chance.choices(("LH", "LL", "HT", "HS"), k=500)
        changes = {"component": component, "logp": logp, "entropy": entropy, "candidates": candidates}
        rows.append(test_report_tokens.row(20 * (number // 50), words, question=f"Question {number}?", **changes))
    path = test_report_tokens.write(tmp_path, *rows)
    assert path.stat().st_size < 5_000_000 and "would not fit" not in path.read_text()
    paints, hovers = [], []
    for _ in range(3):
        page = visit(path)
        paints.append(max(page.evaluate("performance.getEntriesByType('paint').map(e => e.startTime)")))
        page.locator("#all").check()
        assert page.locator(".response").count() == 200
        hovers.append(statistics.median(page.evaluate(HOVER)))
    assert min(paints) < 1500, paints
    assert min(hovers) < 50, hovers
