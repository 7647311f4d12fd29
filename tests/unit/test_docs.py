"""The documents: links, paths, commands, options, names, quoted code and quoted messages are real."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import textwrap
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import typer

from prx.config import EvaluationConfig
from prx.registry import TECHNIQUES
from prx.yamlsource import parse_yaml
from sweeps.reference.page import slug

ROOT = Path(__file__).parents[2]
PACKAGES = ("prx", "evaluation", "sweeps", "cluster")
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = "prx|sweeps|evaluation|cluster|tests|docs|\\.ci"
PATH = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./*{{}}-]*[\w}}*/]")
MODULE = re.compile(r"python -m ([\w.]+)((?: +[^\s`|#]+)*)")
COMMAND = re.compile(r"prx-sweep ([a-z]+)\b((?: +[^\s`|#]+)*)")
DOTTED = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)+")

every_doc = pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return [textwrap.dedent(body) for _, found, body in FENCE.findall(text) if found == language]


def prose(text: str) -> str:
    return FENCE.sub("", text)


def said(text: str) -> str:
    """What is meant to be typed: inline code and blocks of commands, joined lines made one."""
    typed = [*blocks(text, "console"), *blocks(text, "bash"), *blocks(text, "yaml")]
    commands = [line.partition(" # ")[0] for block in typed for line in block.replace("\\\n", " ").splitlines()]
    return "\n".join([*INLINE.findall(prose(text)), *commands])


@cache
def anchors(path: Path) -> set[str]:
    return {slug(line.lstrip("#").strip()) for line in prose(text_of(path)).splitlines() if line.startswith("#")}


@every_doc
def test_links_lead_somewhere(path):
    for target in LINK.findall(prose(text_of(path))):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{path.name}: {target}"
        assert not anchor or anchor in anchors(there), f"{path.name}: {target}"


@every_doc
def test_paths_exist(path):
    for name in PATH.findall(said(text_of(path))):
        pattern = re.sub(r"\{[^}]*\}", "*", name)
        assert any(ROOT.glob(pattern.rstrip("/"))), f"{path.name}: {name}"


@cache
def commands_of(module: str) -> dict[str, set[str]]:
    """The options of every command of a package's command line."""
    found = vars(typer.main.get_command(importlib.import_module(f"{module}.__main__").app))["commands"]
    assert found
    return {
        name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in found.items()
    }


def refused(module: str, name: str, arguments: str) -> str | None:
    known = commands_of(module)
    if name not in known:
        return f"no command {name}"
    options = {part.partition("=")[0].rstrip(".,;:)'\"") for part in arguments.split() if part.startswith("--")}
    unknown = options - known[name] - {"--help", "--"}
    return f"{name} has no {sorted(unknown)}" if unknown else None


@every_doc
def test_commands_and_their_options_exist(path):
    for name, arguments in COMMAND.findall(said(text_of(path))):
        assert not (why := refused("sweeps", name, arguments)), f"{path.name}: prx-sweep {name}{arguments}: {why}"
    for module, arguments in MODULE.findall(said(text_of(path))):
        entry = f"{module}.__main__" if module.split(".")[0] in PACKAGES else module
        assert importlib.util.find_spec(entry) or importlib.util.find_spec(module), f"{path.name}: python -m {module}"
        first = arguments.split()[:1]
        if module in ("sweeps", "prx", "cluster") and first and first[0].islower():
            rest = arguments.split(maxsplit=1)[1:]
            assert not (why := refused(module, first[0], " ".join(rest))), f"{path.name}: python -m {module}: {why}"


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        module = ".".join(parts[:size])
        if importlib.util.find_spec(parts[0]) and _found(module):
            part = importlib.import_module(module)
            for attribute in parts[size:]:
                if not hasattr(part, attribute):
                    return False
                part = getattr(part, attribute)
            return True
    return False


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@cache
def validator(schema: str) -> jsonschema.Draft202012Validator:
    """What a part of a sweep, or of a base, may say: nothing in it is required."""
    found = json.loads(text_of(ROOT / "sweeps" / f"{schema}.schema.json"))
    return jsonschema.Draft202012Validator({key: value for key, value in found.items() if key != "required"})


@every_doc
def test_quoted_yaml_is_of_a_sweep_a_base_or_a_level(path):
    for body in blocks(text_of(path), "yaml"):
        data = parse_yaml(body).data
        if data is None:  # only a comment
            continue
        if isinstance(data, list):  # levels of an axis
            data = {"axes": {"axis": data}}
        sweeps = validator("sweep").schema["properties"]
        validator("sweep" if set(data) <= set(sweeps) else "run").validate(data)


@every_doc
def test_names_of_code_exist(path):
    for code in INLINE.findall(prose(text_of(path))):
        name = code.removesuffix("()")
        setting = name.startswith("evaluation.") and name.split(".")[1] in EvaluationConfig.model_fields
        if DOTTED.fullmatch(name) and not setting:
            assert resolves(name), f"{path.name}: {code}"


@every_doc
def test_quoted_code_is_the_code(path):
    """A block whose first line is a comment with a path quotes that file, `...` for what is left out."""
    for body in blocks(text_of(path), "python"):
        first, _, rest = body.partition("\n")
        if not (named := re.fullmatch(r"# ((?:prx|sweeps|tests)/\S+\.py)", first)):
            continue
        source = text_of(ROOT / named[1])
        for part in re.split(r"^ *\.\.\.\n", rest, flags=re.MULTILINE):
            assert part.strip("\n") in source, f"{path.name}: {named[1]} has no\n{part}"


@cache
def messages() -> tuple[str, ...]:
    """Every text of the packages, with `...` for what is put in when it is said."""
    found: dict[str, None] = {}
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(text_of(file))):
                if isinstance(node, ast.JoinedStr):
                    parts = [str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values]
                    found["".join(parts)] = None
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found[node.value] = None
    return tuple(found)


def is_said(line: str) -> bool:
    """Whether some text of the code holds all fragments of a quoted line, in order."""
    fragments = [fragment for fragment in line.strip().split("...") if fragment.strip()]
    pattern = re.compile(".*".join(re.escape(fragment.strip()) for fragment in fragments), re.DOTALL)
    return any(pattern.search(message) for message in messages())


@every_doc
def test_quoted_messages_are_said_by_the_code(path):
    for body in blocks(text_of(path), "message"):
        for line in body.splitlines():
            assert len(line.replace("...", "").strip()) >= 12, f"{path.name}: too short to mean anything: {line}"
            assert is_said(line), f"{path.name}: nobody says: {line}"


def test_the_reader_of_messages_tells_apart():
    assert is_said("... must be ..., got ...")
    assert is_said("losses....negatives: different_prompt needs two different captions in every batch, and all ...")
    assert not is_said("this is said by nobody at all")
    assert refused("sweeps", "run", "FILE --stoer DIR") == "run has no ['--stoer']"
    assert refused("sweeps", "ruin", "") == "no command ruin"
    assert not resolves("prx.registry.NOTHING")
    assert not resolves("prx.nothing")


def test_the_guide_to_techniques_names_the_registry():
    text = text_of(ROOT / "docs" / "adding_a_technique.md")
    entries = re.findall(r'\("(\w+)", "(\w+)"\): "([\w.:]+)"', text)
    assert entries
    for kind, name, target in entries:
        assert TECHNIQUES[kind, name] == target
