"""`star prompts --show-core`: every prompt with its core content marked and the token columns of each text block."""

from pathlib import Path

from star.config import PolicySettings
from star.models.door import text_blocks
from star.prompts.record import Span, read


def marked(prompt: str, core: tuple[Span, ...]) -> str:
    """The prompt with its core spans in brackets, each with its kind: `a photo of a [red|attribute] [ring|object]`."""
    text, at = "", 0
    for span in core:
        text += prompt[at : span.start] + f"[{span.text}|{span.kind}]"
        at = span.end
    return text + prompt[at:]


def show(policy: PolicySettings, file: Path) -> None:
    """Print the prompt records of `file`; columns count within their own block. Raises InputError."""
    records, blocks = read(file), text_blocks(policy)
    for record in records:
        print(marked(record.text, record.core))
        for block in blocks:
            tokens = block.tokenizer.convert_ids_to_tokens(block.tokens(record.text))
            spans = []
            for span in record.core:
                named = " ".join(f"{column}:{tokens[column]}" for column in block.columns(record.text, span))
                spans.append(f"{span.text} = {named or 'cut away'}")
            print(f"  {block.name:<7}{'; '.join(spans)}")
