"""Where does `model=tiny` come from? From `python -m lezo.model.tiny.pretrain [--out DIR]`, minutes on two cores.

It trains a byte-level tokenizer and a small OPT on `lezo.model.tiny.text` and writes both as a Hugging Face folder.
The texts and their order are the same on every machine, the weights up to the machine's rounding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from lezo.model.tiny.text import text

SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]
BOS, PAD, EOS, UNK = range(4)  # as in OPT: a text opens with BOS, yet the tokenizer's own bos is "</s>"
VOCABULARY = 1024  # at most: training stops when every word of the texts is a token
TOKENIZER_TEXTS = 8000
STEPS = 900
BATCH = 60  # texts a step; whole fives, see `text`
LONG = 12  # of them the longest, which run apart so that little is padding
LEARNING_RATE = 2.5e-3
WARMUP = 100  # steps
WIDTH = 64
INITIAL_STD = {"embed_tokens": 0.1, "embed_positions": 0.05, "out_proj": 0.02, "fc2": 0.02}
LAST_WORD = 8.0  # weight of a text's last token, which tells what the text means


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE with OPT's special tokens and ids; it adds no BOS of its own."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="</s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        clean_up_tokenization_spaces=False, model_max_length=512,
    )  # fmt: skip


def build_model(vocabulary: int) -> OPTForCausalLM:
    """An untrained OPT of eight narrow blocks, about half a million parameters."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, word_embed_proj_dim=WIDTH, ffn_dim=4 * WIDTH, num_hidden_layers=8,
        num_attention_heads=4, max_position_embeddings=512, dropout=0.0, attention_dropout=0.0,
        bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD,
    )  # fmt: skip
    model = OPTForCausalLM(config)
    for name, matrix in ((name, p) for name, p in model.named_parameters() if p.ndim == 2):
        # Wider than OPT's 0.02, at which a width of 64 learns nothing for hundreds of steps.
        std = next((std for part, std in INITIAL_STD.items() if part in name), WIDTH**-0.5)
        torch.nn.init.normal_(matrix, std=std)
    return model


def batches(tokenizer: PreTrainedTokenizerFast, steps: int) -> Iterator[list[list[list[int]]]]:
    """Per step the token ids of BATCH fresh texts in two groups, the short ones and the LONG longest."""
    for first in range(0, steps * BATCH, BATCH):
        texts = [text(i) for i in range(first, first + BATCH)]
        ids = sorted(([BOS, *row] for row in tokenizer(texts)["input_ids"]), key=len)
        yield [ids[:-LONG], ids[-LONG:]]


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids (B, T), right-padded, and the weight (B, T-1) of predicting each next one."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    weight = (ids[:, 1:] != PAD).float()
    weight[torch.arange(len(rows)), torch.tensor([len(row) - 2 for row in rows])] = LAST_WORD
    return ids, weight


def loss_of(model: OPTForCausalLM, rows: list[list[int]]) -> Tensor:
    """Weighted mean of the next-token cross-entropy over a group of texts."""
    ids, weight = padded(rows)
    logits = model(input_ids=ids, attention_mask=(ids != PAD).long(), use_cache=False).logits[:, :-1]
    losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weight.flatten()).sum() / weight.sum()


def train(model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int) -> None:
    """AdamW with a warm-up and a linear decay to zero; prints the loss every hundred steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    scale = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / WARMUP, 1 - s / steps))
    model.train()
    for step, groups in enumerate(batches(tokenizer, steps), start=1):
        optimizer.zero_grad()
        losses = [len(rows) / BATCH * loss_of(model, rows) for rows in groups]
        torch.autograd.backward(losses)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scale.step()
        if step % 100 == 0 or step == steps:
            print(f"step {step}/{steps} loss {sum(loss.item() for loss in losses):.4f}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Train tokenizer and model, and write them to the folder ``--out``."""
    parser = argparse.ArgumentParser("python -m lezo.model.tiny.pretrain", description="Pretrain `tiny`.")
    here = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=here, help="folder to write (default: this one)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of {BATCH} texts (default: {STEPS})")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    tokenizer = build_tokenizer([text(i) for i in range(TOKENIZER_TEXTS)])
    model = build_model(len(tokenizer))
    train(model, tokenizer, options.steps)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    print(f"{options.out}: {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
