"""Print code statistics: lines, files, functions, longest module: `python -m tools.measure_code [FOLDER]`."""

import ast
import statistics
import sys
from pathlib import Path


def measure(folder: Path) -> dict[str, float | int | str]:
    """Return statistics of a folder's Python source."""
    sources = {path: path.read_text("utf-8") for path in sorted(folder.rglob("*.py"))}
    lines = {path: len(source.splitlines()) for path, source in sources.items()}
    nodes = [node for source in sources.values() for node in ast.walk(ast.parse(source))]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    bodies = sorted(map(_body, functions))
    public = [f for f in functions if not f.name.startswith("_")]
    longest = max(lines, key=lambda path: lines[path])
    total = sum(lines.values())
    return {
        "files": len(sources),
        "lines": total,
        "median file": statistics.median(lines.values()),
        "longest file": f"{longest} {lines[longest]}",
        "files over 400 lines": sum(count > 400 for count in lines.values()),
        "functions": len(functions),
        "functions per 1,000 lines": round(1000 * len(functions) / total),
        "function body, median": statistics.median(bodies),
        "function body, 90th percentile": bodies[9 * len(bodies) // 10],
        "function body, longest": bodies[-1],
        "functions over 60 lines": sum(count > 60 for count in bodies),
        "with a return type, %": round(100 * sum(f.returns is not None for f in functions) / len(functions)),
        "public, with a docstring, %": round(
            100 * sum(bool(ast.get_docstring(f)) for f in public) / len(public)
        ),
        "fmt: skip": sum(source.count("# fmt: skip") for source in sources.values()),
    }


def _body(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function's body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]


if __name__ == "__main__":
    for name, value in measure(Path(sys.argv[1] if len(sys.argv) > 1 else "isogloss")).items():
        print(f"{name}: {value}")
