"""
The few pages that the broker itself shows: small, escaped, without anything from elsewhere. Only one has a script.

Source: OWASP Cross Site Scripting Prevention (HTML contexts); W3C Content Security Policy Level 3.
"""

import base64
import hashlib
from collections.abc import Mapping
from html import escape

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:15vh auto;padding:0 1rem;color:#222}"
    "h1{font-size:1.4rem}small{color:#666}li{margin:.5rem 0}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#1a1a1a}a{color:#8ab4f8}small{color:#999}}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

PAGE_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of every page here: the one style above, and nothing else at all."""


SILENT_LOGIN = "bff-silent-login"
"""``source`` of the message that a silent login ends with."""

_TELL = (
    f'parent.postMessage({{source:"{SILENT_LOGIN}",isLoggedIn:document.body.dataset.loggedIn==="true"}},'
    "location.origin)"
)
_TELL_HASH = base64.b64encode(hashlib.sha256(_TELL.encode()).digest()).decode()

FRAME_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; script-src 'sha256-{_TELL_HASH}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'"
)
"""The Content-Security-Policy of what a silent login shows: our own pages may frame it, and the one script may run."""


def _page(title: str, body: str, *, head: str = "") -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="robots" content="noindex">'
        f"{head}<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>"
    )


def _link(url: str, text: str) -> str:
    return f'<a href="{escape(url)}">{escape(text)}</a>'


def continue_page(url: str) -> str:
    """
    Return the page that goes on to *url* by itself.

    It ends a chain of redirects that another site began: what follows is a navigation from our own page, so that
    browsers send SameSite=Strict cookies with it.
    """
    head = f'<meta http-equiv="refresh" content="0;url={escape(url)}">'
    return _page("One moment", f"<p>{_link(url, 'Continue')}</p>", head=head)


def error_page(title: str, advice: str, *, request_id: str, links: Mapping[str, str]) -> str:
    """
    Return the page of an error.

    Args:
        title: What is wrong, as the error class says it. Nothing that came with the request belongs here.
        advice: What that means to the user, and what to do.
        request_id: For whoever looks into the log.
        links: Texts by the URL that they lead to: the ways on.
    """
    ways = "".join(f"<p>{_link(url, text)}</p>" for url, text in links.items())
    said = f"<p>{escape(advice)}</p>" if advice else ""
    return _page(title, f"{said}{ways}<small>If you ask for help, name the request: {escape(request_id)}</small>")


def choice_page(choices: Mapping[str, str]) -> str:
    """Return the page that asks with whom to log in; *choices* are names by the URL that they lead to."""
    items = "".join(f"<li>{_link(url, name)}</li>" for url, name in choices.items())
    return _page("Log in with", f"<ul>{items}</ul>")


def silent_login_page(*, is_logged_in: bool) -> str:
    """Return the page that ends a silent login: it tells the page that frames it, if that is of our own origin."""
    told = "true" if is_logged_in else "false"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Silent login</title></head>'
        f'<body data-logged-in="{told}"><script>{_TELL}</script></body></html>'
    )


def log_out_page(url: str) -> str:
    """Return the page that asks whether to log out; *url* carries the proof that this page was asked."""
    return _page("Log out?", f"<p>{_link(url, 'Log out')}</p>")
