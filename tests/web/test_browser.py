"""The page in Debian's Chromium: what it looks like, how it refreshes, and whether everybody can use it.

`MAILGLASS_TEST_SCREENSHOTS` names a folder that the screenshots are kept in.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright

import factories
import mailglass_reconcile
import scenery
from browsing import TOKEN
from mailglass_reconcile.testing.databases import Database
from serving import serving
from waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/usr/bin/chromium").exists(), reason="needs Debian's package chromium"),
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
  const free = select.cloneNode(true);
  free.style.width = "max-content";
  select.after(free);
  const [needed, given] = [free.offsetWidth, select.offsetWidth];
  free.remove();
  return needed <= given;
}"""
WIDTHS = (360, 1_440)
SECONDS = 1_000
SERIOUS = {"serious", "critical"}
SIGNED_IN = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for this module."""
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)


@pytest.fixture
def context(chromium) -> Iterator[BrowserContext]:
    """A visitor of its own, who notes what the policy forbids and what goes wrong in a script."""
    opened = chromium.new_context(viewport={"width": 1_440, "height": 900}, extra_http_headers=SIGNED_IN)
    opened.add_init_script(VIOLATIONS)
    opened.errors = []
    opened.on("weberror", lambda error: opened.errors.append(str(error.error)))
    yield opened
    assert opened.errors == []
    opened.close()


def laid_out(database: Database, opened: int) -> None:
    """Let a database have something to look at."""
    mailglass_reconcile.configure(engine=database.engine, settings=database.settings)
    scenery.lay_out(database.engine, opened)


def check(page) -> None:
    """Nothing was forbidden, nothing is wider than the screen, and axe finds nothing serious."""
    assert page.evaluate("window.violations") == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    found = Axe().run(page).response["violations"]
    serious = [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found if one["impact"] in SERIOUS]
    assert serious == []
    assert page.evaluate("window.violations") == []


@pytest.mark.parametrize("opened", [0, 10, 100_000])
def test_it_looks_right_on_a_phone_and_a_screen_by_day_and_by_night(
    mailglass_database, redis_url, context, tmp_path, opened
):
    """Every kind of page, with nothing open, ten, and very many; a screenshot of each."""
    laid_out(mailglass_database, opened)
    folder = Path(os.environ.get("MAILGLASS_TEST_SCREENSHOTS", tmp_path))
    with serving(mailglass_database.url, redis_url) as (_, address):
        page = context.new_page()
        for path, name in (("", "overview"), ("orphans", "orphans"), ("orphans?state=expired", "expired")):
            page.goto(address + path)
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                for width in WIDTHS:
                    page.set_viewport_size({"width": width, "height": 900})
                    check(page)
                    page.screenshot(path=folder / f"{name}-{opened}-{width}-{scheme}.png", full_page=name == "overview")
        page.goto(address)
        expect(page.locator("#figures dd").first).to_have_text(f"{opened:,}")
        for kind in ("events", "deliveries"):
            page.goto(address)
            page.locator(f'#links a[href*="{kind}"]').first.click()
            check(page)
            page.screenshot(path=folder / f"{kind}-{opened}.png", full_page=True)


def test_filters_lead_from_a_state_to_its_orphans_and_to_why_one_is_open(mailglass_database, redis_url, context):
    """By the keyboard and by links; the address is the bookmark."""
    laid_out(mailglass_database, 200)
    with serving(mailglass_database.url, redis_url) as (_, address):
        page = context.new_page()
        page.goto(address)
        page.get_by_role("link", name="List the 20 that are ambiguous").click()
        expect(page).to_have_url(re.compile(r"/orphans\?state=ambiguous$"))
        expect(page.locator(".orphans li")).to_have_count(20)
        page.get_by_label("Provider").fill("sendgrid")
        page.get_by_label("Order").select_option("newest")
        page.get_by_label("Type").press("Enter")
        expect(page).to_have_url(re.compile(r"state=ambiguous.*provider=sendgrid.*order=newest"))
        expect(page.get_by_label("Provider")).to_have_value("sendgrid")
        page.goto(page.url)
        expect(page.locator(".orphans li")).to_have_count(20)
        page.locator(".orphans a").first.click()
        expect(page.locator(".verdict")).to_contain_text("several deliveries have the id")
        check(page)
        page.goto(f"{address}orphans?provider=postmark")
        first = page.locator(".orphans a").first.inner_text()
        page.get_by_role("link", name="Next page").click()
        expect(page).to_have_url(re.compile(r"after=.*provider=postmark|provider=postmark.*after="))
        assert page.locator(".orphans a").first.inner_text() != first
        page.get_by_label("Age at least").fill("a while")
        page.get_by_role("button", name="Show").click()
        assert page.get_by_label("Age at least").evaluate("field => field.matches(':invalid')")


def test_a_link_appears_by_itself_and_pausing_stops_that(mailglass_database, redis_url, context):
    """Where somebody reads the page, and the focus stays where it is."""
    laid_out(mailglass_database, 10)
    with serving(mailglass_database.url, redis_url) as (_, address):
        page = context.new_page()
        page.goto(address)
        run = page.locator("#runs tbody tr")
        before = run.first.inner_text()
        page.get_by_text("In numbers").first.click()
        page.locator("#states a").first.focus()
        factories.delivery(mailglass_database, "fresh", tenant_id="acme")
        event = factories.orphan(mailglass_database, factories.postmark("fresh"), tenant_id="acme")
        mailglass_reconcile.reconcile()
        expect(page.locator(f'#links a[href="./events/{event}"]')).to_be_visible(timeout=20 * SECONDS)
        assert run.first.inner_text() != before
        assert page.evaluate("document.activeElement.closest('#states') !== null")
        assert page.locator("#backlog-numbers").evaluate("one => one.open")
        page.get_by_role("button", name="Pause updates").click()
        expect(page.locator("#refreshed")).to_contain_text("Paused at")
        paused = run.first.inner_text()
        mailglass_reconcile.reconcile()
        page.wait_for_timeout(7 * SECONDS)
        assert run.first.inner_text() == paused
        page.get_by_role("button", name="Pause updates").click()
        expect(run.first).not_to_have_text(paused, timeout=20 * SECONDS)
        check(page)


def test_a_new_installation_shows_its_first_sweep(mailglass_database, redis_url, context, tmp_path):
    """Not a hairline at the end of an empty day."""
    mailglass_reconcile.configure(engine=mailglass_database.engine, settings=mailglass_database.settings)
    factories.orphan(mailglass_database, factories.postmark("nobody's"))
    with serving(mailglass_database.url, redis_url) as (_, address):
        page = context.new_page()
        page.goto(address)
        expect(page.locator("#states")).to_contain_text("the first full sweep will count the open orphans")
        check(page)
        mailglass_reconcile.reconcile()
        bar = page.locator(".band.unmatched")
        expect(bar).to_have_count(1, timeout=20 * SECONDS)
        wait_until(lambda: (bar.bounding_box() or {"width": 0})["width"] > 10)  # None while it is replaced
        expect(page.locator("#curves .times").first).to_contain_text("5 min ago")
        page.screenshot(path=Path(os.environ.get("MAILGLASS_TEST_SCREENSHOTS", tmp_path)) / "new.png")


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_chosen_can_be_read_and_what_can_be_scrolled_shows_it(
    mailglass_database, redis_url, context, width, tmp_path
):
    """The states in the list of the filters, the reasons before the charts, and a table that is wider than a phone."""
    laid_out(mailglass_database, 100)
    with serving(mailglass_database.url, redis_url) as (_, address):
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(f"{address}orphans")
        assert page.get_by_label("State").evaluate(FITS)
        page.goto(address)
        tops = [page.locator(name).bounding_box()["y"] for name in ("#figures", "#states", "#curves", "#runs")]
        assert tops == sorted(tops)
        for summary in page.get_by_text("In numbers").all():
            summary.click()
        check(page)
        folder = Path(os.environ.get("MAILGLASS_TEST_SCREENSHOTS", tmp_path))
        page.locator("#curves").screenshot(path=folder / f"numbers-{width}.png")
        table = page.locator("#backlog-numbers .scroll")
        if table.evaluate("one => one.scrollWidth > one.clientWidth"):
            assert "gradient" in table.evaluate("one => getComputedStyle(one).backgroundImage")


def test_when_the_server_is_gone_the_page_says_so(mailglass_database, redis_url, context):
    """What is shown stays, with since when it is out of date."""
    laid_out(mailglass_database, 10)
    with serving(mailglass_database.url, redis_url) as (process, address):
        page = context.new_page()
        page.goto(address)
        process.terminate()
        expect(page.locator("#refreshed")).to_contain_text("No answer since", timeout=20 * SECONDS)
        expect(page.locator("#figures dd").first).to_have_text("10")


def test_when_the_database_is_there_again_the_page_is(mailglass_database, redis_url, context):
    """Without anybody doing anything; an address that leads nowhere is not asked for again."""
    laid_out(mailglass_database, 10)
    with serving(mailglass_database.url, redis_url) as (_, address), mailglass_database.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        page = context.new_page()
        page.goto(f"{address}nowhere")
        expect(page.get_by_role("button", name="Pause updates")).to_be_hidden()
        connection.exec_driver_sql("ALTER TABLE mailglass_reconcile_runs RENAME TO away")
        assert page.goto(address).status == 503
        check(page)
        connection.exec_driver_sql("ALTER TABLE away RENAME TO mailglass_reconcile_runs")
        expect(page.locator("#figures dd").first).to_have_text("10", timeout=20 * SECONDS)


@pytest.mark.parametrize("host", ["127.0.0.1", "mail.test"])
def test_the_form_signs_in_and_leads_to_the_page_that_was_requested(mailglass_database, redis_url, chromium, host):
    """With the keyboard alone; signing out leads back to the form.

    Without HTTPS, a browser says where a form comes from by `Origin`, unless the referrer policy hides it, and to this
    machine by `Sec-Fetch-Site`, too.
    """
    laid_out(mailglass_database, 10)
    with serving(mailglass_database.url, redis_url) as (_, here), chromium.new_context() as context:
        address = here.replace("127.0.0.1", host)
        context.add_init_script(VIOLATIONS)
        page = context.new_page()
        page.goto(f"{address}orphans?order=newest")
        check(page)
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_be_visible()
        page.keyboard.type(TOKEN)
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"{address}orphans?order=newest")
        assert page.evaluate("document.cookie") == ""
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "content"
        check(page)
        page.get_by_role("button", name="Sign out").click()
        expect(page).to_have_url(address)
        expect(page.get_by_label("Token")).to_be_visible()
