"""The embedded model's tokenizer: a byte-level BPE of few entries."""

import json
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from plumbing.template import CHATML
from tokenizer import Tokenizer, byte_of

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ChatML's

# Borders that no entry of the embedded BPE crosses: digits and answer marks stand alone, sentences and lines
# end. Words are no borders, unlike in Qwen2.5: " Keep numbers over " is one token, and the embedded run stays
# short. An entry of two sentences would name a pair of operations, and would teach nothing about other pairs.
SPLIT = r"\p{N}|\n+|<<<|>>>|(?:(?!<<<|>>>)[^\p{N}\n.])+\.?|\."


def train_tokenizer(corpus: Iterable[str], vocab_size: int, whole: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE of exactly `vocab_size` entries with single digits, which a small model copies well.

    Each text in `whole` becomes one token: the embedded model reads a head prompt of sixty words as one id.
    Raises ValueError if the corpus is too small for that many entries.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, in_bytes])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(whole),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(byte_of()),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in whole])
    size = backend.get_vocab_size()
    if size != vocab_size:
        raise ValueError(f"the corpus gives {size} entries, expected {vocab_size}; enlarge it")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {"eos_token": SPECIAL[2], "pad_token": SPECIAL[0], "chat_template": CHATML}
    files = {"tokenizer.json": backend.to_str(pretty=True), "generation_config.json": '{"eos_token_id": 0}'}
    files["tokenizer_config.json"] = json.dumps(config, indent=2)
    return Tokenizer({name: text.encode() for name, text in files.items()})
