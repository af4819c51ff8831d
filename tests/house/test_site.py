"""The documentation: its pages and notebooks run, and the site has no dead link and loads nothing from elsewhere."""

import importlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import keras
import numpy as np
import pytest

import sdkeras
from pages_of_text import run_page
from sdkeras.datasets import load_digits

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
REPORTS = sorted((DOCS / "runs").glob("*.json"))


def test_figures_are_small() -> None:
    figures = sorted((DOCS / "figures").iterdir())
    assert len(figures) >= 6
    assert all(file.stat().st_size < 60_000 for file in figures)


def test_every_page_of_docs_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    assert all(f" {page.name}\n" in navigation for page in DOCS.glob("*.md"))


def test_the_reference_has_every_public_name() -> None:
    """Of the packages whose names `__all__` lists."""
    reference = "".join((DOCS / name).read_text() for name in ("api.md", "api-more.md"))
    for package in ("sdkeras", "sdkeras.callbacks", "sdkeras.datasets", "sdkeras.study", "sdkeras.testing"):
        for name in set(importlib.import_module(package).__all__) - {"SdkerasError"}:  # sdkeras.errors is there whole
            assert re.search(rf"\b{name}\b", reference), name


@pytest.mark.slow
def test_the_tutorial_runs_and_says_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_page((DOCS / "tutorial.md").read_text(), tmp_path, monkeypatch)
    low, better = (
        json.loads((tmp_path / f"{name}.json").read_text())["edge_of_stability"] for name in ("low", "better")
    )
    assert 0.05 < low["ratio"] < 0.2  # "ten times too low"
    assert low["ratio"] < better["ratio"] < 5 * low["ratio"]  # a flatter place
    before, destroyed = names["before"], names["destroyed"]
    assert isinstance(before, sdkeras.Analysis)
    assert isinstance(destroyed, keras.Model)
    assert before.edge_of_stability.ratio is not None
    assert before.edge_of_stability.ratio > 1
    images, labels = load_digits()
    assert destroyed.evaluate(images[..., None], labels, verbose=0)[0] > np.log(10)  # worse than chance


@pytest.mark.slow
def test_the_how_tos_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page((DOCS / "how-to.md").read_text(), tmp_path, monkeypatch)
    assert (tmp_path / "run" / "track.html").is_file()
    assert (tmp_path / "study" / "study.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()


class References(HTMLParser):
    """What a page loads, what it links to, and the places in it."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.places: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value is not None}
        self.places |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" or (tag == "link" and found.get("rel") in {"prev", "next", "canonical"}):
            self.linked += [found["href"]] if "href" in found else []
        else:
            self.loaded += [found[name] for name in ("src", "href") if name in found]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, References]:
    pytest.importorskip("mkdocs", reason="`make docs` installs what builds the site")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "-d", str(folder)]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    pages = {}
    for path in sorted(folder.rglob("*.html")):
        pages[path.resolve()] = References()
        pages[path.resolve()].feed(path.read_text())
    return pages


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: dict[Path, References]) -> None:
    assert len(site) > 20
    for path, page in site.items():
        assert not [each for each in page.loaded if urlparse(each).scheme not in {"", "data"}], path


@pytest.mark.slow
def test_links_within_the_site_lead_somewhere(site: dict[Path, References]) -> None:
    for path, page in site.items():
        for link in [*page.loaded, *page.linked]:
            if path.name == "404.html" or urlparse(link).scheme:
                continue
            target, place = urldefrag(unquote(link))
            file = (path.parent / target).resolve() if target else path
            file = file / "index.html" if file.is_dir() and (file / "index.html").exists() else file
            assert file.exists(), (path.name, link)
            if place and file in site:
                assert place in site[file].places, (path.name, link)


@pytest.mark.slow
def test_the_site_has_the_reports_of_the_gallery(site: dict[Path, References]) -> None:
    names = {path.name for path in site}
    assert REPORTS
    assert {f"{each.stem}.html" for each in REPORTS} <= names
