"""Who may ask: every rule of saekit.serving.guard, on a server that listens."""

from __future__ import annotations

import socket

import pytest

QUESTION = {"text": "the cat sat"}


def test_the_printed_address_is_answered(client):
    page = client.send("")
    assert page.status == 200 and page.headers["content-type"].startswith("text/html")
    assert client.send("text", QUESTION).status == 200
    by_name = {"Host": f"localhost:{client.port}"}
    assert client.send("about", headers=by_name).status == 200


@pytest.mark.parametrize(
    "path", ["", "about", "page.js", "page.css", "latents?q=1", "latents/1", "images/x", "nothing"]
)
def test_nothing_is_answered_without_the_token(client, path):
    half = client.token[:-1]
    # one character more, less or other; another case; encoded; elsewhere
    wrong = ["", half, client.token + "x", half + ("A" if client.token[-1] != "A" else "B")]
    wrong += [client.token.swapcase(), f"x/{client.token}", f"%2e/{client.token}"]
    for token in wrong:
        answer = client.send(f"/{token}/{path}")
        assert answer.status == 403, token
        assert client.token.encode() not in answer.body
    assert client.send(f"/{path}?token={client.token}").status == 403


def test_a_question_without_the_token_is_not_read(client):
    assert client.send("/text", QUESTION).status == 403
    assert client.send(f"/{client.token[:-1]}/steer", {}).status == 403


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost", "[::1]:{port}",
     "127.0.0.1:{port}.evil.example", "127.0.0.2:{port}", ""],
)  # fmt: skip
def test_a_page_under_another_name_is_refused(client, host):
    """DNS rebinding: the name is the attacker's, the address this machine's."""
    answer = client.send("about", headers={"Host": host.format(port=client.port)})
    assert answer.status == 403


def raw(client, request: str) -> bytes:
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as connection:
        connection.sendall(request.encode())
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
        return received


def test_two_hosts_or_none_are_refused(client):
    get = f"GET /{client.token}/about HTTP/1.1\r\n"
    host, end = f"Host: 127.0.0.1:{client.port}\r\n", "Connection: close\r\n\r\n"
    assert b" 200 " in raw(client, get + host + end).splitlines()[0]
    for hosts in ("", "Host: evil.example\r\n" + host, host + "Host: evil.example\r\n"):
        status = raw(client, get + hosts + end).splitlines()[0]
        assert b" 403 " in status or b" 400 " in status, status
    # an address in the request line is not a Host
    absolute = f"GET http://evil.example/{client.token}/about HTTP/1.1\r\nHost: evil.example\r\n"
    assert b" 403 " in raw(client, absolute + end).splitlines()[0]


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:1", "file://",
     "https://127.0.0.1:{port}", "http://localhost:{port}", "http://127.0.0.1:{port}.evil.example"],
)  # fmt: skip
def test_another_origin_is_refused_and_gets_no_cors_header(client, origin):
    headers = {"Origin": origin.format(port=client.port)}
    for path, body, method in (("text", QUESTION, None), ("text", None, "OPTIONS")):
        answer = client.send(path, body, method, headers)
        assert answer.status == 403
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_its_own_origin_is_answered_without_cors_headers(client):
    answer = client.send("text", QUESTION, headers={"Origin": f"http://127.0.0.1:{client.port}"})
    assert answer.status == 200
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_another_site_may_only_link_to_the_page(client):
    link = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    for site in ("cross-site", "same-site"):  # another port of this machine is the same site
        its = {"Sec-Fetch-Site": site}
        assert client.send("text", QUESTION, headers=its).status == 403
        assert client.send("text", QUESTION, headers=its | link).status == 403
        assert client.send("page.js", headers=its | {"Sec-Fetch-Dest": "script"}).status == 403
        frame = its | link | {"Sec-Fetch-Dest": "iframe"}
        assert client.send("", headers=frame).status == 403
        assert client.send("", headers=its | link).status == 200
    assert client.send("", headers={"Sec-Fetch-Site": "none"} | link).status == 200


def test_every_answer_has_a_policy_and_keeps_the_token_to_itself(client):
    for path in ("", "page.js", "about", "nothing", "/wrong/"):
        headers = client.send(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "*" not in policy and "http:" not in policy
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


def test_tokens_are_random_and_compared_in_constant_time(monkeypatch):
    from saekit.serving import guard

    tokens = {guard.new_token() for _ in range(50)}
    assert len(tokens) == 50 and min(map(len, tokens)) >= 43  # 256 bits
    compared = []
    monkeypatch.setattr(
        guard.secrets, "compare_digest", lambda a, b: compared.append((a, b)) or False
    )
    headers = [(b"host", b"127.0.0.1:80")]
    scope = {"path": "/guess/about", "headers": headers, "method": "GET"}
    assert guard.Guard(None, "secret", 80)._refusal(scope) is not None
    assert compared == [(b"guess", b"secret")]


def test_only_this_machine_can_connect(client):
    others = [
        address[4][0]
        for address in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
        if not address[4][0].startswith("127.")
    ]
    for address in {*others, "127.0.0.2"}:
        with pytest.raises(OSError):
            socket.create_connection((address, client.port), timeout=2).close()
