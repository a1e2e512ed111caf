"""Fingerprints of code: sha256 over the definitions that are reached from root functions, classes or notebooks.

    fingerprint("lib.planner:MPPI", "notebooks/03_train_corrector.ipynb")      # of this project, as it is now
    Code(worktree).fingerprint(…)                                              # of another tree

A definition is a function, a whole class, or a constant of a module. Its text is hashed with every name replaced by
what the name is bound to: a definition of the project by that one's own hash, anything else by its dotted name. So a
file may move and a module be renamed, what is not reached may change, and comments, docstrings, layout, the order of
definitions, the type annotations of functions (which nothing here reads at run time) and the definitions' own names
never count. What is called through an object (`controller.act`) cannot be seen: its class has to be a root.

`NEUTRAL` and `REGISTRIES` are replaced by their bare names. The first only find, read and write files, and what these
say is among the checksums of a stage's inputs; or they only refuse parameters; or they are the shape of a profile,
whose values a stage names in its settings. A registry maps names to pieces, of which a stage names those that it uses,
or that have made files which are its inputs.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import sys
from pathlib import Path

from lib.records.paths import ROOT
from lib.records.syntax import (
    FingerprintError,
    Module,
    Target,
    Writer,
    base,
    bound_names,
    inside,
    is_main,
    is_text,
    parsed,
)

# Modules, whole packages included, and names of registries.
NEUTRAL = tuple(f"lib.records.{m}" for m in ("paths", "keys", "store", "fingerprint", "ledger"))
NEUTRAL += ("lib.files", "lib.weights.names", "lib.study.parameters", "lib.study.profiles")
NEUTRAL += ("figures.charts",)  # notebooks draw with it, too, and their tables do not depend on colours
REGISTRIES = ("CONTROLLERS", "CORRECTORS", "MAKERS", "SCHEMES", "DELAYED", "PROFILES", "ADDED_TASKS", "REFUSED_TASKS")

PROJECT = ("lib", "figures", "paper")  # packages, at the root of the tree, whose definitions are followed


class Code:
    """The code of one source tree. `neutral` are modules, and `registries` names, that are not followed."""

    def __init__(self, root: Path, neutral: tuple[str, ...] = NEUTRAL, registries: tuple[str, ...] = REGISTRIES):
        self.root, self.neutral, self.registries = Path(root), neutral, registries
        self._modules: dict[str, Module] = {}
        self._texts: dict[Target, tuple[str, list[Target]]] = {}
        self._hashes: dict[Target, str] = {}

    def fingerprint(self, *roots) -> str:
        """One sha256 for all roots, in any order: "module:Name", an object, or the path of a notebook or script.

        Raises `FingerprintError` for a root that does not exist, a star import, an import of the project that cannot be
        resolved, and a dynamic import.
        """
        hashes = sorted(self._hash(self.target(root)) for root in roots)
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()

    def reached(self, *roots) -> set[Target]:
        """All definitions that the roots reach, themselves included."""
        pending, found = [self.target(root) for root in roots], set()
        while pending:
            if (target := pending.pop()) not in found:
                found.add(target)
                pending += self._text(target)[1]
        return found

    def target(self, root) -> Target:
        """The definition that a root names."""
        if isinstance(root, Path) or (isinstance(root, str) and root.endswith((".py", ".ipynb"))):
            return Target(str(root), "")
        module, _, name = root.partition(":") if isinstance(root, str) else (root.__module__, "", root.__qualname__)
        if module == "__main__":  # of a module that `python -m` runs
            module = sys.modules["__main__"].__spec__.name
        found = self.follow(Target(module, name.split(".")[0]))
        if found is None:
            raise FingerprintError(f"{module}:{name} is not defined in {self.root}; correct the stage that names it.")
        return found

    # ------------------------------------------------------------------------------------------------------ modules

    def module(self, name: str) -> Module:
        """A file's top level, by the module's dotted name, or by its path for notebooks and scripts."""
        if name not in self._modules:
            file = self.root / name if name.endswith((".py", ".ipynb")) else self._file(name)
            if file is None or not file.is_file():
                raise FingerprintError(f"{name} is no module of {self.root}; correct what names it.")
            self._modules[name] = module = Module(name, file, parsed(file))
            for statement in module.body:
                self._bind(module, statement)
        return self._modules[name]

    def _file(self, name: str) -> Path | None:
        stem = self.root.joinpath(*name.split("."))
        files = (stem.with_name(f"{stem.name}.py"), stem / "__init__.py")
        return next((f for f in files if f.is_file()), stem if stem.is_dir() else None)

    def _bind(self, module: Module, statement: ast.stmt) -> None:
        """Note what a statement of a module's top level binds."""
        if is_text(statement) or is_main(statement):
            return
        imports = [node for node in inside(statement) if isinstance(node, (ast.Import, ast.ImportFrom))]
        for node in imports:
            module.imported |= self.imports(module, node)
        names = bound_names([statement], imports=False)
        if isinstance(statement, (ast.Assign, ast.AugAssign, ast.AnnAssign)):  # x.y = …, x[y] = … change what x is
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names |= {base(t).id for t in targets if isinstance(base(t), ast.Name)}
        for name in names:
            module.bound.setdefault(name, []).append(statement)
        if not names and not imports and not isinstance(statement, ast.Pass):
            module.effects.append(statement)

    def imports(self, module: Module, node: ast.Import | ast.ImportFrom) -> dict[str, Target]:
        """Name → what an import statement binds it to."""
        where = f"{module.file}:{node.lineno}"
        if isinstance(node, ast.Import):
            pairs = [
                (a.asname or a.name.split(".")[0], a.name if a.asname else a.name.split(".")[0]) for a in node.names
            ]
            for alias in node.names:
                self._check(alias.name, where)
            return {name: Target(dotted, "") if self._ours(dotted) else Target("", dotted) for name, dotted in pairs}
        base = node.module or ""
        if node.level:
            package = module.name.split(".") if module.file.name == "__init__.py" else module.name.split(".")[:-1]
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
        found = {}
        for alias in node.names:
            if alias.name == "*":
                raise FingerprintError(f"{where}: a star import hides what is used; name what is imported.")
            if not self._ours(base):
                found[alias.asname or alias.name] = Target("", f"{base}.{alias.name}")
                continue
            self._check(base, where)
            if self._file(f"{base}.{alias.name}") is not None and alias.name not in self.module(base).bound:
                found[alias.asname or alias.name] = Target(f"{base}.{alias.name}", "")
            else:
                found[alias.asname or alias.name] = Target(base, alias.name)
        return found

    def _ours(self, dotted: str) -> bool:
        return dotted.split(".")[0] in PROJECT and self._file(dotted.split(".")[0]) is not None

    def _check(self, dotted: str, where: str) -> None:
        if self._ours(dotted) and self._file(dotted) is None:
            raise FingerprintError(
                f"{where}: {dotted} is imported, but is no module of the project; correct the import."
            )

    def follow(self, target: Target) -> Target | None:
        """The definition behind a name that a module may only hand on; None where there is none."""
        while target.name:
            module = self.module(target.module)
            if target.name in module.bound:
                return target
            if (handed := module.imported.get(target.name)) is None:
                below = f"{target.module}.{target.name}"
                return Target(below, "") if self._file(below) else None
            if not handed.module:
                return handed
            target = handed
        return target

    # ------------------------------------------------------------------------------------------------- texts, hashes

    def _text(self, target: Target) -> tuple[str, list[Target]]:
        """A definition's text, with a placeholder for each name of the project, and what these stand for."""
        if target not in self._texts:
            module = self.module(target.module)
            statements = module.bound[target.name] if target.name else module.body
            writer = Writer(self, module, target.name)
            text = "".join(writer.write(s) for s in statements if not is_text(s) and not is_main(s))
            if target.name and module.effects:  # what happens when the module is imported
                text += "".join(writer.write(s) for s in module.effects)
            self._texts[target] = text, writer.targets
        return self._texts[target]

    def _hash(self, target: Target) -> str:
        """A definition's hash; those that reach each other (recursion) are hashed as one group (Tarjan)."""
        number, low, stack = {}, {}, []

        def visit(node: Target) -> None:
            number[node] = low[node] = len(number)
            stack.append(node)
            for other in self._text(node)[1]:
                if other in self._hashes:
                    continue
                if other not in number:
                    visit(other)
                    low[node] = min(low[node], low[other])
                elif other in stack:
                    low[node] = min(low[node], number[other])
            if low[node] == number[node]:
                group = stack[stack.index(node) :]
                del stack[stack.index(node) :]
                self._hashes |= self._group_hashes(group)

        if target not in self._hashes:
            visit(target)
        return self._hashes[target]

    def _group_hashes(self, group: list[Target]) -> dict[Target, str]:
        def filled(node: Target) -> str:
            text, targets = self._text(node)
            own = {i: f"recursive:{t.name}" for i, t in enumerate(targets) if t in group}
            return re.sub("\x00(\\d+)\x00", lambda m: own.get(int(m[1])) or self._hashes[targets[int(m[1])]], text)

        texts = {node: filled(node) for node in group}
        whole = "\n".join(sorted(texts.values())) if len(group) > 1 else ""
        return {node: hashlib.sha256(f"{text}\n{whole}".encode()).hexdigest() for node, text in texts.items()}


@functools.cache
def _today() -> Code:
    return Code(ROOT)


@functools.cache
def fingerprint(*roots) -> str:
    """`Code.fingerprint` of this project, read once in a process."""
    return _today().fingerprint(*roots)
