"""Pictures of a running server's pages in headless Chromium: desktop, phone width, dark, Chinese. For looking at them.

Needs playwright and Chromium: pip install playwright, then apt-get install chromium or `playwright install chromium`.

    python -m scripts.screenshots http://127.0.0.1:7860 out/screenshots
"""
import argparse
import shutil
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.refusal import refuse  # noqa: E402

QUESTION = "What color is the sky?"
DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}
VIEWS = {  # name: (path, window, colour scheme, language)
    "chat-desktop": ("/", DESKTOP, "light", "en"), "chat-phone": ("/", PHONE, "light", "en"),
    "chat-dark": ("/", DESKTOP, "dark", "en"), "chat-phone-dark-zh": ("/", PHONE, "dark", "zh-CN"),
    "phone": ("/phone", PHONE, "light", "en"),
    "phone-dark-zh": ("/phone", PHONE, "dark", "zh-CN"), "tab-phone": ("/", PHONE, "light", "en"),
    "tab-voices": ("/", PHONE, "light", "en"),
}
TIMEOUT_MS = 120_000


@contextmanager
def chromium(microphone: Path | None = None):
    """A headless browser that grants microphone and camera; the former hears the WAV once, if one is given.

    ImportError without playwright, RuntimeError without Chromium.
    """
    from playwright.sync_api import Error, sync_playwright

    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--use-fake-device-for-media-stream",
               "--use-fake-ui-for-media-stream", "--autoplay-policy=no-user-gesture-required"]
    if microphone is not None:
        options.append(f"--use-file-for-fake-audio-capture={microphone}%noloop")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=options, timeout=TIMEOUT_MS)
        except Error as error:
            raise RuntimeError(f"Chromium does not start: {str(error).splitlines()[0]}") from error
        try:
            yield browser
        finally:
            browser.close()


def ask(page, question: str = QUESTION) -> None:
    """Ask on the chat page and wait for the whole reply."""
    replies = page.locator("#talk small").count()
    page.fill("#question textarea", question)
    page.press("#question textarea", "Enter")
    page.locator("#talk small").nth(replies).wait_for()


def photograph(browser, address: str, name: str, folder: Path) -> Path:
    path, window, scheme, language = VIEWS[name]
    context = browser.new_context(viewport=window, color_scheme=scheme, locale=language)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(address + path)
    if name.startswith("chat"):
        ask(page)
    elif name.startswith("tab"):
        page.get_by_role("tab").nth(1 if name == "tab-phone" else 2).click()
        page.locator("#phone iframe" if name == "tab-phone" else "#enrol").wait_for()
        page.wait_for_timeout(1000)  # the frame's own page
    else:
        page.locator("#call").wait_for()
    file = folder / f"{name}.png"
    page.screenshot(path=file)
    context.close()
    return file


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", help="of a running server, such as http://127.0.0.1:7860")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", choices=VIEWS, default=list(VIEWS))
    args = parser.parse_args(argv)
    address = args.address.rstrip("/")
    try:
        urllib.request.urlopen(f"{address}/healthz", timeout=30).close()
    except (ValueError, OSError) as error:
        return refuse(error, f": no open server at {address}; start one with python -m scripts.web_demo_omni")
    args.folder.mkdir(parents=True, exist_ok=True)
    try:
        with chromium() as browser:
            for name in args.only:
                print(photograph(browser, address, name, args.folder), flush=True)
    except (ImportError, RuntimeError) as error:
        return refuse(error, " (pip install playwright; apt-get install chromium)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
