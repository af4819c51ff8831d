"""What the site takes from outside docs/: pages of the checkout, and the gallery's reports, drawn when it is built."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from sdkeras.reporting.html import as_html
from sdkeras.results.answers import Analysis
from sdkeras.results.log import read_run_log

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "docs" / "runs"
FROM_THE_CHECKOUT = ("CHANGELOG.md", "CONTRIBUTING.md", "examples/**/*", "tests/benchmarks/*")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the checkout's pages under their own paths, and gallery/NAME.html from each of docs/runs."""
    for pattern in FROM_THE_CHECKOUT:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and "__pycache__" not in name and files.get_file_from_path(name) is None:
                files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    for path in sorted(RUNS.glob("*.json")):
        page = as_html(Analysis.load(path))
        files.append(File.generated(config, f"gallery/{path.stem}.html", content=page))
    for path in sorted(RUNS.glob("*/sharpness.jsonl")):
        page = as_html(read_run_log(path))
        files.append(File.generated(config, f"gallery/{path.parent.name}-track.html", content=page))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links between docs/ and the rest of the checkout lead to the same pages in the site."""
    if "/" in page.file.src_uri:
        return markdown
    return markdown.replace("](../", "](").replace("](docs/", "](")
