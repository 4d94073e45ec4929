"""Small tasks of code and SQL for `benchmarks/prompts.py`, without a wording of the form of the answer."""

from __future__ import annotations

from r3agent.records.trajectory import Task

CODE = {
    "add(a, b)": ("the sum of two numbers", ["add(1, 2) == 3", "add(-1, 1) == 0"]),
    "is_even(n)": ("True if an integer is even", ["is_even(4)", "not is_even(7)", "is_even(0)"]),
    "reverse(text)": ("a text backwards", ["reverse('abc') == 'cba'", "reverse('') == ''"]),
    "count_vowels(text)": (
        "the number of vowels a, e, i, o, u in a text of lower case",
        ["count_vowels('banana') == 3"],
    ),
    "largest(numbers)": (
        "the largest number of a list, or None if it is empty",
        ["largest([3, 9, 2]) == 9", "largest([]) is None"],
    ),
    "factorial(n)": ("n factorial", ["factorial(5) == 120", "factorial(0) == 1"]),
    "is_palindrome(text)": (
        "True if a text reads the same backwards, ignoring case",
        ["is_palindrome('Level')", "not is_palindrome('ab')"],
    ),
    "unique(items)": (
        "a list without its repeated items, in the order of first appearance",
        ["unique([2, 1, 2, 3, 1]) == [2, 1, 3]"],
    ),
    "fibonacci(n)": (
        "the n-th Fibonacci number, where fibonacci(0) is 0 and fibonacci(1) is 1",
        ["fibonacci(10) == 55", "fibonacci(0) == 0"],
    ),
    "second_smallest(numbers)": (
        "the second smallest distinct number of a list",
        ["second_smallest([3, 1, 1, 2]) == 2"],
    ),
    "word_lengths(text)": (
        "a dict from each word of a text to its length",
        ["word_lengths('a bee') == {'a': 1, 'bee': 3}"],
    ),
    "gcd(a, b)": ("the greatest common divisor of two positive integers", ["gcd(12, 18) == 6", "gcd(7, 3) == 1"]),
}
"""Functions, what they return, and expressions that are true of them."""

SCHEMA = """
CREATE TABLE books (id INTEGER PRIMARY KEY, title TEXT, author TEXT, year INTEGER, price REAL);
INSERT INTO books VALUES (1, 'Dune', 'Herbert', 1965, 9.5), (2, 'Emma', 'Austen', 1815, 7.0),
  (3, 'Persuasion', 'Austen', 1817, 8.0), (4, 'Ulysses', 'Joyce', 1922, 12.0), (5, 'Dubliners', 'Joyce', 1914, 6.5);
CREATE TABLE sales (book_id INTEGER, copies INTEGER);
INSERT INTO sales VALUES (1, 10), (1, 5), (2, 3), (4, 8), (5, 2);
"""

SQL = {
    "How many books are there?": "SELECT count(*) FROM books",
    "Which titles did Austen write?": "SELECT title FROM books WHERE author = 'Austen'",
    "What is the price of the most expensive book?": "SELECT max(price) FROM books",
    "List all titles, oldest first.": "SELECT title FROM books ORDER BY year",
    "Which authors are there, each once?": "SELECT DISTINCT author FROM books",
    "Which titles are from before 1900?": "SELECT title FROM books WHERE year < 1900",
    "How many books has each author written? Give author and number.": (
        "SELECT author, count(*) FROM books GROUP BY author"
    ),
    "How many copies were sold in all?": "SELECT sum(copies) FROM sales",
    "What is the title of the cheapest book?": "SELECT title FROM books ORDER BY price LIMIT 1",
    "How many copies were sold of Dune?": "SELECT sum(copies) FROM sales WHERE book_id = 1",
    "Which titles were never sold?": "SELECT title FROM books WHERE id NOT IN (SELECT book_id FROM sales)",
    "What is the average price of Joyce's books?": "SELECT avg(price) FROM books WHERE author = 'Joyce'",
}
"""Questions about the tables, and queries that answer them."""


def code_tasks() -> list[Task]:
    """Return one task for each function; no wording of the answer's form yet."""
    return [
        Task(
            id=f"code:{signature}",
            messages=({"role": "user", "content": f"Write a Python function {signature} that returns {meaning}."},),
            info={"tests": "\n".join(f"assert {test}" for test in tests)},
        )
        for signature, (meaning, tests) in CODE.items()
    ]


def sql_tasks() -> list[Task]:
    """Return one task for each question."""
    tables = SCHEMA.partition("INSERT")[0].strip() + "\nCREATE TABLE sales (book_id INTEGER, copies INTEGER);"
    return [
        Task(
            id=f"sql:{question}",
            messages=({"role": "user", "content": f"An SQLite database has these tables:\n{tables}\n\n{question}"},),
            info={"schema": SCHEMA, "answer": query},
        )
        for question, query in SQL.items()
    ]
