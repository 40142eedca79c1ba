import logging
import sys

import pytest

from orchestrator.masking import SafeFormatter, has_secret, mask_secrets

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("postgresql://u:hunter2@h/db", "postgresql://u:***@h/db"),
        ("postgresql+psycopg://u:hunter2@h:5432/db", "postgresql+psycopg://u:***@h:5432/db"),
        ("postgresql://u:a/hunter2@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:a@hunter2@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:a?hunter2#x@h/db", "postgresql://u:***@h/db"),
        ("postgresql://:hunter2@h/db", "postgresql://:***@h/db"),
        ("postgresql://u%40server:hunter2@h/db", "postgresql://u%40server:***@h/db"),
        ("postgresql://u@server:hunter2@h/db", "postgresql://u@server:***@h/db"),
        ("postgresql://h/db?password=p'hunter2", "postgresql://h/db?password=***"),
        ("postgresql://u%3Ahunter2@h/db", "postgresql://u%3A***@h/db"),
        ("postgresql://u:%68unter2%40hunter2@h/db", "postgresql://u:***@h/db"),
        ("postgresql://h/db?user=u&password=hunter2", "postgresql://h/db?user=u&password=***"),
        ("postgresql://h/db?sslpassword=hunter2&x=1", "postgresql://h/db?sslpassword=***&x=1"),
        ("postgresql://h/db?passwrod=hunter2", "postgresql://h/db?passwrod=***"),
        ("http://u:hunter2@h:5000/api", "http://***@h:5000/api"),
        ("HTTPS://hunter2@h/api", "HTTPS://***@h/api"),
        ("https://hunter2:x-oauth-basic@h", "https://***@h"),
        ("http:/u:hunter2@h", "http:/***@h"),
        ("postgresql:/u:hunter2@h/db", "postgresql:/u:***@h/db"),
        ("https://h/a?access_token=hunter2#b", "https://h/a?access_token=***#b"),
        ("https://h/a?X-Amz-Signature=hunter2&b=1", "https://h/a?X-Amz-Signature=***&b=1"),
        ("s3://AKIA:hun/ter2@bucket/x?region=us", "s3://AKIA:***@bucket/x?region=us"),
        ("s3://b/x?secret_key=hunter2&access_key=AK", "s3://b/x?secret_key=***&access_key=***"),
    ],
)
def test_secrets_of_a_url_are_masked_wherever_it_stands(url, masked):
    assert mask_secrets(url) == masked
    assert SECRET not in mask_secrets(f"cannot open '{url}' or {url}: failed")
    assert has_secret(url) == ("://" in url)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://user@h:5432/db?connect_timeout=1",
        "s3://bucket/folder@v2/x?endpoint_override=127.0.0.1%3A9000",
        "abfss://container@account.dfs.core.windows.net/x",
        "gs://anonymous@bucket/x",
        "sqlite:////home/me@work/a:b@c.db",
        "sqlite:////a:b@c.db",
        "/home/me@work/100%/results",
        "http://127.0.0.1:5000/#/experiments/1",
        "run 0 AOL-Small (CIFAR-10, seed 0): done in 3 min",
    ],
)
def test_text_without_a_secret_stays_as_it_is(text):
    assert mask_secrets(text) == text
    assert not has_secret(text)


def test_a_path_has_no_secret_whatever_its_name():
    assert not has_secret("/data/a?key=b#token=c")


def test_a_log_has_no_password_and_no_control_character_also_not_in_a_traceback():
    try:
        raise ValueError(f"http://u:{SECRET}@h \x1b[2J")
    except ValueError:
        record = logging.LogRecord(
            "x", logging.ERROR, "", 0, "%s", (f"s3://a:{SECRET}@b",), sys.exc_info()
        )

    text = SafeFormatter().format(record)

    assert text.startswith("s3://a:***@b\nTraceback")
    assert text.endswith("ValueError: http://***@h \\x1b[2J")
    assert SECRET not in text
