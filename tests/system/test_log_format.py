"""One stream, one form: the supervisor's lines and those of requests are as the others are."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.config.configs import ENVIRONMENT, over_base
from tests.support.ports import free_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(60)]

TEXT = re.compile(
    r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z (debug  |info   |warning|error  ) (?P<event>[a-z_]+)( .*)?"
)


def test_a_log_is_all_text_or_all_json(tmp_path: Path) -> None:
    """A reload may change the form; what comes after it is in the other one."""
    config, port = tmp_path / "broker.yaml", free_port()
    text = (
        f"listen: 127.0.0.1:{port}\nadmin: {{listen: '127.0.0.1:{free_port()}'}}\ngrants: {{}}\n"
        f"store: {{url: 'sqlite://{tmp_path}/broker.db'}}\nlog: {{format: text}}\n"
    )
    config.write_text(over_base(text))
    lines: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", "broker", "run", str(config)],
        env={**os.environ, **ENVIRONMENT},
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stderr is not None

        def read_until(event: str) -> None:
            for line in iter(running.stderr.readline, ""):  # type: ignore[union-attr]
                lines.append(line.rstrip("\n"))
                if event in line:
                    return
            raise AssertionError(lines)

        try:
            read_until("started")
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/no-route", timeout=10)
            refused.value.close()
            read_until("/no-route")
            config.write_text(over_base(text.replace("text", "json")))
            running.send_signal(signal.SIGHUP)
            read_until("reloading")
            in_text = list(lines)
            lines.clear()
            read_until('"event":"reloaded"')
        finally:
            running.terminate()
        assert 0 == running.wait(20)
    found = [TEXT.fullmatch(line) for line in in_text]

    assert ["started", "request", "reloading"] == [
        match["event"] for match in found if match is not None and match["event"] != "request_refused"
    ][-3:]
    assert None not in found
    assert "broker.web.workers" == json.loads(lines[-1])["logger"]
