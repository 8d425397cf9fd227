"""Uses the dashboard in a real browser; see scripts/dashboard-test.

Each check is a function whose name says what must hold. All of them run, on one page after another; the exit code is 1
when one has failed.
"""

import json
import re
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

DESKTOP = {"width": 1280, "height": 1000}
PHONE = {"width": 390, "height": 844}
# As GET /lag and GET /health answer them.
LAG = {
    "group": "g", "topic": "t", "totalLag": 1234, "lagSeconds": 2.5, "arrivalRate": 120.4, "drainRate": 80.0,
    "secondsToDrain": None, "recommendedReplicas": 2, "unknownPartitions": [2],
    "partitions": [
        {"partition": 0, "lag": 0, "lagSeconds": 0, "worker": "worker-1"},
        {"partition": 1, "lag": 1234, "lagSeconds": 2.5, "worker": "worker-1"},
        {"partition": 2, "lag": None, "lagSeconds": None, "worker": None},
    ],
}
CHECK = {"ok": True, "reason": "it answers", "since": "2026-02-17T10:00:00.000Z"}
DOWN = {"ok": False, "reason": "Redis does not answer", "since": "2026-02-17T10:00:00.000Z"}
HEALTH = {
    "status": "degraded", "producer": "connected", "store": "disconnected", "consumer": "connected", "version": "9.9.9",
    "checks": {"producer": CHECK, "store": DOWN, "consumer": CHECK},
    "workers": [{"name": "worker-7", "partitions": [0, 1, 2, 5], "stored": 4321, "lag": None, "seen": CHECK["since"]}],
    "deadLetters": {"json": 1, "enum": 1203},
}


class Dashboard:
    """A page in a browser context of its own that remembers what went wrong in it."""

    def __init__(self, browser: Browser, url: str, path: str = "/", **context: object) -> None:
        self.url = url
        self.context = browser.new_context(viewport=context.pop("viewport", DESKTOP), **context)
        self.page: Page = self.context.new_page()
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.path = path

    def _on_console(self, message: object) -> None:
        # A browser reports each reply that is not a success; an API without /lag is allowed.
        if message.type in ("error", "warning") and not message.location.get("url", "").endswith("/lag"):
            self.errors.append(message.text)

    def __enter__(self) -> Page:
        self.page.goto(self.url + self.path)
        return self.page

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.context.close()
        if kind is None:
            assert not self.errors, f"the console says: {self.errors}"
            others = {host for host in self.hosts if host} - {urlsplit(self.url).netloc}
            assert not others, f"other hosts were asked: {others}"


def post(url: str, user: str, kind: str = "LOGIN", payload: dict | None = None) -> str:
    """Publishes an event past the page; gives its id."""
    body = json.dumps({"userId": user, "eventType": kind, "payload": payload or {}}).encode()
    request = urllib.request.Request(url + "/events/generate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)["eventId"]


def live(page: Page) -> Page:
    expect(page.locator("#stream")).to_have_text("live")
    return page


def a_posted_event_is_followed_until_it_is_in_the_tail(browser: Browser, url: str) -> None:
    with Dashboard(browser, url) as page:
        live(page)
        page.get_by_label("User", exact=True).fill("a-user & <b>markup</b>")
        page.get_by_label("Type", exact=True).select_option("PRODUCT_VIEW")
        page.get_by_label("Payload").fill('{"product": "p-1", "price": 1.50}')
        page.get_by_role("button", name="Send").click()
        steps = page.locator("#way li")
        expect(steps).to_have_count(2)
        expect(steps.nth(1)).to_contain_text(re.compile(r"Processed.*by .+, partition \d+, offset \d+"), timeout=20_000)
        event_id = steps.nth(0).locator("small").inner_text()
        row = page.locator(f'#events tr[data-id="{event_id}"]')
        expect(row).to_contain_text("a-user & <b>markup</b>")
        expect(row).to_have_class("own")


def what_is_no_object_is_not_sent(browser: Browser, url: str) -> None:
    with Dashboard(browser, url) as page:
        live(page)
        page.get_by_label("Payload").fill("[1]")
        page.get_by_role("button", name="Send").click()
        assert page.get_by_label("Payload").evaluate("field => field.validationMessage").startswith("The payload must")
        expect(page.locator("#way li")).to_have_count(0)


def a_refusal_is_shown_with_its_reason(browser: Browser, url: str) -> None:
    dashboard = Dashboard(browser, url)
    with dashboard as page:
        live(page)
        page.get_by_label("User", exact=True).fill("  ")
        page.get_by_role("button", name="Send").click()
        expect(page.locator("#way li")).to_contain_text("userId is required and must be a non-empty string")
        # The browser's own words about the 400.
        dashboard.errors.clear()


def a_paused_tail_waits_and_a_filter_hides(browser: Browser, url: str) -> None:
    with Dashboard(browser, url) as page:
        live(page)
        page.get_by_role("button", name="Pause").click()
        first = post(url, "paused-user")
        expect(page.get_by_role("button", name="Resume (1)")).to_be_visible(timeout=10_000)
        expect(page.locator(f'tr[data-id="{first}"]')).to_have_count(0)
        page.get_by_role("button", name="Resume").click()
        expect(page.locator(f'tr[data-id="{first}"]')).to_be_visible()
        page.locator("#filter").fill("another-user")
        expect(page.locator(f'tr[data-id="{first}"]')).to_be_hidden()
        second = post(url, "another-user", "LOGOUT")
        expect(page.locator(f'tr[data-id="{second}"]')).to_be_visible(timeout=10_000)
        page.locator("#filter-type").select_option("LOGIN")
        expect(page.locator(f'tr[data-id="{second}"]')).to_be_hidden()


def a_stream_that_breaks_off_is_taken_up_where_it_was(browser: Browser, url: str) -> None:
    dashboard = Dashboard(browser, url)
    with dashboard as page:
        live(page)
        asked = []
        page.on("request", lambda request: asked.append(request.headers) if request.url.endswith("/stream") else None)
        before = post(url, "before")
        expect(page.locator(f'tr[data-id="{before}"]')).to_be_visible(timeout=10_000)
        page.evaluate("tail.restart()")
        missed = post(url, "meanwhile")
        expect(page.locator(f'tr[data-id="{missed}"]')).to_be_visible(timeout=10_000)
        assert asked[0]["last-event-id"], asked


def a_stream_that_is_away_says_why_and_a_pause_does_not_hide_it(browser: Browser, url: str) -> None:
    dashboard = Dashboard(browser, url)
    with dashboard as page:
        live(page)
        problem = json.dumps({"detail": "the store can't be read"})
        page.route("**/events/stream", lambda route: route.fulfill(status=503, content_type="application/problem+json", body=problem))
        page.get_by_role("button", name="Pause").click()
        expect(page.locator("#stream")).to_have_text("paused")
        page.evaluate("tail.restart()")
        expect(page.locator("#stream")).to_have_text("no stream: the store can't be read", timeout=10_000)
        page.get_by_role("button", name="Resume").click()
        expect(page.locator("#stream")).to_have_text("no stream: the store can't be read")
        page.unroute("**/events/stream")
        expect(page.locator("#stream")).to_have_text("live", timeout=30_000)
        # The browser's own words about the 503.
        dashboard.errors.clear()


def a_key_panel_that_was_closed_stays_closed(browser: Browser, url: str) -> None:
    dashboard = Dashboard(browser, url)
    refused = {"status": 403, "content_type": "application/problem+json", "body": "{}"}
    dashboard.page.route("**/lag", lambda route: route.fulfill(**refused))
    with dashboard as page:
        expect(page.get_by_text("This API asks for a key.")).to_be_visible(timeout=10_000)
        page.get_by_role("button", name="API key").click()
        expect(page.locator("#key-panel")).to_be_hidden()
        for _ in range(2):
            with page.expect_response("**/lag"):
                pass
        expect(page.locator("#key-panel")).to_be_hidden()
        dashboard.errors.clear()


def a_key_goes_with_every_request_and_is_kept_for_the_tab(browser: Browser, url: str) -> None:
    dashboard = Dashboard(browser, url)
    with dashboard as page:
        live(page)
        # Whether this key is good is not the page's business.
        page.route("**/events/stream", lambda route: route.fulfill(status=401, content_type="application/problem+json", body="{}"))
        page.evaluate("tail.restart()")
        expect(page.get_by_text("This API asks for a key.")).to_be_visible(timeout=10_000)
        page.unroute("**/events/stream")
        page.get_by_label("API key").fill("a-key")
        with page.expect_request("**/events/stream") as asked:
            page.get_by_role("button", name="Use it").click()
        assert asked.value.headers["authorization"] == "Bearer a-key"
        assert page.evaluate("sessionStorage.getItem('apiKey')") == "a-key"
        # The browser's own words about the 401.
        dashboard.errors.clear()


def lag_and_workers_are_shown_where_the_api_says_them(browser: Browser, url: str) -> None:
    dashboard = Dashboard(browser, url)
    dashboard.page.route("**/lag", lambda route: route.fulfill(json=LAG))
    dashboard.page.route("**/health", lambda route: route.fulfill(json=HEALTH, status=503))
    with dashboard as page:
        expect(page.locator("#lag-total")).to_have_text("1,234")
        expect(page.locator("#rate-in")).to_have_text("120")
        expect(page.locator(".partition")).to_have_count(3)
        expect(page.locator("#lag-note")).to_contain_text("partition 2")
        expect(page.locator("#overall")).to_have_text("degraded")
        expect(page.locator("#parts")).to_contain_text("Redis does not answer")
        expect(page.locator("#workers tr")).to_contain_text("0–2, 5")
        expect(page.locator("#dead-total")).to_have_text("1,204")
        expect(page.locator("#dead-note")).to_have_text("by reason: enum 1,203, json 1")
        # The browser's own words about the 503.
        dashboard.errors.clear()


def an_api_without_lag_is_said_to_be_one(browser: Browser, url: str) -> None:
    dashboard = Dashboard(browser, url)
    dashboard.page.route("**/lag", lambda route: route.fulfill(status=404, content_type="application/problem+json", body="{}"))
    with dashboard as page:
        expect(page.locator("#lag-note")).to_have_text("this API has no /lag")


def dead_letters_are_not_shown_where_nobody_counts_them(browser: Browser, url: str) -> None:
    dashboard = Dashboard(browser, url)
    dashboard.page.route("**/health", lambda route: route.fulfill(json={**HEALTH, "deadLetters": None}))
    with dashboard as page:
        expect(page.locator("#overall")).to_have_text("degraded")
        expect(page.locator("#dead")).to_be_hidden()


def the_keyboard_is_enough(browser: Browser, url: str) -> None:
    with Dashboard(browser, url) as page:
        live(page)
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.locator("#user").focus()
        page.keyboard.press("Tab")
        expect(page.locator("#type")).to_be_focused()
        width = page.locator("#type").evaluate("field => getComputedStyle(field).outlineWidth")
        assert width == "3px", width
        page.locator("#user").press("Enter")
        expect(page.locator("#way li").first).to_contain_text("Accepted", timeout=10_000)


def every_field_has_a_name_and_every_text_its_contrast(browser: Browser, url: str) -> None:
    script = Path(__file__).with_name("dashboard_audit.js").read_text()
    for scheme in ("light", "dark"):
        with Dashboard(browser, url, color_scheme=scheme) as page:
            live(page)
            page.get_by_role("button", name="Send").click()
            expect(page.locator("#way li").nth(1)).to_contain_text("Processed", timeout=20_000)
            page.get_by_role("button", name="API key").click()
            found = page.evaluate(script)
            assert not found, f"{scheme}: {found}"


def nothing_is_wider_than_a_phone(browser: Browser, url: str) -> None:
    with Dashboard(browser, url, viewport=PHONE) as page:
        live(page)
        post(url, "u" * 200, payload={"long": "x" * 500})
        expect(page.locator("#events tr").first).to_be_visible(timeout=10_000)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"], width
        cards = page.locator("main > .card").evaluate_all("cards => cards.map(card => card.offsetWidth)")
        assert min(cards) > 0.9 * PHONE["width"], f"cards stand side by side: {cards}"


def swagger_ui_shows_every_operation(browser: Browser, url: str) -> None:
    with Dashboard(browser, url, "/docs") as page:
        expect(page.locator(".opblock").first).to_be_visible(timeout=20_000)
        with urllib.request.urlopen(url + "/openapi.json") as reply:
            paths = json.load(reply)["paths"].values()
        expect(page.locator(".opblock")).to_have_count(sum(len(path) for path in paths))


CHECKS = [
    a_posted_event_is_followed_until_it_is_in_the_tail,
    what_is_no_object_is_not_sent,
    a_refusal_is_shown_with_its_reason,
    a_paused_tail_waits_and_a_filter_hides,
    a_stream_that_breaks_off_is_taken_up_where_it_was,
    a_stream_that_is_away_says_why_and_a_pause_does_not_hide_it,
    a_key_panel_that_was_closed_stays_closed,
    a_key_goes_with_every_request_and_is_kept_for_the_tab,
    lag_and_workers_are_shown_where_the_api_says_them,
    an_api_without_lag_is_said_to_be_one,
    dead_letters_are_not_shown_where_nobody_counts_them,
    the_keyboard_is_enough,
    every_field_has_a_name_and_every_text_its_contrast,
    nothing_is_wider_than_a_phone,
    swagger_ui_shows_every_operation,
]


def screenshot(browser: Browser, url: str, to: Path, **context: object) -> None:
    """The page with a little traffic on it."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with Dashboard(browser, url, **context) as page:
        live(page)
        page.get_by_role("button", name="Send").click()
        kinds = ["LOGIN", "PRODUCT_VIEW", "PRODUCT_VIEW", "LOGOUT"]
        for number in range(160):
            for _ in range(1 + (number * 7) % 5 + number // 40 % 2 * 3):
                kind = kinds[number % 4]
                post(url, f"user-{number % 9}", kind, {"product": f"p-{number % 23}"} if kind == "PRODUCT_VIEW" else {"device": "phone"})
            page.wait_for_timeout(250)
        expect(page.locator("#way li").nth(1)).to_contain_text("Processed")
        page.screenshot(path=to, full_page=True)


def main() -> int:
    chromium, url, picture, folder = sys.argv[1], sys.argv[2].rstrip("/"), Path(sys.argv[3]), sys.argv[4]
    failed = 0
    with sync_playwright() as playwright:
        # The sandbox wants rights that a container does not give; the page is our own.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for check in CHECKS:
            try:
                check(browser, url)
                print(f"ok      {check.__name__}")
            except (AssertionError, Error) as error:
                failed += 1
                print(f"FAILED  {check.__name__}\n{error}")
        screenshot(browser, url, picture)
        if folder:
            screenshot(browser, url, Path(folder, "dark.png"), color_scheme="dark")
            screenshot(browser, url, Path(folder, "phone.png"), viewport=PHONE)
        browser.close()
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} passed; the screenshot is {picture}")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
