"""The answer's side of a code verdict: run the answer's code, then serve the requests of the tests."""

from __future__ import annotations

import builtins
import operator
import os
import symtable
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from r3agent.verifiers.child.wire import HungUp, Peer, pack, unpack

OPERATIONS: dict[str, Any] = {
    "iter": iter, "next": next, "len": len, "bool": bool, "str": str, "repr": repr, "hash": hash,
    "int": int, "float": float, "getattr": getattr, "setattr": setattr, "isinstance": isinstance,
    **{name: getattr(operator, name) for name in (
        "getitem", "setitem", "delitem", "eq", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv",
        "mod", "pow", "matmul", "and_", "or_", "xor", "neg",
    )},
}  # fmt: skip

MUTABLE = (list, dict, set, bytearray)


class OfTest:
    """Function of the test that the answer may call."""

    def __init__(self, side: AnswerSide, index: int) -> None:
        self.side, self.index = side, index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tag, value = self.side.ask("call", self.index, self.side.packed(list(args)), self.side.packed(kwargs))[:2]
        value = self.side.unpacked(value)
        if tag == "raise":
            raise value(*()) if isinstance(value, type) else RuntimeError("the test's function failed")
        return value


class AnswerSide(Peer):
    """The answer's side; it keeps referenced objects alive, so a reference always means the same object."""

    def __init__(self, source: str) -> None:
        super().__init__()
        os.dup2(2, 1)  # the answer's output
        self.source = source
        self.module = ModuleType("solution")
        self.kept: list[Any] = []
        self.index_of: dict[int, int] = {}

    def packed(self, value: Any) -> Any:
        return pack(value, self._refer)

    def unpacked(self, data: Any) -> Any:
        return unpack(data, self._resolve)

    def answer(self, request: list[Any]) -> list[Any]:
        what, *rest = request
        args: list[Any] = []
        packed: Any = None
        try:
            if what == "run":
                sys.modules["solution"] = self.module
                exec(compile(self.source, "<answer>", "exec"), vars(self.module))
                value = None
            elif what == "has":
                value = [name for name in rest[0] if name in vars(self.module)]
            elif what == "global":
                value = vars(self.module)[rest[0]]
            elif what == "call":
                index, packed, kwargs = rest
                args = self.unpacked(packed)
                value = self.kept[index](*args, **self.unpacked(kwargs))
            else:
                value = OPERATIONS[what](*self.unpacked(rest[0]))
            return ["ok", self.packed(value), self._changed(args, packed[1]) if args else []]
        except HungUp:
            raise
        except BaseException as error:
            return self._raised(error)

    def _changed(self, args: list[Any], before: list[Any]) -> list[Any]:
        """Return the arguments that the call changed in place, with their positions."""
        after = [(place, self.packed(arg)) for place, arg in enumerate(args) if isinstance(arg, MUTABLE)]
        return [[place, packed] for place, packed in after if packed != before[place]]

    def _raised(self, error: BaseException) -> list[Any]:
        try:
            return ["raise", self._refer(type(error)), self.packed(list(error.args))]
        except Exception:
            return ["raise", ["builtin", "RuntimeError"], ["list", []]]

    def _refer(self, value: Any) -> list[Any]:
        if isinstance(value, OfTest):
            return ["yours", value.index]
        if isinstance(value, ModuleType):
            return ["module", value.__name__]
        if isinstance(value, type):
            if value.__module__ == "builtins" and getattr(builtins, value.__name__, None) is value:
                return ["builtin", value.__name__]
            if issubclass(value, BaseException):
                base = next(b for b in value.__mro__[1:] if b.__module__ == "builtins" and issubclass(b, BaseException))
                return ["exception", self._keep(value), value.__name__, ["builtin", base.__name__]]
        elif type(value).__module__ == "collections" and isinstance(value, dict):
            return pack(dict(value), self._refer)  # Counter, OrderedDict and defaultdict compare like dicts
        return ["mine", self._keep(value), callable(value)]

    def _keep(self, value: Any) -> int:
        index = self.index_of.setdefault(id(value), len(self.kept))
        if index == len(self.kept):
            self.kept.append(value)
        return index

    def _resolve(self, data: list[Any]) -> Any:
        tag, name = data[:2]
        if tag == "yours":
            return self.kept[name]
        if tag == "builtin":
            return getattr(builtins, name)
        of_test = OfTest(self, name)
        return _items(of_test) if tag == "iterator" else of_test


def _items(of_test: OfTest) -> Iterator[Any]:
    """Iterate over an iterator of the test, which returns a list of one item each time, or of none at its end."""
    while item := of_test():
        yield item[0]


def chosen(sources: list[str], wanted: list[str]) -> str:
    """Return the program among a reply and its blocks.

    It is the whole reply if that is Python, else the last block that defines a wanted name, with the earlier blocks
    that define names which it uses; the last block if none does.
    """
    whole, *blocks = sources
    if not blocks or _names(whole):
        return whole
    needed, picked = {*wanted}, list[str]()
    for block in reversed(blocks):
        defined, used = _names(block) or (set(), set())
        if defined & needed:
            needed = (needed | used) - defined
            picked.insert(0, block)
    return "\n".join(picked) or blocks[-1]


def _names(source: str) -> tuple[set[str], set[str]] | None:
    """Return the global names that a program defines, and those that it uses, or `None` if it is not Python."""
    try:
        top = symtable.symtable(source, "<answer>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    symbols = top.get_symbols()
    defined = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}
    used = {s.get_name() for s in symbols if s.is_referenced()}
    inner = top.get_children()
    while inner:
        table = inner.pop()
        inner += table.get_children()
        used |= {s.get_name() for s in table.get_symbols() if s.is_global()}
    return defined, used - defined


def main(sources: list[str], wanted: list[str]) -> None:
    side = AnswerSide(chosen(sources, wanted))
    for used in (sources, wanted):
        used.clear()  # the answer sees nothing of how it was chosen
    while True:
        side.send(side.answer(side.receive()))
