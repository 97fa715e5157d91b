"""The documents name what is there."""

import re

from tests.conftest import ROOT

PACKAGES = ("", "tune", "dpo_train")


def test_the_architecture_page_is_short_and_names_files_that_exist() -> None:
    """A path may leave out the package, as `search/driver.py` does."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert len(page.splitlines()) <= 150
    assert "docs/architecture.md" in (ROOT / "README.md").read_text()
    named = set(re.findall(r"[\w/]+/\w+\.py", page))
    assert len(named) > 10
    missing = {
        path for path in named if not any((ROOT / package / path).exists() for package in PACKAGES)
    }
    assert missing == set()


def test_links_between_the_documents_lead_somewhere() -> None:
    front = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for page in [*front, *(ROOT / "docs").glob("*.md")]:
        targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        missing = [target for target in targets if not (page.parent / target).exists()]
        assert missing == [], page
