"""Token ids -> text while they arrive, without ever showing half a character.

- A character may be spread over several byte-level tokens: its text appears with the token that completes it.
- Each id is decoded once or a few times, never the whole reply again.
"""
HALF = "\ufffd"  # what a decoder writes for bytes that are not (yet) a character
LONGEST_CHARACTER = 4  # bytes of UTF-8, hence tokens that one character can be spread over


class Detokenizer:
    """Streaming decoder of one reply. `tokenizer` needs `decode(ids, skip_special_tokens, clean_up_tokenization_spaces)`."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.pending: list[int] = []  # ids whose text has not been returned; they start on a character boundary

    def push(self, token_id: int) -> str:
        """Text that this id completes; '' while a character is unfinished."""
        self.pending.append(token_id)
        text = self._decode(self.pending)
        if text.endswith(HALF) and len(self.pending) <= LONGEST_CHARACTER:
            return ""
        keep = 0
        if text.endswith(HALF):  # broken bytes in front; what may still become a character stays pending
            keep = next((n for n in range(LONGEST_CHARACTER - 1, 0, -1) if self._decode(self.pending[-n:]) == HALF), 0)
            text = self._decode(self.pending[:-keep]) if keep else text
        self.pending = self.pending[len(self.pending) - keep:]
        return text

    def flush(self) -> str:
        """The rest, when no id will follow; an unfinished character is dropped."""
        text = self._decode(self.pending).rstrip(HALF)
        self.pending = []
        return text

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
