"""What the documents show runs, what they name exists, and what they link to is there."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from router import Router
from router.cli import main

ROOT = Path(__file__).parent.parent
README, CONTRIBUTING, CHANGELOG = ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"
CONTRACT = ROOT / "models" / "README.md"
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "data/*.md", "models/README.md", "docs/*.md", "benchmarks/*.md", "examples/*/*.md")
    for path in ROOT.glob(pattern)
)
TIERS = {"edge", "distilled", "frontier"}
FIRST_WORD_PRINTED = {README: TIERS, ROOT / "docs" / "serving.md": TIERS, ROOT / "docs" / "checks.md": {"1.0"}}
FIRST_WORD_PRINTED[ROOT / "docs" / "plans.md"] = {"ask", "direct:"}
TUTORIAL, POLICY = ROOT / "docs" / "tutorial.md", ROOT / "docs" / "policy.md"
NEEDS = "# needs "
"""How a block of Python begins that cannot run on its own; the reader is told what it needs."""
LONGEST_README, WIDEST_LINE = 100, 120


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


def code_in(document: Path) -> list[str]:
    """Lines of fenced and indented code, and what stands in backticks."""
    text = document.read_text(encoding="utf-8")
    fenced = re.findall(r"^```.*?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^ {4,}(.*)$", prose, re.MULTILINE)
    return [*(line for block in fenced for line in block.splitlines()), *indented, *re.findall(r"`([^`]+)`", prose)]


def anchors_of(document: Path) -> set[str]:
    """The anchors that a heading gets on GitHub: lower case, no punctuation, hyphens for spaces."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_one_page():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONGEST_README
    assert max(map(len, lines)) <= WIDEST_LINE


def python_in(document: Path) -> list[str]:
    """The blocks of Python of a page, in their order."""
    return re.findall(r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def run(blocks: list[str], document: Path, names: dict[str, object]) -> None:
    """Run blocks one after the other, as a reader would; one that says what it needs is only compiled."""
    for block in blocks:
        code = compile(block, document.name, "exec")
        if not block.startswith(NEEDS):
            exec(code, names)


@pytest.fixture
def as_a_reader(bundle, tmp_path, monkeypatch) -> Path:
    """A folder with what pages take for granted: bundles, the sample log and its tiers, the policy that is shown."""
    for name in ("demo", "mine"):
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / name).symlink_to(bundle)
    (tmp_path / "data").symlink_to(ROOT / "data")
    shutil.copy(ROOT / "data" / "tiers.toml", tmp_path / "tiers.toml")
    [policy] = re.findall(r"^```toml\n(.*?)^```", POLICY.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (tmp_path / "policy.toml").write_text(policy, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "document", [page for page in DOCUMENTS if python_in(page) and page not in (TUTORIAL, CHANGELOG)], ids=name_of
)
def test_the_python_that_is_shown_runs(document, as_a_reader, capsys):
    router = Router.load("models/demo")
    prompt = "Prove that the square root of 2 is irrational."
    decision = router.route(prompt)
    taken_for_granted = {"router": router, "Router": Router, "prompt": prompt, "decision": decision}
    run(python_in(document), document, {**taken_for_granted, "decision_id": decision.decision_id})
    if document in FIRST_WORD_PRINTED:
        assert capsys.readouterr().out.split()[0] in FIRST_WORD_PRINTED[document]


def test_few_blocks_of_python_need_more_than_a_reader_has():
    needy = [block for page in DOCUMENTS for block in python_in(page) if block.startswith(NEEDS)]
    assert 1 <= len(needy) <= 4
    assert all(python_in(page) for page in FIRST_WORD_PRINTED)


def test_the_tutorial_leads_to_a_router(as_a_reader):
    """Its commands and its Python, in the order of the page, in a folder that has nothing but the sample log."""
    (as_a_reader / "models" / "mine").unlink()
    (as_a_reader / "tiers.toml").unlink()
    names: dict[str, object] = {}
    commands = []
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for language, block in blocks:
        if language == "python":
            run([block], TUTORIAL, names)
        elif block.startswith("broker "):
            words = shlex.split(block.replace("\\\n", " "))
            commands.append(words[1])
            assert main(words[1:]) == 0, block
        else:
            assert block == "make demo\n"
    assert commands == ["import", "init", "audit", "train", "route"]
    assert names["decision"].tier in ("edge", "distilled", "frontier")
    assert (as_a_reader / "models" / "mine" / "report.html").is_file()


def test_every_command_and_option_that_is_named_exists(capsys):
    options: dict[str, set[str]] = {}
    for document in set(DOCUMENTS) - {CHANGELOG}:  # which also names what is gone
        for line in code_in(document):
            for command, rest in re.findall(r"(?<![\w/.-])broker +([a-z]+(?: (?<=outcomes )[a-z]+)?)(.*)", line):
                named = re.findall(r"--[a-z][a-z-]*", rest.split("#")[0])
                options.setdefault(command, set()).update(named)
    assert {"audit", "train", "evaluate", "retrain", "rollback", "route", "verify", "demo"} <= set(options)
    for command, named in options.items():
        with pytest.raises(SystemExit) as leave:
            main([*command.split(), "--help"])
        assert leave.value.code == 0, command
        usage = capsys.readouterr().out
        assert "usage: broker" in usage
        assert named <= set(re.findall(r"--[a-z][a-z-]*", usage)), command


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for document in DOCUMENTS:
        named = {target for line in code_in(document) for target in re.findall(r"\bmake ([a-z-]+)", line)}
        assert named <= targets, document


@pytest.mark.parametrize("document", sorted(set(DOCUMENTS) - {CHANGELOG}), ids=name_of)
def test_every_file_of_the_code_that_is_named_exists(document):
    folders = r"(?:router|training|tests|benchmarks|data|examples)"
    for line in code_in(document):
        for path in re.findall(rf"(?<![\w/.-]){folders}/[a-z0-9_./-]+\.[a-z]+\b", line):
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_relative_link_leads_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        page = (document.parent / target) if target else document
        assert page.exists(), target
        assert not anchor or anchor in anchors_of(page), f"{target}#{anchor}"


def test_every_document_can_be_reached_from_the_readme():
    reached, waiting = set(), [README]
    while waiting:
        document = waiting.pop()
        reached.add(document)
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", document.read_text(encoding="utf-8")):
            page = (document.parent / target).resolve()
            if page.suffix == ".md" and page not in reached:
                waiting.append(page)
    assert set(DOCUMENTS) <= reached


def test_every_document_is_in_the_navigation_of_the_site():
    named = set(re.findall(r"([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    made_while_building = {"reference/command-line.md", "reference/python.md"}
    assert named == {name_of(document) for document in DOCUMENTS} | made_while_building


def test_every_subpackage_is_on_the_map():
    text = CONTRIBUTING.read_text(encoding="utf-8")
    for package in ("router", "training"):
        for init in (ROOT / package).rglob("__init__.py"):
            assert f"`{init.parent.relative_to(ROOT).as_posix()}/`" in text


def test_the_bundles_contract_is_in_the_models_readme(trained):
    text = CONTRACT.read_text(encoding="utf-8")
    for name in (path.name for path in trained.bundle.iterdir()):
        assert f"`{name}`" in text


def test_every_test_that_the_page_on_reliability_names_exists():
    names = re.findall(r"`(test_\w+(?:\.py)?)`", (ROOT / "docs" / "reliability.md").read_text())
    assert len(names) > 40
    for name in names:
        if name.endswith(".py"):
            code = (ROOT / "tests" / name).read_text()
        else:
            assert f"def {name}(" in code, name
