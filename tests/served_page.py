"""A served page in a browser's tab."""

from __future__ import annotations

TEXT = "the cat sat on a mat and the dog ran far"


class Tab:
    """A page, what it complained of, and where it sent requests."""

    def __init__(self, browser, url: str, width: int = 1400, dark: bool = False) -> None:
        scheme = "dark" if dark else "light"
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.problems.append(m.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        self.page.wait_for_selector("html[data-ready=yes]")

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_text_contents()

    def read(self, text: str = TEXT) -> None:
        self.page.fill("#text", text)
        self.page.click("#read")
        self.page.wait_for_selector("#contexts .token")
        self.page.wait_for_selector("#detail:not([aria-busy]) h3")

    def status(self, which: str, text: str) -> None:
        self.page.wait_for_selector(f'#{which}-status:has-text("{text}")')


def figure(value: float) -> str:
    """Four significant digits, as the page writes them."""
    size = f"{abs(value):#.4g}".rstrip(".")
    return f"−{size}" if value < 0 else size
