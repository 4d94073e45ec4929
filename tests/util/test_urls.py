from __future__ import annotations

import pytest

from r3agent._util.urls import redact_url


@pytest.mark.parametrize(
    ("url", "without"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://me:open-sesame@host:8000/v1", "http://host:8000/v1"),
        ("https://me@host/v1", "https://host/v1"),
        ("http://me:open@sesame@host/v1", "http://host/v1"),
        ("http://me:open-sesame@[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("http://me:open-sesame@host/v1?a=b#c", "http://host/v1?a=b#c"),
        ("localhost:8000/v1", "localhost:8000/v1"),
        ("", ""),
    ],
)
def test_an_address_is_shown_without_user_and_password(url: str, without: str) -> None:
    assert redact_url(url) == without


def test_what_is_no_address_is_no_obstacle_to_an_error_message() -> None:
    assert "open-sesame" not in redact_url("http://me:open-sesame@[::1/v1")
