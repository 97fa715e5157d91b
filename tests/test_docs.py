"""The documents name files, commands and metrics that exist."""

import itertools
import re

from dpo_train.scoring import metrics
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


def metric_table() -> list[str]:
    """Return the table of docs/numbers.md, made from the catalogue of metrics."""
    rows = [
        [f"`{metric.name}`", *(cell or "–" for cell in (metric.direction, metric.unit)),
         "–" if metric.base is None else f"{metric.base:.3g}", metric.meaning]
        for metric in metrics.METRICS
    ]  # fmt: skip
    lines = [["metric", "better", "unit", "base", "meaning"], ["---"] * 5, *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def documented_metrics() -> list[str]:
    lines = (ROOT / "docs" / "numbers.md").read_text().splitlines()
    begins = lines.index("| metric | better | unit | base | meaning |")
    return list(itertools.takewhile(lambda line: line.startswith("|"), lines[begins:]))


def test_the_table_of_metrics_is_the_catalogue() -> None:
    """If this fails, replace the page's table with what `metric_table()` returns."""
    assert documented_metrics() == metric_table()
