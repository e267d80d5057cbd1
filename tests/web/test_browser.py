"""The page in Debian's Chromium: what it looks like, how it refreshes, and whether everybody can use it.

One browser, one database with an incident and one server serve all of these tests. `MAILGLASS_TEST_SCREENSHOTS` names a
folder that a screenshot of each page is kept in, `MAILGLASS_DOCS_SCREENSHOTS` one for those that the documentation
shows: `docs/screenshots`.
"""

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

import factories
import mailglass_reconcile
import scenery
import sweeping
from browsing import TOKEN
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.web.rendering import REFRESH_SECONDS
from marking import nightly_unless
from serving import serve
from waiting import PATIENCE

CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
"""Without windows, a visitor costs a third of the processor's time: a window has pages of its own."""

pytestmark = [
    pytest.mark.long,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="needs Debian's package chromium-headless-shell, or chromium"),
]

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP mail.test 127.0.0.1"),
]
VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
"""
FITS = """select => {
  const given = select.offsetWidth;
  const free = select.cloneNode(true);
  free.style.width = "max-content";
  document.body.append(free);
  const needed = free.offsetWidth;
  free.remove();
  return needed <= given;
}"""
BROKEN_IDS = """() => [...document.querySelectorAll("main .short")].filter(
  (one) => one.offsetHeight > 2 * parseFloat(getComputedStyle(one).fontSize) * 1.5).map((one) => one.textContent)
"""
OUTSIDE = """() => [...document.querySelectorAll("main .card, main .card *, header *")].filter((one) => {
  const box = one.getBoundingClientRect();
  return box.width > 1 && !one.closest("svg") && (box.right > innerWidth + 1 || box.left < -1);
}).map((one) => one.outerHTML.slice(0, 100))
"""
TICKS = """() => [...document.querySelectorAll("svg.ticks")].flatMap((axis) => {
  const boxes = [...axis.querySelectorAll("text")].map((one) => one.getBoundingClientRect()).filter((box) => box.width);
  return boxes.slice(1).filter((box, number) => box.left < boxes[number].right + 2).map((box) => box.left);
})
"""
MARK_ALIKE = """() => {
  for (const parent of document.querySelectorAll("main :is(ul, ol, tbody, g)")) {
    const seen = new Set();
    for (const one of parent.children) {
      one.removeAttribute("data-alike");
      const unvalued = one.outerHTML.replace(/ (?!class=)([\\w-]+)="[^"]+"/g, ' $1="…"');
      const shape = unvalued.replace(/>[^<]*\\S[^<]*</g, ">…<");
      if (seen.has(shape)) one.setAttribute("data-alike", "");
      seen.add(shape);
    }
  }
}"""
AXE = """async () => {
  const found = await axe.run({ exclude: ["[data-alike]"] }, { resultTypes: ["violations"] });
  return found.violations;
}"""
SCREENS = ((320, "dark"), (390, "light"), (1_440, "light"), (1_440, "dark"))
"""Widths and schemes: what is wide does not depend on colours, and phones of both widths have the same rules."""
SECONDS = 1_000
REFRESH = REFRESH_SECONDS * SECONDS
SERIOUS = {"serious", "critical"}
SIGNED_IN = {"authorization": f"Bearer {TOKEN}"}
CANARY = "canary7@example.com"

PAGES = ("overview", "orphans", "mismatches", "expired", "runs", "handlers", "found", "mismatch", "ambiguous", "linked")
PAGES += ("delivery", "find", "missing")
IN_DOCS = {
    ("overview", 1_440, "light"): ("overview", 1_920),
    ("overview", 390, "light"): ("overview-phone", 1_700),
    ("mismatches", 1_440, "dark"): ("orphans", 1_000),
    ("ambiguous", 1_440, "light"): ("event", 1_000),
}
"""Which screenshots the documentation has, by page, width and scheme: their names and heights."""

OF_STATE = "SELECT event_id::text FROM mailglass_open_orphans WHERE state = :state ORDER BY arrived_at LIMIT 1"
FIFTEEN_SECONDS_AGO = """
UPDATE mailglass_reconcile_runs
   SET started_at = started_at - interval '15 seconds', finished_at = finished_at - interval '15 seconds'
"""
A_LINK = "SELECT delivery_id::text, substr(idempotency_key, 12) FROM mailglass_events WHERE type = 'reconciled' LIMIT 1"


@dataclass
class System:
    """A database, and how its dashboard is served."""

    engine: sa.Engine
    settings: Settings
    serve: Callable[[], AbstractContextManager[tuple]]

    def begin(self):
        """Begin a transaction, for the factories."""
        return self.engine.begin()

    def use(self) -> None:
        """Configure this process to use the database."""
        mailglass_reconcile.configure(engine=self.engine, settings=self.settings)


@dataclass
class Shop(System):
    """The system of the screenshots, and its address."""

    address: str
    paths: dict[str, str]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for this module."""
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


@pytest.fixture(scope="module")
def system(template, make_database, drop_database, redis_url) -> Callable[[], AbstractContextManager[System]]:
    """Return a function that makes a system; with `db`, no browser process could outlive a test."""

    @contextmanager
    def make_system() -> Iterator[System]:
        name = f"mgtest_browser_{uuid.uuid4().hex[:12]}"
        url = make_database(name, template)
        settings = Settings(database_url=url, redis_url=redis_url)
        environment = {**os.environ, "MAILGLASS_DATABASE_URL": url, "MAILGLASS_REDIS_URL": redis_url}
        created = System(engines.create_engine(settings), settings, lambda: serve(environment))
        created.use()
        yield created
        mailglass_reconcile.configure()
        created.engine.dispose()
        drop_database(name)

    return make_system


@pytest.fixture(scope="module")
def shop(system) -> Iterator[Shop]:
    """One system with an incident, and one server of its dashboard."""
    with system() as created:
        scenery.incident(created.engine)
        with created.engine.connect() as connection:
            of_state = {
                state: connection.execute(sa.text(OF_STATE), {"state": state}).scalar_one()
                for state in ("tenant_mismatch", "ambiguous")
            }
            delivery, linked = connection.execute(sa.text(A_LINK)).one()
        paths = {
            "overview": "",
            "orphans": "orphans",
            "mismatches": "orphans?state=tenant_mismatch",
            "expired": "orphans?state=expired",
            "runs": "runs",
            "handlers": "handlers",
            "found": "find?q=msg-905",
            "find": "find",
            "mismatch": f"events/{of_state['tenant_mismatch']}",
            "ambiguous": f"events/{of_state['ambiguous']}",
            "linked": f"events/{linked}",
            "delivery": f"deliveries/{delivery}",
            "missing": "nowhere",
        }
        with created.serve() as (process, address):
            yield Shop(created.engine, created.settings, created.serve, f"{address}/", paths)
            process.stop()
            assert "canary" not in process.stderr


@pytest.fixture
def context(chromium) -> Iterator[BrowserContext]:
    """A browser context in Berlin, which records violations of the policy and errors of scripts."""
    opened = chromium.new_context(
        viewport={"width": 1_440, "height": 900}, extra_http_headers=SIGNED_IN, timezone_id="Europe/Berlin"
    )
    opened.add_init_script(VIOLATIONS)
    opened.errors = []
    opened.on("weberror", lambda error: opened.errors.append(str(error.error)))
    yield opened
    assert opened.errors == []
    opened.close()


@pytest.fixture
def clock(context):
    """The clock of pages that this context opens from here on, which runs and can be advanced."""
    context.clock.install()
    return context.clock


@pytest.fixture
def page(context, shop) -> Page:
    """A tab with the overview."""
    shop.use()
    opened = context.new_page()
    opened.goto(shop.address)
    return opened


def check(page) -> None:
    """Check that the page broke no policy, fits the screen without overlaps, and passes axe without serious
    findings.

    axe takes a millisecond for each text: of rows that only differ in their words, it looks at the first.
    """
    assert page.evaluate("window.violations") == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(BROKEN_IDS) == []
    assert page.evaluate(TICKS) == []
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    page.evaluate(MARK_ALIKE)
    result = page.evaluate(AXE)
    serious = [(row["id"], [node["html"][:120] for node in row["nodes"]]) for row in result if row["impact"] in SERIOUS]
    assert serious == []
    assert page.evaluate("window.violations") == []


def keep(page, name: str, width: int, scheme: str) -> None:
    """Store screenshots in the requested folders."""
    if folder := os.environ.get("MAILGLASS_TEST_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}-{width}-{scheme}.png", full_page=True)
    if (folder := os.environ.get("MAILGLASS_DOCS_SCREENSHOTS")) and (name, width, scheme) in IN_DOCS:
        file, height = IN_DOCS[name, width, scheme]
        page.set_viewport_size({"width": width, "height": height})
        page.screenshot(path=Path(folder) / f"{file}.png")


@pytest.mark.parametrize("name", nightly_unless(("overview", "ambiguous").__contains__, PAGES))
def test_every_page_works_on_phones_and_screens_in_light_and_dark_mode(shop, context, name):
    """Widths are 320, 390 and 1,440 pixels."""
    page = context.new_page()
    page.goto(shop.address + shop.paths[name])
    for width, scheme in SCREENS:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        check(page)
        keep(page, name, width, scheme)


def test_filters_lead_from_a_state_to_its_orphans_and_to_why_one_is_open(shop, page):
    """Keyboard and links work; the URL is a bookmark with the filters only."""
    page.locator("#states").get_by_role("link", name="List the 17 that are ambiguous").click()
    expect(page).to_have_url(re.compile(r"/orphans\?state=ambiguous$"))
    expect(page.locator(".orphans li")).to_have_count(17)
    page.get_by_label("Provider").fill("sendgrid")
    page.get_by_label("Type").press("Enter")
    expect(page).to_have_url(re.compile(r"/orphans\?state=ambiguous&provider=sendgrid$"))
    expect(page.get_by_label("Provider")).to_have_value("sendgrid")
    expect(page.locator(".orphans li")).to_have_count(6)
    page.locator(".orphans a").first.click()
    expect(page.locator(".verdict")).to_contain_text("several deliveries have this id")
    expect(page.locator(".candidate .command").first).to_contain_text("--reason ''")
    page.goto(f"{shop.address}orphans?tenant=default")
    expect(page.locator("#causes-heading + table")).to_contain_text(re.compile(r"default → acme"))
    first = page.locator(".orphans a").first.get_attribute("href")
    page.get_by_role("link", name="Next page").click()
    expect(page).to_have_url(re.compile(r"after=.*tenant=default"))
    assert page.locator(".orphans a").first.get_attribute("href") != first
    assert page.get_by_label("State").evaluate(FITS)


def test_a_link_appears_by_itself_and_pausing_stops_that(clock, shop, page):
    """The reading position and the focus stay."""
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#updated")).to_contain_text("paused at")
    requested = []
    page.on("request", lambda request: requested.append(request.url))
    factories.delivery(shop, "fresh", tenant_id="acme")
    event = factories.orphan(shop, factories.postmark("fresh"), tenant_id="acme")
    mailglass_reconcile.reconcile("acme", limit=1)
    clock.run_for(70 * SECONDS)
    expect(page.locator("#stale")).to_contain_text("Updates are paused")
    link = page.locator(f'#links a[href="./events/{event}"]')
    expect(link).to_have_count(0)
    assert requested == []
    page.get_by_role("button", name="Pause").click()
    page.get_by_text("In numbers").first.click()
    page.locator("#states a").first.focus()
    expect(link).to_be_visible(timeout=PATIENCE * SECONDS)
    expect(page.locator("#runs tbody tr").first).to_contain_text("of acme")
    assert page.evaluate("document.activeElement.closest('#states') !== null")
    assert page.locator("#backlog-numbers").evaluate("one => one.open")
    expect(page.locator("#updated")).to_contain_text(re.compile(r"updated \d s ago"))
    check(page)


def test_a_chart_shows_the_values_of_what_is_pointed_at_or_chosen_by_arrow_keys(clock, page):
    """Otherwise it shows the peak; a refresh keeps the selection."""
    readout = page.locator("#left-readout")
    expect(readout).to_contain_text("Peak: 408")
    column = page.locator("#left-plot rect").nth(40)
    column.hover()
    expect(readout).to_have_text(column.locator("title").text_content())
    page.locator("h1").hover()
    expect(readout).to_contain_text("Peak: 408")
    plot = page.locator("#lag-plot")
    plot.focus()
    last = page.locator("#lag-plot rect").last.locator("title").text_content()
    expect(page.locator("#lag-readout")).to_have_text(re.compile(re.escape(last.split(":")[0])))
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    chosen = page.locator("#lag-readout").text_content().split(" UTC")[0]
    assert chosen != last.split(" UTC")[0]
    page.locator("#lag-plot").evaluate("plot => plot.dataset.old = true")
    clock.run_for(REFRESH)
    expect(page.locator("#lag-plot[data-old]")).to_have_count(0, timeout=PATIENCE * SECONDS)
    expect(page.locator("#lag-readout")).to_contain_text(chosen)
    assert page.evaluate("document.activeElement.id") == "lag-plot"
    page.keyboard.press("Escape")
    expect(page.locator("#lag-readout")).to_contain_text("Peak: ")


def test_a_chosen_column_stays_the_same_time_when_a_refresh_moves_the_columns(system, context):
    """On a new installation, columns are seconds wide, so almost each refresh drops the oldest."""
    with system() as young:
        factories.insert_pairs(young, [str(number) for number in range(4)])
        with sweeping.held(young.engine, free=1):
            assert mailglass_reconcile.reconcile().remaining == 3
        with young.begin() as connection:  # the last two columns may be merged in the next moment
            connection.execute(sa.text(FIFTEEN_SECONDS_AGO))
        with young.serve() as (_, address):
            page = context.new_page()
            page.goto(address)
            expect(
                page.locator("#left-plot rect:has(+ rect + rect)").filter(has_text=re.compile(": 3$"))
            ).to_have_count(1)
            readout = page.locator("#left-readout")
            page.locator("#left-plot").focus()
            while not (selected := readout.text_content()).endswith(": 3"):
                page.keyboard.press("ArrowLeft")
            earlier = page.locator("#left-plot rect:has(~ .chosen)")
            before = earlier.count()
            expect(earlier).not_to_have_count(before, timeout=PATIENCE * SECONDS)
            assert 0 < earlier.count() < before
            assert readout.text_content() == selected
            page.keyboard.press("ArrowRight")
            expect(readout).to_contain_text(": 0")


def test_a_command_and_an_id_are_copied_with_a_button(context, shop, page):
    """A shortened id is copied as a whole."""
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy: mailglass-reconcile dispatch --dead").first.click()
    assert page.evaluate("navigator.clipboard.readText()") == "mailglass-reconcile dispatch --dead"
    page.goto(shop.address + shop.paths["delivery"])
    page.locator("h1 .copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == shop.paths["delivery"].rpartition("/")[2]


def test_times_are_relative_and_show_utc_and_the_viewers_own_time(page):
    """The tooltip has them."""
    time = page.locator("#runs time").first
    expect(time).to_have_text(re.compile(r"(now|[\d.]+ (s|min|h)( [\d.]+ \w+)? ago)"))
    expect(time).to_have_attribute("title", re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\n.*GMT\+[12]$"))


def test_a_table_is_a_list_on_a_phone_and_a_table_on_a_screen(page):
    """Each line has its column's heading."""
    row = page.locator("#causes tbody tr").first
    for width, display, heading in ((320, "block", '"tenant"'), (1_440, "table-row", "none")):
        page.set_viewport_size({"width": width, "height": 900})
        assert row.evaluate("one => getComputedStyle(one).display") == display
        before = row.locator("td").first.evaluate("one => getComputedStyle(one, '::before').content")
        assert (before if width == 320 else "none") == heading


def test_the_problems_stand_first_and_in_the_title_of_the_tab(page):
    """They come before figures and charts."""
    expect(page).to_have_title(re.compile(r"^\(\d\) Overview · mailglass-reconcile$"))
    tops = [page.locator(name).bounding_box()["y"] for name in ("#health", "#figures", "#states", "#curves", "#runs")]
    assert tops == sorted(tops)


def test_a_bar_says_that_the_page_is_out_of_date_until_it_is_not(clock, context, page):
    """The server or the network fails, and the page keeps its content."""
    expect(page.locator("#stale")).to_be_hidden()
    context.set_offline(True)
    clock.run_for(REFRESH)
    expect(page.locator("#stale")).to_contain_text("No answer since", timeout=PATIENCE * SECONDS)
    assert page.locator("#stale").bounding_box()["y"] < 200
    expect(page.locator("#figures dd").first).not_to_be_empty()
    check(page)
    context.set_offline(False)
    clock.run_for(REFRESH)
    expect(page.locator("#stale")).to_be_hidden(timeout=PATIENCE * SECONDS)


def test_an_address_is_searched_for_and_stored_nowhere(context, page, shop):
    """It is in no URL, field or link afterwards, although its delivery is found."""
    requested = []
    context.on("request", lambda request: requested.append(request.url))
    page.get_by_role("searchbox").fill(CANARY)
    page.keyboard.press("Enter")
    expect(page.locator("#found")).to_contain_text("1 delivery")
    expect(page).to_have_url(f"{shop.address}find")
    check(page)
    assert "canary" not in page.content()
    assert page.get_by_label("Address or id", exact=True).input_value() == ""
    page.locator("#found a").first.click()
    expect(page.locator("h1")).to_contain_text("Delivery")
    assert not [url for url in requested if "canary" in url]
    page.get_by_role("searchbox").fill("msg-0")
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{shop.address}find?q=msg-0")
    expect(page.get_by_label("Address or id", exact=True)).to_have_value("msg-0")


def test_the_page_recovers_with_the_database(shop, page):
    """Nobody has to reload; a missing page is not requested again."""
    page.goto(f"{shop.address}nowhere")
    expect(page.get_by_role("button", name="Pause")).to_be_hidden()
    with shop.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.exec_driver_sql("ALTER TABLE mailglass_reconcile_runs RENAME TO away")
        try:
            # A page that no test has read yet, because recent responses are cached.
            assert page.goto(f"{shop.address}?hours=168").status == 503
            expect(page.locator("h1")).to_have_text("The database needs another revision")
            check(page)
        finally:
            connection.exec_driver_sql("ALTER TABLE away RENAME TO mailglass_reconcile_runs")
        expect(page.locator("#figures dd").first).to_have_text(re.compile(r"\d"), timeout=PATIENCE * SECONDS)


@pytest.mark.parametrize("host", ["127.0.0.1", "mail.test"])
def test_the_form_signs_in_and_leads_to_the_page_that_was_requested(shop, chromium, host):
    """The keyboard alone is used; signing out leads back to the form.

    Without HTTPS, a browser says where a form comes from by `Origin`, unless the referrer policy hides it, and to this
    machine by `Sec-Fetch-Site`, too.
    """
    with chromium.new_context() as context:
        address = shop.address.replace("127.0.0.1", host)
        context.add_init_script(VIOLATIONS)
        page = context.new_page()
        page.goto(f"{address}orphans?state=unmatched")
        check(page)
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert").filter(has_text="Wrong token")).to_be_visible()
        page.keyboard.type(TOKEN)
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"{address}orphans?state=unmatched")
        assert page.evaluate("document.cookie") == ""
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "content"
        check(page)
        page.get_by_role("searchbox").fill(CANARY)
        page.keyboard.press("Enter")
        expect(page.locator("#found")).to_contain_text("1 delivery")
        page.get_by_role("button", name="Sign out").click()
        expect(page).to_have_url(address)
        expect(page.get_by_label("Token")).to_be_visible()
