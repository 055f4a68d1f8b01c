"""The look of every page at both widths and in both schemes: what axe finds, and what is too wide."""

import pytest

pytest.importorskip("fastapi")
from served import write_adapters
from studio_browser import HEIGHTS, REFUSED, chromium, findings, late, visit
from studio_home import write_runs
from studio_server import studio_server

from graft.models.load import load
from graft.serve.studio.pages import PAGES

pytestmark = pytest.mark.slow
EMPTY = "an empty folder"


@pytest.fixture(scope="module")
def base():
    return load("seedling", dtype="fp32")


@pytest.fixture(scope="module")
def addresses(base, tmp_path_factory):
    """The addresses of studios: of two runs, and of an empty folder."""
    full, empty = tmp_path_factory.mktemp("full"), tmp_path_factory.mktemp("empty")
    write_runs(full)
    write_adapters(base, full, 2, scale=0.3)
    with studio_server(full, base) as first, studio_server(empty) as second:
        yield {"two runs": first, EMPTY: second}


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", sorted(HEIGHTS))
@pytest.mark.parametrize("page_of", [*PAGES, None], ids=lambda page: page.script if page else "nowhere")
def test_axe_finds_nothing_and_nothing_is_too_wide(browser, addresses, page_of, width, scheme):
    for name, address in addresses.items():
        with visit(browser, address, width=width, scheme=scheme, expected=[REFUSED]) as page:
            page.goto("/studio" + (page_of.path if page_of else "/nowhere").replace("{name}", "first"))
            page.wait_for_load_state("networkidle")
            assert not findings(page), name
            assert not late(page), name
            assert page.locator("h1").count() == 1 and page.title(), name


@pytest.mark.parametrize("page_of", PAGES, ids=lambda page: page.script)
def test_every_page_of_an_empty_studio_says_what_to_do(browser, addresses, page_of):
    with visit(browser, addresses[EMPTY], expected=[REFUSED]) as page:
        page.goto("/studio" + page_of.path.replace("{name}", "none"))
        page.wait_for_load_state("networkidle")
        told = page.locator("main").inner_text().removeprefix(page_of.title).strip()
        assert len(told) > 20, "a page without things is not an empty page"
