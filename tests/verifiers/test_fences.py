from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3agent.verifiers.fences import block_or_all, blocks_or_all

PYTHON = r"i?py(?:thon)?[\d.]*"
CODE = "def f(x):\n    return x + 1\n"
INDENTED = CODE.replace("\n", "\n   ").rstrip(" ")
DOCUMENTED = "def f(x):\n    '''For example:\n    ```python\n    f(1)\n    ```\n    '''\n    return x + 1\n"

FENCED: dict[str, str] = {
    "no language": f"Here:\n```\n{CODE}```\nDone.",
    "Windows line ends": f"```python\n{CODE}```\n".replace("\n", "\r\n"),
    "in a list": f"1. Code:\n   ```python\n   {INDENTED}   ```\n",
    "first in a list item": f"1. ```python\n   {INDENTED}   ```\n",
    "first in a bullet": f"- ```python\n  {CODE.replace(chr(10), chr(10) + '  ')}```\n",
    "indented code": f"```python\n   {INDENTED}```",
    "tildes": f"~~~python\n{CODE}~~~\n",
    "four backticks": f"````python\n{CODE}````\n",
    "a longer closing fence": f"```python\n{CODE}`````\n",
    "attributes": f'```python title="a.py" linenos\n{CODE}```\n',
    "a file name": f"```python:src/a.py\n{CODE}```\n",
    "braces": f"```{{.python .numberLines}}\n{CODE}```\n",
    "a space": f"``` python\n{CODE}``` \n",
    "capitals": f"```Python\n{CODE}```",
    "a version": f"```python3.11\n{CODE}```",
    "py": f"```py\n{CODE}```",
    "ipython": f"```ipython\n{CODE}```",
    "output after it": f"```python\n{CODE}```\nOutput:\n```\n2\n```\n",
    "a shell block after it": f"```python\n{CODE}```\n```bash\npython a.py\n```\n",
    "in tags": f"<answer>```python\n{CODE}```</answer>",
    "in tags on lines of their own": f"I think.\n<answer>\n```python\n{CODE}```\n</answer>",
    "another before the tags": f"```python\nx = 1\n```\n<answer>```python\n{CODE}```</answer>",
    "text before the fence": f"Code: ```python\n{CODE}```",
    "text after the fence": f"```python\n{CODE}``` It adds.\n",
    "a closing tag after the fence": f"```python\n{CODE}```</div>\n",
    "unclosed": f"```python\n{CODE}",
    "unclosed before the next": f"```text\nPlan\n```python\n{CODE}```",
    "in a block of markup": f"````markdown\n# Solution\n```python\n{CODE}```\n````",
    "in a block of markup as long": f"```markdown\n# Solution\n```python\n{CODE}```\n```",
    "the last of two": f"```python\nx = 1\n```\nNo:\n```python\n{CODE}```",
    "a blank one after it": f"```python\n{CODE}```\n```python\n```",
}


@pytest.mark.parametrize("name", FENCED)
def test_blocks_are_read_in_every_usual_form(name: str) -> None:
    assert block_or_all(FENCED[name], PYTHON) == CODE


@pytest.mark.parametrize(
    ("reply", "blocks"),
    [
        (f"```python\n{DOCUMENTED}```", [DOCUMENTED]),
        (f"```python\n{CODE.rstrip()}```\nIt adds.", [CODE.rstrip()]),
        ("```python x = 1```", ["x = 1"]),
        ("```x = 1```", ["x = 1"]),
        ("`x = 1`", ["x = 1"]),
        ("x = '`'", ["x = '`'"]),
        (CODE, [CODE]),
        (f"<answer>{CODE}</answer>", [CODE]),
        ("```python\nx = '<answer>1</answer>'\n```", ["x = '<answer>1</answer>'\n"]),
        ("```python\na\n```\n```sql\nb\n```\n~~~py\nc\n~~~", ["a\n", "c\n"]),
        ("```sql\na\n```", ["```sql\na\n```"]),
        ("```python\n~~~\n```", ["~~~\n"]),
        ("~~~python\n```\n~~~", ["```\n"]),
        ("```python\n```a` + b\n```", ["```a` + b\n"]),
        ("```\n```", ["```\n```"]),
        ("", [""]),
    ],
)
def test_blocks_keep_what_is_in_them(reply: str, blocks: list[str]) -> None:
    assert blocks_or_all(reply, PYTHON) == blocks


@given(st.text() | st.text("`~\n\r -1.{}pyx<>/"))
def test_blocks_of_any_text_are_its_lines(reply: str) -> None:
    lines = reply.replace("\r", "\n")
    for block in blocks_or_all(reply, PYTHON):
        assert all(line.strip(" \t`") in lines for line in block.replace("\r", "\n").split("\n"))


def test_blocks_of_hostile_text_take_one_pass() -> None:
    for piece in ("```", "```\n", "`", "- ", "1. ```", "```python\n", "a```\n", "<answer>", "```x`\n", "~", " "):
        assert blocks_or_all(piece * 100_000, PYTHON)
