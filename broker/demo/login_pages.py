"""The pages of the demo authorization server. Each says that it is a demonstration."""

from html import escape
from urllib.parse import urlsplit

from aiohttp import web

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: light-dark(#f2f4f8, #14171f) }
main { width: min(26rem, 90vw); padding: 2rem; border-radius: 1rem; background: light-dark(#fff, #1e222d);
  box-shadow: 0 1rem 3rem #0002 }
h1 { margin: 0 0 .25rem; font-size: 1.4rem }
.warning { padding: .5rem .75rem; border-radius: .5rem; background: #b4540a; color: #fff; font-weight: 600 }
label { display: block; margin: 1rem 0 .25rem }
input { width: 100%; box-sizing: border-box; padding: .6rem; font: inherit; border: 1px solid #8888;
  border-radius: .5rem }
button { margin-top: 1rem; width: 100%; padding: .7rem; font: inherit; font-weight: 600; border: 0;
  border-radius: .5rem; background: #2f5bea; color: #fff; cursor: pointer }
"""

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="/style.css">
<main>
<p class="warning">Demonstration only — not for production</p>
<h1>{title}</h1>
{content}
</main>
</html>
"""


def page(title: str, content: str, *, status: int = 200, form_target: str | None = None) -> web.Response:
    """
    Return a page.

    Args:
        title: Its heading, as text.
        content: Its content, as HTML.
        status: The HTTP status.
        form_target: The URI to which its form's answer redirects: browsers hold ``form-action`` against that, too.
    """
    sources = "'self'"
    if form_target is not None:
        parts = urlsplit(form_target)
        sources += f" {parts.scheme}://{parts.netloc}"
    policy = f"default-src 'none'; style-src 'self'; form-action {sources}; frame-ancestors 'none'; base-uri 'none'"
    return web.Response(
        text=_PAGE.format(title=escape(title), content=content),
        status=status,
        content_type="text/html",
        headers={
            "Content-Security-Policy": policy,
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
    )


def login_form(ticket: str, *, client_id: str, redirect_uri: str, login_hint: str | None) -> web.Response:
    """Return the form that asks who the user is. Any name will do: there are no passwords here."""
    content = f"""<p><b>{escape(client_id)}</b> asks you to log in. Any name will do; there is no password.</p>
<form method="post" action="/login">
<input type="hidden" name="ticket" value="{escape(ticket)}">
<label for="username">Name</label>
<input id="username" name="username" value="{escape(login_hint or "alice")}" required maxlength="64" autofocus
  autocomplete="off">
<button id="log-in">Log in</button>
</form>"""
    return page("Demo authorization server", content, form_target=redirect_uri)


def refusal(error: str, detail: str) -> web.Response:
    """Return the page for a request that must not be answered by a redirect."""
    return page("The request is refused", f"<p>{escape(error)}: {escape(detail)}</p>", status=400)
