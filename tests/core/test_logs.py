import io
import json
import logging

import pytest

from app.core import logs


@pytest.fixture
def stream():
    """The root logger speaks into it, as JSON, for the length of one test."""
    root = logging.getLogger()
    kept, level, ours = root.handlers[:], root.level, logging.getLogger("pairwright").level
    out = io.StringIO()
    logs.set_up("worker", "info", out)
    yield out
    root.handlers[:] = kept
    root.setLevel(level)
    logging.getLogger("pairwright").setLevel(ours)


def test_a_line_is_one_json_object_with_process_and_message(stream):
    logging.getLogger("pairwright.pool").info("run %s started", "01ab")
    row = json.loads(stream.getvalue())
    assert (row["process"], row["level"], row["message"]) == ("worker", "info", "run 01ab started")
    assert row["time"].endswith("Z")


def test_a_logged_dict_becomes_keys(stream):
    logging.getLogger("pairwright.web").info({"request": "01ab", "status": 200})
    row = json.loads(stream.getvalue())
    assert (row["request"], row["status"]) == ("01ab", 200)


def test_an_error_is_named_without_its_text(stream):
    try:
        raise ValueError("canary")
    except ValueError:
        logging.getLogger("pairwright.pool").exception("filling the pool failed")
    row = json.loads(stream.getvalue())
    assert (row["error"], row["message"]) == ("ValueError", "filling the pool failed")
    assert row["at"].startswith("test_logs.py:")
    assert "canary" not in stream.getvalue()


def test_libraries_speak_from_warnings_on(stream):
    logging.getLogger("httpx").info("GET http://secret")
    assert stream.getvalue() == ""
