"""Settings of a rewriting that cannot work are refused."""

import pytest
from pydantic import ValidationError

from atlantis.rewriting.config import RewritingConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"self_attempts": 0, "guided_attempts": 0}, "nothing is rewritten"),
        ({"temperature": 0}, "self_attempts 1"),
        ({"guided_temperature": 0}, "guided_attempts 1"),
        ({"guided_prompt": "{prompt}"}, "{solution} is missing"),
        ({"guided_prompt": "{solution}"}, "{prompt} is missing"),
        ({"guided_prompt": "{prompt} {solution} {hint}"}, "unknown field {hint}"),
        ({"guided_prompt": "{prompt} {solution} {"}, "write a brace as"),
        ({"leaks": ["("]}, "no regular expression"),
        ({"max_copied": 1.5}, "less than or equal to 1"),
        ({"select": "best"}, "most_likely"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(settings, message):
    with pytest.raises(ValidationError, match="(?s)" + message.replace("{", r"\{")):
        RewritingConfig(**settings)


def test_the_default_guided_prompt_ends_with_the_plain_one():
    assert RewritingConfig().guided_prompt.endswith("{prompt}")
