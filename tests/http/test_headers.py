"""Headers of gateways: lines, values from the environment, and secrets."""

from __future__ import annotations

import httpx
import pytest

from r3agent.errors import ConfigError
from r3agent.http import client as http
from r3agent.http.errors import read_error
from r3agent.http.headers import check_stored, fill_in, parse_headers


def test_parse_headers() -> None:
    assert parse_headers(["X-A: b:c", "api-key:$K"], setting="--header") == {"X-A": "b:c", "api-key": "$K"}
    with pytest.raises(ConfigError, match="--header: a line has no header's name"):
        parse_headers(["sécret"], setting="--header")


def test_fill_in_takes_values_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_KEY", " s3cret\n")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    headers = {"api-key": "$GATEWAY_KEY", "cookie": "a=${GATEWAY_KEY}; b", "x-cost": "5 $"}
    expected = {"api-key": "s3cret", "cookie": "a=s3cret; b", "x-cost": "5 $"}
    assert fill_in(headers, setting="headers") == expected
    with pytest.raises(ConfigError, match="headers: the environment variable NO_SUCH_KEY is not set"):
        fill_in({"x": "$NO_SUCH_KEY"}, setting="headers")


@pytest.mark.parametrize("name", ["api-key", "Authorization", "x-team-token", "Cookie", "CF-Access-Client-Secret"])
def test_check_stored_refuses_a_secret_without_quoting_it(name: str) -> None:
    check_stored({name: "Bearer $KEY", "x-team": "blue"}, setting="headers")
    with pytest.raises(ConfigError, match=rf"headers\.{name}: its value would be written") as refused:
        check_stored({name: "hunter2"}, setting="headers")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "headers", "authorization"),
    [
        ("EMPTY", {"api-key": "k"}, None),
        ("EMPTY", {"x-team": "blue"}, "Bearer EMPTY"),
        ("sk-1", {"api-key": "k"}, "Bearer sk-1"),
        ("sk-1", {"authorization": "Basic x"}, "Basic x"),
    ],
)
def test_client_sends_the_headers(key: str, headers: dict[str, str], authorization: str | None) -> None:
    with http.ClientSettings(timeout_s=5, api_key=key, headers=headers).open() as client:
        assert client.headers.get("Authorization") == authorization
        assert headers.items() <= dict(client.headers).items()


@pytest.mark.parametrize("headers", [{"x-a": "sécret"}, {"x-a": "se\ncret"}, {"a b": "secret"}, {"x-a": 5}])
def test_client_refuses_headers_that_cannot_be_sent(headers: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="header") as refused:
        http.ClientSettings(timeout_s=5, headers=headers)
    assert "cret" not in str(refused.value)


def test_client_names_the_variable_of_an_unusable_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "carrier-pigeon://me:open-sesame@host")
    with pytest.raises(ConfigError, match="the proxy in HTTP_PROXY") as refused:
        http.ClientSettings(timeout_s=5).open()
    assert "sesame" not in str(refused.value)


def test_client_names_the_setting_of_an_unusable_proxy() -> None:
    with pytest.raises(ConfigError, match="of the setting `proxy`") as refused:
        http.ClientSettings(timeout_s=5, proxy="carrier-pigeon://me:open-sesame@host").open()
    assert "sesame" not in str(refused.value)


def test_errors_quote_no_header() -> None:
    request = httpx.Request("POST", "http://h/v1", headers={"api-key": "open-sesame", "x-a": "b", "accept": "*/*"})
    response = httpx.Response(400, json={"error": "bad open-sesame for b"}, request=request)
    assert read_error(response).message == "bad [the header api-key] for b"
