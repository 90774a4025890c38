"""A small closed vocabulary: the words of DigitMath, single digits, and letters for any other word."""

from __future__ import annotations

import string
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ostlight.data.sample import IMAGE_PLACEHOLDER

PAD, UNKNOWN, BOS, EOS = "<pad>", "<unk>", "<bos>", "<eos>"
SYSTEM, USER, ASSISTANT = "<system>", "<user>", "<assistant>"
SPECIALS = (PAD, UNKNOWN, BOS, EOS, IMAGE_PLACEHOLDER, SYSTEM, USER, ASSISTANT)

IDEFICS3_SPECIALS = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
"""What the Idefics3 processor writes around an image."""

MAX_TOKENS = 512

WORDS = (
    "a about add and answer apart are at away bad between bottom by care carefully clear column compare "
    "correct difference digit digits even every far find first follows from good how in is it its large "
    "largest last left let look minus no odd of or order picture plus put quality question read response "
    "result right row score see small smallest sort sorted step sum take tell text that the then think "
    "third three to top two us we what when whether which with wrong yes"
)

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}<assistant>{%- generation -%}"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    "{%- for part in message.content -%}{{ part.text }}{%- endfor -%}{%- endif -%}"
    "{{ eos_token }}{%- endgeneration -%}"
    "{%- else -%}<{{ message.role }}>"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}<image>{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<assistant>{%- endif -%}"
)


def vocabulary(words: str = WORDS) -> dict[str, int]:
    """Token to id. A piece that continues a word starts with ``##``, so that ``12.`` is ``1 ##2 ##.``"""
    characters = [*string.digits, *string.ascii_lowercase, *string.punctuation]
    tokens = [*SPECIALS, *characters, *(f"##{character}" for character in characters), *sorted(words.split())]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def build_tokenizer(more_specials: Sequence[str] = (), words: str = WORDS) -> PreTrainedTokenizerFast:
    """Lower-cases, splits at white space, spells what it does not know; decoding gives single-spaced text back.

    Args:
        more_specials: tokens of a model family, which come after all others.
        words: the whole words it knows, in lower case.
    """
    tokenizer = Tokenizer(models.WordPiece(vocabulary(words), unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[IMAGE_PLACEHOLDER, SYSTEM, USER, ASSISTANT, *more_specials],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=CHAT_TEMPLATE,
    )
