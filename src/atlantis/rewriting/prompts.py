"""What the model reads when it may look at the expert's solution."""

from atlantis.data.demonstrations import Demonstration
from atlantis.data.prompts import Prompt
from atlantis.errors import DataError
from atlantis.records import Conversation

GUIDED_PROMPT = """\
Here are notes on the task that follows. They show one way to a right result:

{solution}

Work through the notes until every step makes sense to you. Then lay them aside and do the task \
from its beginning, step by step, in the wording and order that come naturally to you. Write as \
if you had never seen the notes: neither mention nor quote them. End with the result, in the form \
that the task asks for.

{prompt}"""
"""The plain prompt stands last, so that the completion begins where it will begin in training."""


def guided_prompt(row: Demonstration, template: str) -> Prompt:
    """The prompt of a row with the expert's solution in it; never what is trained on.

    Args:
        row: The row.
        template: With ``{prompt}``, ``{solution}`` and perhaps ``{answer}``.

    Raises:
        DataError: The template wants the answer, and the row has none; or the chat does not end
            with a text.
    """
    if "{answer}" in template and row.answer is None:
        raise DataError(
            f"example {row.example_id!r}: the guided prompt wants the answer, and the row has none"
        )

    def filled(task: str) -> str:
        return template.format(prompt=task, solution=row.expert.strip(), answer=row.answer)

    content, name = row.prompt.content, f"{row.example_id}/guided"
    if isinstance(content, str):
        return Prompt(name, filled(content))
    *before, last = content.messages
    if not isinstance(last.get("content"), str):
        raise DataError(f"example {row.example_id!r}: the last turn before the answer is no text")
    turns = (*before, {**last, "content": filled(last["content"])})
    return Prompt(name, Conversation(name, turns, (), content.tools))


def plain_text(prompt: Prompt) -> str:
    """A prompt as one text, for verifiers and filters."""
    if isinstance(prompt.content, str):
        return prompt.content
    return "\n\n".join(str(message.get("content") or "") for message in prompt.content.messages)
