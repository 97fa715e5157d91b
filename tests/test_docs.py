"""The documents name what exists, and stay short enough to be read."""

import itertools
import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from dpo_train.config import DataConfig
from dpo_train.config_base import override, parse
from dpo_train.data import load_pairs
from dpo_train.data.row import text_of
from dpo_train.scoring import metrics
from tests.conftest import ROOT
from tune.config.schema import SearchConfig

PACKAGES = ("", "tune", "dpo_train")
FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md", "CHANGELOG.md")]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [*FRONT, *PAGES]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    """The text without blocks of code and code in a line, in which brackets are no links."""
    return re.sub(r"`[^`\n]+`", "`code`", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S))


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings: letters, digits, `_` and `-`, a hyphen for each space."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.M | re.S)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.M):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        repeated = [f"{anchor}-{number}" for number in range(1, 20)]
        found.add(next(each for each in [anchor, *repeated] if each not in found))
    return found


def dead_links(page: Path, text: str) -> list[str]:
    """The links of a page's text to files and headings that don't exist."""
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"[a-z]+:", target):  # another site
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place) if place else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
    return dead


@pytest.mark.parametrize("page", DOCUMENTS, ids=named)
def test_no_link_to_a_file_or_a_heading_is_dead(page: Path) -> None:
    assert dead_links(page, page.read_text()) == []


def test_a_dead_link_is_found() -> None:
    page = ROOT / "docs" / "data.md"
    text = "[a](gone.md) [b](trust.md#gone) [c](trust.md#metrics) [d](#the-forms) `[e](f)`"
    assert dead_links(page, text) == ["gone.md", "trust.md#gone"]


def test_the_readme_is_read_in_minutes() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 10_000


@pytest.mark.parametrize("page", [*FRONT[:3], *PAGES], ids=named)
def test_a_page_is_short_and_its_lines_are(page: Path) -> None:
    """A row of a table can't be broken, and code is not text."""
    assert len(page.read_text().splitlines()) < 300
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.M | re.S)
    assert [line for line in text.splitlines() if len(line) > 120 and line[0] != "|"] == []


def test_every_page_is_reached_from_the_readme_or_the_file_map() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = {page.name for page in PAGES if f"docs/{page.name}" not in readme}
    assert missing <= {"files.md"}
    assert "files.md" in readme


def test_documents_that_sources_name_exist() -> None:
    """In messages, YAMLs and comments: `docs/data.md`."""
    missing = set()
    for folder in ("dpo_train", "tune", "serve", "searches", "deploy", "benchmarks"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".yaml", ".json", ".md", ".html", ".jinja", ".ipynb"}:
                for page in re.findall(r"\bdocs/(\w+\.md)", path.read_text()):
                    if not (ROOT / "docs" / page).exists():
                        missing.add(f"{named(path)}: {page}")
    assert missing == set()


def test_the_rule_of_the_winner_is_where_sources_say() -> None:
    assert "## Which trial wins" in (ROOT / "docs" / "trust.md").read_text()
    objective = SearchConfig.model_fields["objective"]
    assert "docs/trust.md" in str(objective.description)
    assert "docs/trust.md" in (ROOT / "tune" / "config" / "load.py").read_text()


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


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "AGENTS.md", "docs/troubleshooting.md"])
def test_files_that_a_guide_names_exist(page: str) -> None:
    """`<form>.py` stands for a new file, and so does MLflow's."""
    paths = set(re.findall(r"`([\w./]+/[\w.]+\.\w+)`", (ROOT / page).read_text()))
    assert len(paths) > 3 or page == "AGENTS.md"
    made = {"tune/tracking/mlflow_tracker.py", "tests/tune/tracking/test_mlflow_tracker.py"}
    of_a_run = {path for path in paths if path.startswith(("runs/", "trials/", "tracking/"))}
    bases = [ROOT, ROOT / "tests" / "tune", ROOT / "dpo_train" / "trainers"]
    missing = {
        path
        for path in paths - made - of_a_run
        if not any((base / path).exists() for base in bases)
    }
    assert missing == set()


def examples() -> list[tuple[str, str]]:
    """The JSON rows of docs/data.md, each with the heading above it."""
    text = (ROOT / "docs" / "data.md").read_text()
    found = []
    for section in re.split(r"^### ", text, flags=re.M)[1:]:
        heading = section.splitlines()[0]
        found += [(heading, row) for row in re.findall(r"```json\n(.*?)```", section, re.S)]
    return found


@pytest.mark.parametrize(("form", "row"), examples(), ids=lambda value: value[:30])
def test_every_example_of_a_form_is_read_as_the_same_pair(
    form: str, row: str, tmp_path: Path
) -> None:
    """Twelve rows with other numbers, so that each split has some."""
    file = tmp_path / "rows.jsonl"
    rows = [row.replace("follows 1?", f"follows {number}?") for number in range(12)]
    file.write_text("".join(json.dumps(json.loads(each)) + "\n" for each in rows))
    columns = {"columns.prompt": "conversations"} if form == "ShareGPT" else {}
    splits = load_pairs(override(DataConfig(id=str(file)), columns)).splits
    pairs = [pair for split in splits.values() for pair in split]
    assert sorted(text_of(pair.prompt[-1:]) for pair in pairs) == sorted(
        f"Which number follows {number}?" for number in range(12)
    )
    assert {text_of(pair.chosen[-1:]).strip() for pair in pairs} == {"The answer is 2."}
    assert {text_of(pair.rejected[-1:]).strip() for pair in pairs} == {"It must be 1."}


def test_every_form_has_an_example() -> None:
    text = (ROOT / "docs" / "data.md").read_text()
    forms = text[text.index("## The forms") : text.index("## Rows that can")]
    assert {form for form, _ in examples()} == set(re.findall(r"^### (.+)$", forms, re.M))


def yamls() -> list[tuple[str, str]]:
    """The blocks of YAML in the documents."""
    found = []
    for page in [FRONT[0], *PAGES]:
        blocks = re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.S | re.M)
        found += [(named(page), block) for block in blocks]
    return found


@pytest.mark.parametrize(("page", "block"), yamls(), ids=lambda value: value[:30])
def test_every_yaml_in_the_documents_is_understood(page: str, block: str) -> None:
    content = YAML(typ="safe", pure=True).load(block)
    parse(SearchConfig, {"name": "documented", **content}, {}, page)


def metric_table() -> list[str]:
    """Return the table of docs/trust.md, made from the catalogue of metrics."""
    rows = [
        [f"`{metric.name}`", *(cell or "–" for cell in (metric.direction, metric.unit)),
         "–" if metric.base is None else f"{metric.base:.3g}", metric.meaning]
        for metric in metrics.METRICS
    ]  # fmt: skip
    lines = [["metric", "better", "unit", "base", "meaning"], ["---"] * 5, *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def documented_metrics() -> list[str]:
    lines = (ROOT / "docs" / "trust.md").read_text().splitlines()
    begins = lines.index("| metric | better | unit | base | meaning |")
    return list(itertools.takewhile(lambda line: line.startswith("|"), lines[begins:]))


def test_the_table_of_metrics_is_the_catalogue() -> None:
    """If this fails, replace the page's table with what `metric_table()` returns."""
    assert documented_metrics() == metric_table()
