"""Random requests: mostly right, often odd, sometimes broken. A seed gives the same ones again."""

import random
import re

METHODS = (
    ["GET"] * 12 + ["HEAD"] * 3 + ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", "PROPFIND", "FOO", ""]
)
METHODS += ["QUERY", "NOTIFY", "M-SEARCH", "CONNECT"]
TARGETS = [
    "/",
    "/api",
    "/api/orders?x=1&y=%2F",
    "/api/private",
    "/apix",
    "/API",
    "/%61pi",
    "/a//b",
    "/a/../b",
    "/a%2fb",
]
TARGETS += [
    "/a;b/c",
    "/caf%C3%A9",
    "/x?#",
    "/bff/login",
    "/bffx",
    "*",
    "",
    "http://app.example.com/abs",
    "http://evil/",
]
TARGETS += [
    "http://APP.example.com/api?x=/",
    "https://app.example.com/api/private",
    "HTTP://app.example.com/",
    "http://app.example.com",
    "http://app.example.com?x",
    "http://app.example.com/bff/login",
    "http://app.example.com/%62ff/x",
    "http://app.example.com//api",
    "http://app.example.com:443/api",
    "http://u@app.example.com/api",
    "http:///api",
    "http://app.example.com/#",
]
TARGETS += ["/api/" + "d/" * 50, "/x?" + "q" * 3000, "/\u00e9", "/a b", "/.", "/%zz", "//evil", "/api?[]{}|"]
VERSIONS = ["HTTP/1.1"] * 16 + ["HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "http/1.1", "", "HTTP/1.1 "]
HOSTS = ["Host: app.example.com"] * 14 + ["host: APP.example.com.", "Host: app.example.com:443", "Host: evil.example"]
HOSTS += [
    "Host:",
    "",
    "Host: app.example.com\r\nHost: app.example.com",
    "Host: a@b",
    "Host:app.example.com",
    "Host:  app.example.com ",
]
FIELDS = [
    "User-Agent: Mozilla/5.0", "Accept: */*", "accept: text/html", "Accept-Encoding: gzip, deflate, br", "X-CSRF: 1",
    "X-CSRF: 2", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site", "Origin: https://app.example.com",
    "Origin: https://evil.example", "Authorization: Bearer stolen", "X-User: root", "X_User: root", "X-Tenant: evil",
    "Connection: keep-alive", "Connection: close", "Connection: X-Hop, keep-alive", "X-Hop: 1", "Keep-Alive: timeout=5",
    "TE: trailers", "Upgrade: h2c", "Connection: Upgrade", "X-Forwarded-For: 6.6.6.6", "X-Forwarded-Host: evil",
    "Forwarded: for=6.6.6.6", "X-Request-ID: mine", "Cookie: theme=dark", "Cookie: a=1; b=2", "X-Empty:", "X-Space:  v  ",
    "X-Obs: \u00e9", "X-Bad: a\x01b", "X-Bad\x00: 1", " folded", "X-NoColon", ": 1", "X A: 1", "Content-Length: 0",
    "Content-Length: x", "Transfer-Encoding: identity", "Expect: tea", "Range: bytes=0-9", 'If-None-Match: "x"',
    "Content-Type: a/b", "User-Agent: twice", "Proxy: evil", "Max-Forwards: 3", "X-Long: " + "l" * 5000, "DNT: 1",
    "X-Tab: a\tb", "X-Tab:\tv", "X-Tab: v\t", "X-Tab: v \t ", "X-Tab: \t v", "X-Tab:\t", "\tX: 1", "X-Tab\t: 1", "X\tY: 1",
    "Content-Length:\t0", "Connection:\tclose", "Connection: close\t", "X-CSRF:\t1\t", "Origin:\thttps://evil.example",
    "Transfer-Encoding:\tidentity", "Upgrade:\th2c", "Cookie:\ta=1\t; b=2", "\tfolded",
    "Sec-WebSocket-Key1: x", "x-\u00e9: 1", "traceparent: 00-aa-bb-01", "X-Debug: 1", "Server: me", "ETag: x",
]  # fmt: skip


def random_request(seed: int, *, cookie: str) -> bytes:
    """Return the bytes of a request. *cookie* is a session cookie that may be among its fields."""
    source = random.Random(seed)
    if source.random() < 0.5:
        lines = [f"GET {source.choice(['/', '/api', '/api/private', '/apix?y=1', '/a;b/c'])} HTTP/1.1"]
        fields = [HOSTS[0]]
    else:
        lines = [" ".join([source.choice(METHODS), source.choice(TARGETS), source.choice(VERSIONS)])]
        fields = [source.choice(HOSTS)]
    fields += source.sample(FIELDS[:28], source.randrange(8)) if source.random() < 0.8 else []
    fields += source.sample(FIELDS, source.randrange(4)) if source.random() < 0.4 else []
    if source.random() < 0.8:
        fields.append(f"Cookie: x=1; {cookie}" if source.random() < 0.5 else f"cookie: {cookie}")
    if source.random() < 0.6:
        fields.append("X-CSRF: 1")
    if source.random() < 0.3:
        source.shuffle(fields)
    data = "\r\n".join([*lines, *filter(None, fields), "", ""]).encode("latin-1")
    if source.random() < 0.15:
        at = source.randrange(len(data))
        data = data[:at] + bytes([source.randrange(256)]) * source.randrange(3) + data[at + source.randrange(3) :]
    elif source.random() < 0.3:
        return _with_body(data, source)
    # Without an end of the head both sides would wait for more.
    return data if b"\r\n\r\n" in data else data + b"\r\n\r\n"


def _with_body(head: bytes, source: random.Random) -> bytes:
    """The same with a body, which may be followed by what isn't part of it; never with less than it says."""
    body = source.randbytes(source.choice([0, 1, 40, 3000]))
    if source.random() < 0.2:
        field, body = (
            b"Transfer-Encoding: chunked",
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n",
        )
    else:
        field = b"Content-Length: %d" % len(body)
    if source.random() < 0.1:
        field = field.replace(b": ", source.choice([b":\t", b": \t", b":"])) + source.choice([b"\t", b" \t", b""])
    if source.random() < 0.4:
        head = re.sub(rb"^GET", source.choice([b"POST", b"PUT", b"PATCH", b"DELETE"]), head)
    surplus = source.choice([b"\r\n", b"x", b"GET / HTTP/1.1\r\n"]) if source.random() < 0.1 else b""
    return head[:-2] + field + b"\r\n\r\n" + body + surplus
