"""The whole page: self-contained, complete, honest about what is missing, safe against hostile text."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.report.synthetic_study import rows, write_study

from isoflop.errors import InputError, RunError
from isoflop.report import write_report
from isoflop.report.embed import inline_svg
from isoflop.report.evidence import Evidence
from isoflop.report.page import _commands
from isoflop.report.records import StudyRecords
from isoflop.report.sections import sections
from isoflop.report.style import LIGHT

FIGURES = (
    "isoflop",
    "granularity",
    "frontier",
    "parity",
    "residuals",
    "verification",
    "efficiency",
    "load",
    "training",
)


class Elements(HTMLParser):
    """Every start tag with its attributes, and whether tags are closed in order."""

    VOID = frozenset({"meta", "br", "link", "img", "path", "use", "rect", "stop"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture(scope="module")
def html(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def section(html: str, key: str) -> str:
    found = re.search(rf'<section id="{key}">(.*?)</section>', html, re.DOTALL)
    assert found, key
    return found[1]


def test_the_page_fetches_nothing(html: str) -> None:
    elements = Elements(html)
    assert not elements.wrong
    assert not elements.open
    assert not [tag for tag, _ in elements.tags if tag in ("link", "img", "iframe", "object", "embed")]
    for tag, attributes in elements.tags:
        assert "src" not in attributes, tag
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,")), attributes
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert "http" not in re.sub(r"<pre>.*?</pre>", "", html, flags=re.DOTALL)


def test_ids_are_unique_and_references_resolve(html: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html):
        assert "".join(reference) in ids


def test_every_figure_is_in_the_page_with_words_and_beside_it_in_files(page: Path, html: str) -> None:
    assert html.count("<figure>") == len(FIGURES)
    for svg in re.findall(r"<svg[^>]*>", html):
        assert 'role="img"' in svg
        assert len(re.search(r'aria-label="([^"]*)"', svg)[1]) > 20  # type: ignore[index]
    assert html.count("<svg") == 2 * len(FIGURES)  # wide and narrow
    written = {path.name for path in (page.parent / "figures").iterdir()}
    assert written == {f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "svg")}


@pytest.mark.parametrize("name", FIGURES)
def test_no_figure_is_blank(page: Path, name: str) -> None:
    from matplotlib.image import imread

    pixels = imread(page.parent / "figures" / f"{name}.png")[..., :3]
    background = pixels[0, 0]
    drawn = (abs(pixels - background) > 0.1).any(axis=2)
    assert drawn.mean() > 0.005
    # nothing is cut at the edge of the picture
    assert not drawn[0].any()
    assert not drawn[-1].any()
    assert not drawn[:, 0].any()
    assert not drawn[:, -1].any()
    assert "<path" in (page.parent / "figures" / f"{name}.svg").read_text(encoding="utf-8")


def test_colours_in_the_page_follow_light_and_dark(html: str) -> None:
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert "var(--ink)" in svg
        assert not [color for color in LIGHT.values() if color in svg.lower()]
    assert "prefers-color-scheme: dark" in html


def test_every_run_stands_in_the_table_and_failed_ones_show_their_error_escaped(html: str) -> None:
    table = section(html, "runs")
    assert table.count("<tr") == len(rows()) + 1
    assert table.count('class="bad"') == 2
    assert "loss is NaN at step 131" in table
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; out of memory" in table
    assert "<script>alert" not in html
    assert "2 without" in table


def test_numbers_sort_as_numbers(html: str) -> None:
    first = re.search(r"<tbody>\s*<tr>(.*?)</tr>", section(html, "runs"), re.DOTALL)
    assert first
    values = re.findall(r'data-sort="([^"]+)"', first[1])
    assert float(values[0]) == 1e12
    assert len(values) > 10


def test_nothing_is_missing_from_a_full_study(html: str) -> None:
    assert "Not available" not in re.sub(r'<section id="efficiency">.*?</section>', "", html, flags=re.DOTALL)


def test_commands_versions_and_the_study_file_are_there(html: str, study: Path) -> None:
    text = section(html, "provenance")
    assert f"isoflop study run {study}/study.yaml --out {study}" in text
    assert f"isoflop report {study}" in text
    assert "granularity: [1, 2, 4, 8, 16]" in text
    assert "exact" in text


def test_the_command_names_the_file_that_the_study_was_started_with(tmp_path: Path) -> None:
    records = StudyRecords.open(write_study(tmp_path / "my study", run_files=False))
    assert records.study_file == str(tmp_path / "my study" / "study.yaml")
    (records.directory / "plan.json").write_text('{"study_file": "studies/tiny.yaml"}')
    assert _commands(records).splitlines()[0] == f"isoflop study run studies/tiny.yaml --out '{tmp_path}/my study'"


def test_a_table_alone_gives_a_report_that_names_what_is_missing(tmp_path: Path) -> None:
    table = [row for row in rows() if row["architecture"] in ("dense", "moe-e8-g4") and row["budget"] == 1e12]
    kept = ("run_id", "architecture", "budget", "params_active", "params_total", "tokens", "flops", "loss")
    table = [{name: row[name] for name in (*kept, "granularity", "expansion_rate")} for row in table]
    directory = write_study(tmp_path / "bare", table, run_files=False)
    (directory / "study.yaml").unlink()
    html = write_report(directory, tmp_path / "out").read_text(encoding="utf-8")
    assert "<h1>bare</h1>" in html
    assert html.count("<figure>") >= 3
    for key, reason in (
        ("law", "no fits.json"),
        ("verification", "no verification.json"),
        ("load", "no run recorded"),
        ("training", "no run of the table has a metrics.jsonl"),
        ("efficiency", "fewer than two isoFLOP minima"),
        ("provenance", "study.yaml is missing"),
    ):
        assert "Not available" in section(html, key), key
        assert reason in section(html, key), key
    assert not (directory / "report").exists()


def test_a_study_whose_runs_all_failed_still_has_a_report(tmp_path: Path) -> None:
    table = [{**row, "status": "failed", "loss": None, "error": "out of memory"} for row in rows()[:3]]
    html = write_report(write_study(tmp_path / "lost", table)).read_text(encoding="utf-8")
    assert "no run has ended with a loss" in section(html, "headline")
    assert section(html, "runs").count("out of memory") == 3
    assert "<figure>" not in html


def test_unreadable_json_is_missing_not_fatal(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "torn", [row for row in rows() if row["budget"] == 1e12][:4])
    (directory / "fits.json").write_text('{"laws": [{"law": "chinchilla"')
    (directory / "verification.json").write_text("[]")
    (directory / "study.yaml").write_text("name: [")
    for run in (directory / "runs").iterdir():
        (run / "metrics.jsonl").write_text('{"step": 1, "tokens": 5, "loss": 3.0}\n{"step": 2, "tok')
    html = write_report(directory).read_text(encoding="utf-8")
    for key in ("law", "verification", "training"):
        assert "Not available" in section(html, key)
    (directory / "fits.json").write_text('{"laws": [{"law": "chinchilla"}], "notes": ["no law for moe."]}')
    html = write_report(directory).read_text(encoding="utf-8")
    assert "no law for moe." in section(html, "law")
    assert "cannot be read" in section(html, "law")


def test_a_wrong_directory_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"not a study directory .* no runs.csv"):
        write_report(tmp_path)
    (tmp_path / "runs.csv").write_text("run_id,loss\n")
    with pytest.raises(InputError, match=r"runs.csv has no rows"):
        write_report(tmp_path)


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_extra_names_the_command(study: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(InputError, match=rf"{package} is not installed .* pip install 'isoflop\[report\]'"):
        write_report(study)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "study", rows()[:2], run_files=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_report(directory, tmp_path / "file")


def test_a_figure_is_the_same_each_time(study: Path, evidence: Evidence) -> None:
    records = StudyRecords.open(study)
    drawn = []
    for _ in range(2):
        plot = sections(records, evidence)[2].plots[0]
        drawn.append(inline_svg(plot.draw(5.0), prefix="x", description=plot.description))
    assert drawn[0] == drawn[1]


def test_a_study_of_depth_routing_shows_its_capacities(tmp_path: Path) -> None:
    """Its own section and columns, none about granularity, and the dense model to compare with."""
    dense = [dict(row, depth_capacity=1, depth_router="none") for row in rows() if row["architecture"] == "dense"]
    routed = [
        dict(row, architecture="mod-c.5", depth_capacity=0.5, depth_router="learned", run_id=f"mod-{row['run_id']}")
        for row in dense
    ]
    page = write_report(write_study(tmp_path / "study", dense + routed)).read_text(encoding="utf-8")
    assert "What depth routing does" in page
    assert "What granularity does" not in page
    assert "How much compute the experts and the routing of depth save" in page
    assert "depth router" in page
    plain = write_report(write_study(tmp_path / "plain", dense)).read_text(encoding="utf-8")
    assert "depth router" not in plain
    assert "What depth routing does" not in plain
