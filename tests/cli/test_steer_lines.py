"""How `saekit steer` prints the tokens that an edit raises and lowers."""

from __future__ import annotations

from saekit_cli.steer import token_lines

from saekit.intervention.steered_text import TokenChange


def test_a_token_that_continues_a_word_is_marked():
    raised = [TokenChange(" station", -12.0, -2.5), TokenChange("ternoon", -9.0, -0.5)]
    lowered = [TokenChange("']:", -1.0, -14.0), TokenChange("é", -1.0, -2.0)]
    assert token_lines(raised, lowered) == [
        "raised   ' station' +9.50  '…ternoon' +8.50",
        "lowered  \"']:\" -13.00  '…é' -1.00",
        "(next token after the prompt, change of its log-probability in nats; … continues a word)",
    ]


def test_a_vocabulary_without_blanks_has_no_marks():
    raised = [TokenChange("cat", -3.0, -2.0)]
    assert token_lines(raised, []) == [
        "raised   'cat' +1.00",
        "lowered  ",
        "(next token after the prompt, change of its log-probability in nats)",
    ]
