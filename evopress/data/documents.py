"""A document is a text or a conversation, with a name for error messages."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]
"""A conversation: each message has a `role` and a `content`."""


@dataclass(frozen=True)
class Document:
    """One text of a source.

    `content` is either the text, in pieces that are read when they are needed, or the messages of a conversation.
    """

    name: str
    content: Iterable[str] | Messages
    is_conversation: bool = False

    def pieces(self, tokenizer: PreTrainedTokenizerBase) -> Iterable[str]:
        """The text in pieces. The chat template of the tokenizer turns messages into text.

        Raises ValueError for messages if the tokenizer has no chat template, or if its template refuses them.
        """
        if not self.is_conversation:
            return self.content  # type: ignore[return-value]
        if not tokenizer.chat_template:
            raise ValueError(
                f"{self.name} contains chat messages, but the tokenizer of the model has no chat template: use a model "
                "with a chat template, or set data.text_column to a column that contains text"
            )
        try:
            text = tokenizer.apply_chat_template(list(self.content), tokenize=False)  # type: ignore[arg-type]
        except Exception as error:  # a template is a program that can raise errors of many types
            raise ValueError(
                f"the chat template of the tokenizer refuses {self.name} ({error}): correct these messages, or set "
                "data.text_column to a column that contains text"
            ) from error
        return (str(text),)


def document_of_value(value: object, name: str, column: str) -> Document:
    """The document in one cell of a table: a text, or a list of messages {role, content}.

    Raises ValueError for any other value, and for text that is not Unicode.
    """
    is_conversation = _is_conversation(value)
    if not isinstance(value, str) and not is_conversation:
        shown = json.dumps(value, default=str)[:80]
        raise ValueError(
            f"{name} has {shown} in {column!r}, which is neither text nor a list of messages with a role and a "
            "content: set data.text_column"
        )
    texts = [value] if isinstance(value, str) else [message["content"] for message in value]  # type: ignore[attr-defined]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:  # \ud800, half of a character, is valid JSON but not text
        raise ValueError(f"{name} is not Unicode text ({error.reason})") from error
    return Document(name, value if is_conversation else texts, is_conversation)  # type: ignore[arg-type]


def _is_conversation(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(message, dict) for message in value)
        and all(isinstance(message.get(key), str) for message in value for key in ("role", "content"))
    )
