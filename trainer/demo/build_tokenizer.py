"""Trains a small tokenizer of CLIP's kind (byte-level BPE with an end-of-word mark) on emoji labels and keywords."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from trainer.demo.build_data import BACKGROUNDS, Emoji

NUM_MERGES = 2248
MAX_LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's own word pattern (openai/CLIP, simple_tokenizer.py).
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def _learn_merges(corpus: list[str]) -> list[str]:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512 + NUM_MERGES,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
    )
    tokenizer.train_from_iterator(corpus, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [" ".join(pair) for pair in merges[:NUM_MERGES]]


def build_tokenizer(emoji: list[Emoji], subjects: list[str], folder: Path) -> None:
    """Writes vocab.json, merges.txt, tokenizer.json and tokenizer_config.json; ids in CLIP's order, the end token last.

    The subjects' labels count twenty times: a word that is one token is learned faster than its parts.
    """
    colours = [f"on a {colour} background" for colour in BACKGROUNDS]
    corpus = [text for one in emoji for text in (one.label, one.label, *one.tags)] + colours * 20 + ["style"] * 50
    corpus += subjects * 20
    merges = _learn_merges(corpus)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = (
        alphabet + [byte + "</w>" for byte in alphabet] + [merge.replace(" ", "") for merge in merges] + [START, END]
    )
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=MAX_LENGTH, pad_token=END
    )
    tokenizer.save_pretrained(folder)
