"""`star prompts --show-core`: every prompt with its core content marked and the token columns of each text encoder."""

from pathlib import Path

from huggingface_hub.errors import GatedRepoError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from star.allocation.columns import span_columns
from star.config import PolicySettings
from star.errors import InputError
from star.prompts.record import Span, read


def tokenizers(policy: PolicySettings) -> dict[str, tuple[PreTrainedTokenizerFast, int]]:
    """The tokenizer and block length of each text encoder of an SD3-format base, without its weights.

    Raises InputError when the base or one of its tokenizers cannot be read.
    """
    found = {}
    for name, folder in (("clip-l", "tokenizer"), ("clip-g", "tokenizer_2"), ("t5", "tokenizer_3")):
        try:
            tokenizer = AutoTokenizer.from_pretrained(policy.model, subfolder=folder, revision=policy.revision)
        except GatedRepoError:
            raise InputError(
                f"policy.model: {policy.model} is gated; accept its licence on its page and `hf auth login`"
            ) from None
        except (OSError, ValueError) as error:
            raise InputError(f"policy.model: no {folder} of {policy.model}: {' '.join(str(error).split())[:200]}") from None
        found[name] = (tokenizer, policy.max_sequence_length if name == "t5" else tokenizer.model_max_length)
    return found


def marked(prompt: str, core: tuple[Span, ...]) -> str:
    """The prompt with its core spans in brackets, each with its kind: `a photo of a [red|attribute] [ring|object]`."""
    text, at = "", 0
    for span in core:
        text += prompt[at : span.start] + f"[{span.text}|{span.kind}]"
        at = span.end
    return text + prompt[at:]


def show(policy: PolicySettings, file: Path) -> None:
    """Print the prompt records of `file`; columns count within the encoder's own block. Raises InputError."""
    records, encoders = read(file), tokenizers(policy)
    for record in records:
        print(marked(record.text, record.core))
        for name, (tokenizer, length) in encoders.items():
            ids = tokenizer(record.text, truncation=True, max_length=length, verbose=False).input_ids
            tokens = tokenizer.convert_ids_to_tokens(ids)
            spans = []
            for span in record.core:
                columns = span_columns(tokenizer, record.text, span.start, span.end, length)
                named = " ".join(f"{c}:{tokens[c]}" for c in columns)
                spans.append(f"{span.text} = {named or 'cut away'}")
            print(f"  {name:<7}{'; '.join(spans)}")
