"""References of the tests to objects of the answer, which live in the answer's process.

A reference never equals a plain value, whatever the answer's `__eq__` returns, and arithmetic with a plain value never
returns a plain one. Otherwise the answer itself would decide `abs(f(x) - expected) < 1e-6`.
"""

from __future__ import annotations

import builtins
import importlib
from collections.abc import Callable, Iterator
from typing import Any

from r3agent.verifiers.child.wire import HungUp, Peer, pack, unpack


class Unfit(BaseException):
    """The tests cannot run, which is not the answer's fault."""


class Reference:
    """Reference to an object of the answer."""

    def __init__(self, side: TestSide, index: int) -> None:
        self.__dict__.update(_side=side, _index=index)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._side.call(self._index, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._side.do("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._side.do("setattr", self, name, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(Items(self._side.do("iter", self)))

    def __next__(self) -> Any:
        return self._side.do("next", self)

    def __getitem__(self, key: Any) -> Any:
        return self._side.do("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._side.do("setitem", self, key, value)

    def __delitem__(self, key: Any) -> None:
        self._side.do("delitem", self, key)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, Reference) and bool(self._side.do("isinstance", instance, self))


def _unary(name: str, kind: type) -> Callable[[Reference], Any]:
    def ask(self: Reference) -> Any:
        result = self._side.do(name, self)
        if not isinstance(result, kind):
            raise TypeError(f"the answer's {name} gave a {type(result).__name__}")
        return result

    return ask


def _comparison(name: str) -> Callable[[Reference, Any], Any]:
    def ask(self: Reference, other: Any) -> Any:
        return bool(self._side.do(name, self, other)) if isinstance(other, Reference) else NotImplemented

    return ask


def _arithmetic(name: str, *, swapped: bool) -> Callable[[Reference, Any], Any]:
    def ask(self: Reference, other: Any) -> Any:
        result = self._side.do(name, *((other, self) if swapped else (self, other)))
        if not (isinstance(result, Reference) or isinstance(other, Reference)):
            raise TypeError(f"{name} of an object of the answer's and a {type(other).__name__} gave a plain value")
        return result

    return ask


_UNARY = {"len": int, "bool": bool, "str": str, "repr": str, "hash": int, "int": int, "float": float}
for _name, _kind in _UNARY.items():
    setattr(Reference, f"__{_name}__", _unary(_name, _kind))
for _name in ("eq", "lt", "le", "gt", "ge"):
    setattr(Reference, f"__{_name}__", _comparison(_name))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor"):
    setattr(Reference, f"__{_name.strip('_')}__", _arithmetic(_name, swapped=False))
    setattr(Reference, f"__r{_name.strip('_')}__", _arithmetic(_name, swapped=True))
Reference.__neg__ = _unary("neg", Reference)  # type: ignore[attr-defined]


class Items:
    """Iterator over an iterator of the answer."""

    def __init__(self, iterator: Any) -> None:
        self.iterator = iterator

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self.iterator)


class TestSide(Peer):
    """The tests' side."""

    def __init__(self) -> None:
        super().__init__()
        self.references: dict[int, Reference] = {}
        self.exceptions: dict[int, type[Exception]] = {}
        self.passed: list[Callable[..., Any]] = []
        self.is_used = False
        """The tests have used something of the answer."""

    def do(self, what: str, *args: Any) -> Any:
        self.is_used = True
        return self.value(self.ask(what, self.packed(list(args))), may_stop=what == "next")

    def call(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.is_used = True
        reply = self.ask("call", index, self.packed(list(args)), self.packed(kwargs))
        for place, data in reply[2] if reply[0] == "ok" else ():
            _become(args[place], self.unpacked(data))
        return self.value(reply)

    def answer(self, request: list[Any]) -> list[Any]:
        """Serve the only kind of request: a call of a function that a test has passed."""
        what, index, args, kwargs = request
        if what != "call" or not isinstance(index, int) or not 0 <= index < len(self.passed):
            raise HungUp(f"asked for {what}")
        try:
            return ["ok", self.packed(self.passed[index](*self.unpacked(args), **self.unpacked(kwargs)))]
        except Exception as error:
            kind = next(k for k in type(error).__mro__ if k.__module__ == "builtins")
            return ["raise", ["builtin", kind.__name__]]

    def packed(self, value: Any) -> Any:
        return pack(value, self._refer)

    def unpacked(self, data: Any) -> Any:
        return unpack(data, self._resolve)

    def value(self, reply: list[Any], *, may_stop: bool = False) -> Any:
        if reply[0] == "ok":
            return self.unpacked(reply[1])
        kind, args = self.unpacked(reply[1]), self.unpacked(reply[2])
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise RuntimeError("the answer raised what is no Exception")
        if issubclass(kind, StopIteration) and not may_stop:  # it would end a loop in the tests, and no test would fail
            kind = RuntimeError
        try:
            error = kind(*args)
        except Exception:  # one of the few with other arguments
            error = RuntimeError(f"the answer raised {kind.__name__}")
        error.of_answer = True  # type: ignore[attr-defined]
        raise error

    def definitions(self, names: list[str]) -> dict[str, Any]:
        """Return what the answer defines under these names."""
        found = {name: self.value(self.ask("global", name)) for name in self.value(self.ask("has", names))}
        self.is_used |= any(not isinstance(value, Reference) for value in found.values())
        return {name: found[name] for name in names if name in found}

    def _refer(self, value: Any) -> list[Any]:
        if isinstance(value, Reference):
            return ["yours", value._index]
        if isinstance(value, type):
            if getattr(builtins, value.__name__, None) is value:
                return ["builtin", value.__name__]
            for index, kind in self.exceptions.items():
                if kind is value:
                    return ["yours", index]
        elif callable(value):
            return ["function", self._give(value)]
        elif hasattr(value, "__next__"):
            return ["iterator", self._give(lambda: [item for _, item in zip("1", value, strict=False)])]
        kind = type(value)
        raise Unfit(f"they pass a {kind.__module__}.{kind.__qualname__}; only plain values and functions can be passed")

    def _give(self, function: Callable[..., Any]) -> int:
        self.passed.append(function)
        return len(self.passed) - 1

    def _resolve(self, data: list[Any]) -> Any:
        tag, name = data[:2]
        if isinstance(name, int):
            if tag == "mine":
                return self.references.setdefault(name, Reference(self, name))
            if tag == "yours" and 0 <= name < len(self.passed):
                return self.passed[name]
        elif tag == "builtin" and isinstance(found := getattr(builtins, name, None), type):
            return found
        elif tag == "module":
            try:
                return importlib.import_module(name)
            except BaseException:  # some end the process
                raise ValueError(tag) from None
        if tag == "exception":
            base = self._resolve(data[3])
            if not issubclass(base, Exception):
                base = Exception
            kind: Any = type(str(data[2]), (base,), {})
            return self.exceptions.setdefault(name, kind)
        raise ValueError(tag)


def _become(argument: Any, value: Any) -> None:
    """Apply the answer's in-place change to an argument."""
    if type(argument) is not type(value):
        raise HungUp("an argument changed its type")
    if isinstance(argument, (list, bytearray)):
        argument[:] = value
    elif isinstance(argument, (dict, set)):
        argument.clear()
        argument.update(value)
