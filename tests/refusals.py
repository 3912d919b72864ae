"""What tests of bad input share."""

import pytest


def refused(call) -> str:
    """The message of the one-line ValueError that `call` raises."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert 10 < len(message) < 500 and len(message.splitlines()) == 1, message
    return message
