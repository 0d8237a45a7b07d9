"""House rules that a reader relies on, checked on the source itself: who may import whom, and what must not be written."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "model": set(),
    "dataset": {"model"},
    "engine": {"model"},
    "nano": {"model", "dataset"},
    "trainer": {"model", "dataset"},
    "evals": {"model", "engine"},
    "scripts": {"model", "dataset", "engine", "nano", "trainer", "evals", "eval_omni"},
    "eval_omni": {"model", "engine", "evals"},
}
LIBRARIES = ("model", "dataset", "engine")  # these log; only entry points print
FILES = sorted(p for folder in MAY_IMPORT for p in (ROOT / folder).rglob("*.py")) + [ROOT / "eval_omni.py"]


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            assert not any(alias.name == "*" for alias in node.names), f"wildcard import from {node.module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_house_rules(path):
    owner = path.relative_to(ROOT).parts[0].removesuffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    is_command = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
    for name in imports(tree):
        top = name.split(".")[0]
        assert top not in MAY_IMPORT or top == owner or top in MAY_IMPORT[owner], f"{owner} must not import {name}"
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"bare except at line {node.lineno}"
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            assert call != "object.__setattr__", f"line {node.lineno}: attributes are set in the open"
            assert not (call == "print" and owner in LIBRARIES and not is_command), f"line {node.lineno}: a library logs, it does not print"
            assert not (call.endswith("filterwarnings") and ast.unparse(node.args[0]) == "'ignore'"), f"line {node.lineno}: name the warning"
            assert not (call == "torch.load" and "weights_only=True" not in ast.unparse(node)), f"line {node.lineno}: weights_only=True"
    source = path.read_text(encoding="utf-8").splitlines()
    assert len(source) <= 500, f"{len(source)} lines: is it still one thing?"
    assert max(map(len, source), default=0) <= 140, "a line is longer than 140 columns"
    assert ast.get_docstring(tree), "every file says what it is for"


def test_nothing_imports_the_compiler_before_it_is_needed():
    """torch._dynamo takes 1.5 s and 70 MB of every process."""
    code = "import sys, eval_omni, scripts.web_demo_omni, dataset.engines; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=100).returncode == 0
