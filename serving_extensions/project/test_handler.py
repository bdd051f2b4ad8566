"""The handler without a running server: pip install pytest && python -m pytest"""

import pytest
from handler import inference_handler

from serving import BadRequest


def test_a_text_answers_its_words_and_characters():
    assert inference_handler("hello there", None) == {"words": 2, "characters": 11}


def test_what_is_no_text_is_refused():
    with pytest.raises(BadRequest, match="expected a string, got list"):
        inference_handler([1, 2], None)
