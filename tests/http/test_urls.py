from __future__ import annotations

import re

import pytest

from r3agent.errors import ConfigError
from r3agent.http.urls import ApiURL, redact_url


@pytest.mark.parametrize(
    ("url", "without"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://me:open-sesame@host:8000/v1", "http://host:8000/v1"),
        ("https://me@host/v1", "https://host/v1"),
        ("http://me:open@sesame@host/v1", "http://host/v1"),
        ("http://me:open-sesame@[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("http://me:open-sesame@host/v1?a=b#c", "http://host/v1?a=b#c"),
        ("http://me:open#sesame@host/v1", "http://host/v1"),
        ("http://me:open//sesame@host/v1", "http://host/v1"),
        ("me:open?ses/ame@host/v1", "host/v1"),
        ("localhost:8000/v1", "localhost:8000/v1"),
        ("http://h/v1?api-version=3&key=open-sesame", "http://h/v1?api-version=3&key=..."),
        ("http://h/v1?access_token=open-sesame&a=b", "http://h/v1?access_token=...&a=b"),
        ("http://h/v1?code=open-sesame&sig=b&design=c", "http://h/v1?code=...&sig=...&design=c"),
        ("", ""),
    ],
)
def test_an_address_is_shown_without_user_and_password(url: str, without: str) -> None:
    assert redact_url(url) == without


def test_what_is_no_address_is_no_obstacle_to_an_error_message() -> None:
    assert "open-sesame" not in redact_url("http://me:open-sesame@[::1/v1")


@pytest.mark.parametrize(
    ("base_url", "root", "models", "health"),
    [
        ("http://h:1/v1", "http://h:1", "http://h:1/v1/models", "http://h:1/health"),
        ("http://h/p/v1/", "http://h/p", "http://h/p/v1/models", "http://h/p/health"),
        ("http://h", "http://h", "http://h/models", "http://h/health"),
        ("http://h/v1?api-version=3", "http://h", "http://h/v1/models?api-version=3", "http://h/health?api-version=3"),
        ("http://h/v1/chat/completions", "http://h", "http://h/v1/models", "http://h/health"),
        (
            "http://h/o/d/m/chat/completions/?v=3",
            "http://h/o/d/m",
            "http://h/o/d/m/models?v=3",
            "http://h/o/d/m/health?v=3",
        ),
        ("http://h/a%2Fb/v1", "http://h/a%2Fb", "http://h/a%2Fb/v1/models", "http://h/a%2Fb/health"),
    ],
)
def test_api_url_has_the_routes_of_api_and_server(base_url: str, root: str, models: str, health: str) -> None:
    url = ApiURL(base_url)
    assert (url.root, url.route("/models"), url.server_route("/health")) == (root, models, health)


def test_api_url_keeps_the_password_for_requests_only() -> None:
    url = ApiURL("http://me:open-sesame@h/v1")
    assert url.root == "http://h"
    assert url.route("/models").userinfo == b"me:open-sesame"


@pytest.mark.parametrize("password", ["open#sesame", "1#sesame", "1/sesame", "open?sesame"])
def test_api_url_refuses_a_password_that_is_not_encoded(password: str) -> None:
    with pytest.raises(ConfigError, match=r"base_url = 'http://host/v1': .* as %2F %3F %23 %40") as refused:
        ApiURL(f"http://me:{password}@host/v1")
    assert not re.search("open|sesame", str(refused.value))


@pytest.mark.parametrize("url", ["", "h:1/v1", "ftp://h/v1", "http://", "http://h:x", "http://h:0", "http://h:99999"])
def test_api_url_refuses_what_is_no_http_address(url: str) -> None:
    with pytest.raises(ConfigError, match="url = "):
        ApiURL(url)
