"""What the documents say exists: options, commands of make, packages, links, formats."""

import re
from pkgutil import resolve_name

import pytest

from evopress.config import CONFIG_FOLDER, GROUPS, build_job
from tests.configurations import composed
from tests.documents import (
    DOCUMENTS,
    FORMAT_NAMES,
    FORMAT_ROWS,
    PAGES,
    README,
    ROOT,
    command_lines,
    page,
    settings_in,
    table,
)

FOLDER_OF_A_MACHINE = re.compile(r"""(?:^|[\s"'(=`])/(?:home|root|tmp|Users|mnt)/\w""", re.MULTILINE)
NOT_OURS = {
    ".venv",
    "outputs",
    ".engines",
    "build",
    ".git",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
}


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 200


def test_every_page_is_linked_from_the_readme():
    for path in PAGES[1:]:
        assert f"](docs/{path.name})" in README.read_text(), f"the README does not link to {path.name}"


def test_every_option_is_listed_and_every_listed_option_exists():
    options_of_group = {row[0].strip("`"): row[1] for row in table(page("options"), "group", "options")}
    for group in ("model", "compress", "budget", "search", "tune", "data", "tracking", "experiment"):
        options = {path.stem for path in CONFIG_FOLDER.glob(f"{group}/*.yaml") if not path.stem.startswith("_")}
        listed = {word.split()[0] for word in re.findall(r"`([^`]+)`", options_of_group[group])}
        assert options <= listed, f"{group}: {options - listed} is not listed"
        unknown = {word for word in listed - options if not re.match(rf"({group}|{'|'.join(GROUPS)})[.=]", word)}
        assert not unknown, f"{group}: {unknown} does not exist"


def test_the_papers_figures_are_those_of_the_experiment_files():
    rows = {row[0].strip("`"): " | ".join(row[1:]) for row in table(page("paper"), "`experiment=`")}
    files = {path.stem: path.read_text() for path in CONFIG_FOLDER.glob("experiment/*.yaml")}
    assert rows.keys() == files.keys()
    for name, text in files.items():
        figures = re.findall(r"[\d.]+ / [\d.]+\d", text.partition("in the paper:")[2].partition("\n")[0])
        assert figures == re.findall(r"[\d.]+ / [\d.]+\d", rows[name]), name


@pytest.mark.parametrize("row", FORMAT_ROWS, ids=[row[0] for row in FORMAT_ROWS])
def test_settings_are_refused_where_the_formats_page_says_so(row, tmp_path):
    settings = settings_in(row[0])
    has_levels = {"compress=gptq", "compress=gguf", "compress=float"} & set(settings)
    budget = ["budget=size", "budget.target=90MB"] if has_levels else []  # a size fits all widths
    for name, cell in zip(FORMAT_NAMES, row[1:], strict=True):
        job = build_job(composed(*settings, *budget, f"export.formats=[{name}]"), tmp_path)
        if cell.startswith("refused"):
            with pytest.raises(ValueError, match=rf"export.formats=\[{name}\]|transformers cannot read"):
                job.check()
        else:
            assert cell.startswith("ran"), cell
            job.check()


def test_documented_installations_are_those_that_are_tested():
    makefile, pins = (ROOT / "Makefile").read_text(), (ROOT / "constraints.txt").read_text().splitlines()
    project = (ROOT / "pyproject.toml").read_text()
    for line in command_lines(README):
        if line.startswith("pip install"):
            for extra in re.findall(r"\[([\w,]+)\]", line):
                assert all(re.search(rf"^{name} = \[", project, re.MULTILINE) for name in extra.split(","))
            for pin in re.findall(r"\S+==\S+", line):
                assert pin in pins and f"--no-deps {pin.partition('==')[0]}" in makefile


def test_every_requirement_for_development_has_a_tested_version():
    project = (ROOT / "pyproject.toml").read_text()
    development = re.search(r"^dev = \[(.*?)\]", project, re.MULTILINE | re.DOTALL)[1]
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    required = {name.lower() for name in re.findall(r'"([\w-]+)', development)}
    assert required <= pinned


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for path in DOCUMENTS for name in re.findall(r"`make ([a-z-]+)[ `]", path.read_text())}
    named |= {line.split()[1] for path in DOCUMENTS for line in command_lines(path) if line.startswith("make ")}
    assert named <= targets


def test_every_module_and_class_that_is_named_exists():
    moves = [row[1] for row in table(ROOT / "CHANGELOG.md", "before", "now")]
    texts = [*moves, *(path.read_text() for path in PAGES)]
    named = {name for text in texts for name in re.findall(r"`(evopress(?:\.\w+)+)`", text)}
    assert named
    for name in named:
        assert resolve_name(name) is not None


def test_every_link_leads_to_a_file_and_a_heading():
    for path in DOCUMENTS:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", path.read_text()):
            linked = (path.parent / target).resolve() if target else path
            assert linked.exists() and linked.is_relative_to(ROOT), f"{path} links to {target}"
            if anchor:
                headings = re.findall(r"^##+ (.*)$", linked.read_text(), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
                assert anchor in anchors, f"{path} links to {target}#{anchor}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_that_names_the_small_model_says_what_its_weights_are(path):
    text = path.read_text()
    if "SmolLM2" in text and re.search(r"\d\.\d", text) and path.name != "CHANGELOG.md":
        assert "Q4_1" in text and "Instruct" in text, "say that it is SmolLM2-135M-Instruct, decoded from a Q4_1 file"


def test_no_file_names_a_folder_of_the_machine_it_was_written_on():
    """This file included. The frozen text names folders of an installed Python only."""
    patterns = ("*.py", "*.md", "*.yaml", "*.toml", "*.sh", "*.json", "*.ipynb", "*.txt", "*.cff", "Makefile", "run")
    ours = [entry for entry in ROOT.iterdir() if entry.name not in NOT_OURS]
    files = [path for entry in ours for path in (entry.rglob("*") if entry.is_dir() else [entry])]
    for path in (path for path in files if path.is_file() and any(map(path.match, patterns))):
        if NOT_OURS & set(path.relative_to(ROOT).parts):
            continue
        text = path.read_text()
        found = FOLDER_OF_A_MACHINE.search(text)
        assert not found, f"{path} names {found[0]}"
        assert str(ROOT) not in text, f"{path} names the folder of this checkout"
