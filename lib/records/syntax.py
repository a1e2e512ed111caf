"""Syntax as it counts in a fingerprint: what statements bind, and how a definition is written down to be hashed."""

from __future__ import annotations

import ast
import builtins
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

DYNAMIC = ("__import__", "importlib.import_module", "importlib.util.spec_from_file_location", "exec", "eval")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
UNSEEN = ("ctx", "kind", "type_comment", "type_ignores", "type_params")


class FingerprintError(RuntimeError):
    """Code cannot be followed; the message names the file and the line."""


@dataclass(frozen=True)
class Target:
    """What a name is bound to: a definition `name` of a project's `module`, a whole project module (no `name`), or
    something else, by its dotted name (no `module`)."""

    module: str
    name: str


@dataclass
class Module:
    """The top level of a file: statements that bind each name, imported names, and statements that only act."""

    name: str
    file: Path
    body: list[ast.stmt]
    bound: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imported: dict[str, Target] = field(default_factory=dict)
    effects: list[ast.stmt] = field(default_factory=list)


class Writer:
    """Writes the nodes of one definition: their types and fields, local names as they are, others as placeholders."""

    def __init__(self, code, module: Module, own: str):
        self.code, self.module, self.own, self.targets = code, module, own, []

    def write(self, node, scopes: tuple[tuple[bool, dict], ...] = ()) -> str:
        """`scopes` are those around a node, innermost last: whether a class, and name → `Target` or None (local)."""
        if isinstance(node, list):
            return "[" + ",".join(self.write(item, scopes) for item in node if not is_text(item)) + "]"
        if isinstance(node, ast.Constant):
            return f"{type(node.value).__name__}:{node.value!r}"
        if isinstance(node, ast.JoinedStr):
            return f"JoinedStr({','.join(self._string_parts(node.values, scopes))})"
        if isinstance(node, (ast.Name, ast.Attribute)) and (chain := _chain(node)):
            return self._named(node, chain, scopes)
        if isinstance(node, FUNCTIONS):
            return self._function(node, scopes)
        if isinstance(node, ast.ClassDef):
            return self._class(node, scopes)
        if isinstance(node, COMPREHENSIONS):
            return self._comprehension(node, scopes)
        if isinstance(node, (ast.Import, ast.ImportFrom)):  # what is imported counts where it is used
            return ""
        if not isinstance(node, ast.AST):
            return repr(node)
        skipped = ()
        if isinstance(node, ast.AnnAssign) and not (scopes and scopes[-1][0]):
            skipped = ("annotation", "simple")  # a class's annotations are its fields; others are read by nobody
        return self._fields(node, scopes, skipped)

    def _fields(self, node: ast.AST, scopes, skipped=()) -> str:
        fields = []
        for name in node._fields:
            value = getattr(node, name, None)
            if value is None or value == [] or name in UNSEEN or name in skipped:
                continue
            if name == "format_spec" and not self._string_parts(value.values, scopes):
                continue
            fields.append(f"{name}={self.write(value, scopes)}")
        return f"{type(node).__name__}({','.join(fields)})"

    def _named(self, node, chain: list[str], scopes) -> str:
        """A name with its attributes, `a.b.c`: as far as it leads through modules, what it leads to, and the rest."""
        name, *rest = chain
        local = next((names for _, names in reversed(scopes) if name in names), None)
        if local is not None and local[name] is None:
            return f"local:{'.'.join(chain)}"
        target = self._global(name, node.lineno) if local is None else local[name]
        if not scopes and name == self.own and isinstance(_name_node(node).ctx, ast.Store):
            return ".".join(["own", *rest])
        while target.module and not target.name and rest:
            inner = self.code.follow(Target(target.module, rest[0]))
            if inner is None:
                raise FingerprintError(
                    f"{self.module.file}:{node.lineno}: {'.'.join(chain)}: {target.module} has no {rest[0]}."
                )
            target, rest = inner, rest[1:]
        if not target.module:
            dotted = ".".join([target.name, *rest])
            if dotted in DYNAMIC:
                raise FingerprintError(
                    f"{self.module.file}:{node.lineno}: {dotted} runs code that cannot be followed; import it by name."
                )
            return f"outside:{dotted}"
        if not target.name:
            raise FingerprintError(
                f"{self.module.file}:{node.lineno}: the module {target.module} is used as an object; name what is used."
            )
        return ".".join([self._placeholder(target), *rest])

    def _placeholder(self, target: Target) -> str:
        code = self.code
        neutral = any(target.module == m or target.module.startswith(f"{m}.") for m in code.neutral)
        if neutral or target.name in code.registries:
            return f"neutral:{target.name}"
        self.targets.append(target)
        return f"\x00{len(self.targets) - 1}\x00"

    def _global(self, name: str, line: int) -> Target:
        """What a name of the module's own level is bound to."""
        if name in self.module.bound:
            # A script or notebook is one definition: its names are all its own.
            return Target(self.module.name, name) if self.own else Target("", f"own:{name}")
        target = self.module.imported.get(name)
        if target is None:
            return Target("", name if hasattr(builtins, name) else f"unbound:{name}")
        if not target.module:
            return target
        if (found := self.code.follow(target)) is None:
            raise FingerprintError(
                f"{self.module.file}:{line}: {name} is imported from {target.module}, which has no {target.name}."
            )
        return found

    def _function(self, node, scopes) -> str:
        arguments = node.args
        shape = [[a.arg for a in group] for group in (arguments.posonlyargs, arguments.args, arguments.kwonlyargs)]
        shape += [a and a.arg for a in (arguments.vararg, arguments.kwarg)]
        outer = [arguments.defaults, arguments.kw_defaults, getattr(node, "decorator_list", [])]
        names = dict.fromkeys(a.arg for a in _arguments(arguments))
        body = node.body if isinstance(node.body, list) else [node.body]
        inner = names | self._bindings(body)
        visible = tuple(scope for scope in scopes if not scope[0])  # methods do not see their class's names
        name = getattr(node, "name", "") if scopes else ""
        text = [self.write(part, scopes) for part in outer]
        return f"{type(node).__name__}({name},{shape},{','.join(text)},{self.write(body, (*visible, (False, inner)))})"

    def _class(self, node: ast.ClassDef, scopes) -> str:
        outer = [self.write(part, scopes) for part in (node.bases, node.keywords, node.decorator_list)]
        inner = (*scopes, (True, self._bindings(node.body)))
        return f"ClassDef({node.name if scopes else ''},{','.join(outer)},{self.write(node.body, inner)})"

    def _comprehension(self, node, scopes) -> str:
        names = dict.fromkeys(n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name))
        inner, text = (*scopes, (False, names)), []
        for position, generator in enumerate(node.generators):
            text.append(self.write(generator.iter, inner if position else scopes))
            text.append(self.write([generator.target, *generator.ifs], inner) + str(generator.is_async))
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        return f"{type(node).__name__}({','.join(text)},{self.write(parts, inner)})"

    def _bindings(self, body: list) -> dict[str, Target | None]:
        """The names that a function's or class's own body binds; imports to what they import."""
        found: dict[str, Target | None] = dict.fromkeys(bound_names(body))
        for statement in body:
            for node in inside(statement):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    found |= self.code.imports(self.module, node)
                elif isinstance(node, (ast.Global, ast.Nonlocal)):
                    found = {k: v for k, v in found.items() if k not in node.names}
        return {k: self.code.follow(v) if v is not None and v.module and v.name else v for k, v in found.items()}

    def _string_parts(self, values: list, scopes) -> list[str]:
        """Parts of an f-string, neighbouring texts joined, empty ones gone: Python 3.11 and 3.12 split differently."""
        parts: list = []
        for value in values:
            if isinstance(value, ast.Constant) and parts and isinstance(parts[-1], str):
                parts[-1] += value.value
            else:
                parts.append(value.value if isinstance(value, ast.Constant) else value)
        return [repr(part) if isinstance(part, str) else self.write(part, scopes) for part in parts if part != ""]


def inside(node: ast.AST) -> Iterator[ast.AST]:
    """A node and what is in it, but not what is inside functions, classes and lambdas of it."""
    yield node
    if not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        for child in ast.iter_child_nodes(node):
            yield from inside(child)


def bound_names(body: list, imports: bool = True) -> set[str]:
    """The names that statements bind where they stand; targets of comprehensions are not among them."""
    found: set[str] = set()
    hidden = {id(n) for s in body for c in inside(s) if isinstance(c, COMPREHENSIONS) for g in c.generators
              for n in ast.walk(g.target)}  # fmt: skip
    for node in (node for statement in body for node in inside(statement)):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load) and id(node) not in hidden:
            found.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            found.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            found.add(node.rest)
        elif imports and isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
    return found


def _arguments(arguments: ast.arguments) -> Iterator[ast.arg]:
    yield from (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    yield from filter(None, (arguments.vararg, arguments.kwarg))


def base(node: ast.AST) -> ast.AST:
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node


def _name_node(node: ast.AST) -> ast.Name:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node


def _chain(node: ast.AST) -> list[str]:
    """["a", "b", "c"] of a.b.c; empty for what does not begin with a name."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *reversed(names)] if isinstance(node, ast.Name) else []


def is_text(node) -> bool:
    """A statement that is only a string: a docstring, which does nothing."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def is_main(node) -> bool:
    """`if __name__ == "__main__":` does nothing in a module that is imported."""
    test = getattr(node, "test", None)
    return isinstance(node, ast.If) and isinstance(test, ast.Compare) and _chain(test.left) == ["__name__"]


def parsed(file: Path) -> list[ast.stmt]:
    """A file's statements; of a notebook those of its code cells without the parameters: those count by value."""
    if file.suffix != ".ipynb":
        return ast.parse(file.read_text(encoding="utf-8"), str(file)).body
    found: list[ast.stmt] = []
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        tags = cell.get("metadata", {}).get("tags", [])
        if cell["cell_type"] != "code" or "injected-parameters" in tags:
            continue
        source = re.sub(r"(?m)^([ \t]*)(%.*|!.*|.*\?)$", r"\1pass", "".join(cell["source"]))
        body = ast.parse(source, str(file)).body
        found += [s for s in body if not ("parameters" in tags and isinstance(s, (ast.Assign, ast.AnnAssign)))]
    return found
