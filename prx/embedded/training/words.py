"""Build the word-level caption tokenizer."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from prx.embedded.scenes import vocabulary

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
PAD_ID, EOS_ID = 0, 1
MAX_LENGTH = 24


def num_words() -> int:
    """Count the vocabulary, special tokens included."""
    return 3 + len(vocabulary())


def caption_tokenizer() -> PreTrainedTokenizerFast:
    """Map each caption word to one token and end every text, the empty one too, with an end token."""
    words = {word: index for index, word in enumerate((PAD, EOS, UNKNOWN, *vocabulary()))}
    core = Tokenizer(WordLevel(words, unk_token=UNKNOWN))
    core.normalizer = Lowercase()
    core.pre_tokenizer = Whitespace()
    core.post_processor = TemplateProcessing(single=f"$A {EOS}", pair=f"$A $B {EOS}", special_tokens=[(EOS, EOS_ID)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=MAX_LENGTH,
        padding_side="right",
    )
