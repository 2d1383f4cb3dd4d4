"""Makes the demo's teacher: a Llama-shaped model of 5M parameters and its tokenizer, from the Python documentation.

    python -m engine.model_files.demo.train --output engine/model_files/demo

Neither the tokenizer nor the model sees a document for which ``is_holdout(text, 0.10)`` is true; the weights
kept are those of the epoch with the lowest loss on these documents. This is how the shipped files came to be,
and it is not used by a run: a run only reads them. Knows nothing of distillation.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from engine.data.document import Document
from engine.data.holdout import is_holdout
from engine.data.python_docs import python_documents

HOLDOUT_FRACTION = 0.10
END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"

AutocastContext = Callable[[], AbstractContextManager[object]]
"""Makes the context that a forward pass runs in."""


@dataclass(frozen=True)
class DemoRecipe:
    """Everything that decides what the teacher becomes.

    The shape has many thin layers rather than few wide ones, so that half of the layers still make a student.
    """

    vocab_size: int = 4096
    hidden_size: int = 256
    num_layers: int = 8
    num_heads: int = 4
    num_key_value_heads: int = 2
    intermediate_size: int = 352
    max_positions: int = 1024
    sequence_length: int = 256
    effective_batch: int = 8
    epochs: int = 12
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.5
    clip_norm: float = 1.0
    seed: int = 0


def train_tokenizer(texts: Sequence[str], vocab_size: int, max_positions: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: every text can be said in it, and comes back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
        model_max_length=max_positions,
    )


def build_model(recipe: DemoRecipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained teacher, float32."""
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_key_value_heads,
        intermediate_size=recipe.intermediate_size,
        max_position_embeddings=recipe.max_positions,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document]) -> list[Tensor]:
    """Token ids of each document, with the end-of-text token behind it."""
    # verbose=False: a document may be longer than the model can read, it is cut into rows afterwards.
    ids_of_documents = tokenizer([document.text for document in documents], verbose=False)["input_ids"]
    return [torch.tensor([*ids, tokenizer.eos_token_id]) for ids in ids_of_documents]


def rows_of(encoded: Sequence[Tensor], sequence_length: int, offset: int = 0) -> Tensor:
    """The documents one behind the other from ``offset`` on, cut into ``[rows, sequence_length]``; drops the rest."""
    stream = torch.cat(list(encoded))[offset:]
    return stream[: len(stream) // sequence_length * sequence_length].view(-1, sequence_length)


def epoch_batches(encoded: Sequence[Tensor], recipe: DemoRecipe, generator: torch.Generator) -> Iterator[Tensor]:
    """One pass over the documents in a new order and cut at new places, so that no row comes twice."""
    order = torch.randperm(len(encoded), generator=generator).tolist()
    offset = int(torch.randint(recipe.sequence_length, (), generator=generator))
    rows = rows_of([encoded[index] for index in order], recipe.sequence_length, offset)
    shuffled = rows[torch.randperm(len(rows), generator=generator)]
    # A short last batch is dropped: its gradient would be noisier at the same learning rate.
    for start in range(0, len(shuffled) - recipe.effective_batch + 1, recipe.effective_batch):
        yield shuffled[start : start + recipe.effective_batch]


@torch.no_grad()
def holdout_loss(model: torch.nn.Module, rows: Tensor, batch: int = 16) -> float:
    """Mean cross-entropy over the rows, nats per predicted token, computed in the model's own dtype.

    Args:
        model: a causal language model.
        rows: token ids, ``[rows, sequence_length]``; the first token of a row is not predicted.
        batch: rows at a time.
    """
    model.eval()
    total = 0.0
    for chunk in rows.split(batch):
        logits = model(input_ids=chunk).logits[:, :-1].float()
        labels = chunk[:, 1:]
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
    model.train()
    return total / (len(rows) * (rows.shape[1] - 1))


def fastest_precision(
    model: torch.nn.Module, batch: Tensor
) -> tuple[str, Callable[[], AbstractContextManager[object]]]:
    """Whether matrix products are quicker in bfloat16 on this processor: tried, because its name does not tell."""
    contexts: dict[str, AutocastContext] = {
        "float32": nullcontext,
        "bfloat16 autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    }
    seconds = {}
    for name, context in contexts.items():
        for _ in range(2):  # the first pass allocates and picks kernels
            started = time.perf_counter()
            with context():
                loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            seconds[name] = time.perf_counter() - started
        model.zero_grad(set_to_none=True)
    best = min(seconds, key=lambda name: seconds[name])
    return best, contexts[best]


def learning_rate_at(step: int, total_steps: int, recipe: DemoRecipe) -> float:
    """Linear warm-up, then a half cosine down to zero."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, total_steps - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write weights (bfloat16), config and tokenizer as a model folder."""
    rounded = LlamaForCausalLM(model.config).to(torch.bfloat16)
    rounded.load_state_dict(model.state_dict())
    rounded.save_pretrained(output)
    tokenizer.save_pretrained(output)


def train(recipe: DemoRecipe, output: Path) -> None:
    """Train tokenizer and model, keep the best epoch in ``output`` and describe it in its README."""
    torch.manual_seed(recipe.seed)
    documents = list(python_documents())
    held_out = [document for document in documents if is_holdout(document.text, HOLDOUT_FRACTION)]
    seen = [document for document in documents if not is_holdout(document.text, HOLDOUT_FRACTION)]
    tokenizer = train_tokenizer([document.text for document in seen], recipe.vocab_size, recipe.max_positions)
    encoded = encode(tokenizer, seen)
    holdout_rows = rows_of(encode(tokenizer, held_out), recipe.sequence_length)
    model = build_model(recipe, tokenizer)
    optimizer = _optimizer(model, recipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    first_batch = next(epoch_batches(encoded, recipe, torch.Generator().manual_seed(recipe.seed)))
    precision, autocast = fastest_precision(model, first_batch)
    num_tokens = sum(len(ids) for ids in encoded)
    total_steps = recipe.epochs * (num_tokens // (recipe.sequence_length * recipe.effective_batch))
    print(
        f"{len(seen)} documents, {num_tokens} tokens; "
        f"hold-out {len(held_out)} documents, {holdout_rows.numel()} tokens; "
        f"{model.num_parameters()} parameters; {precision}; {total_steps} steps",
        flush=True,
    )
    best_loss, best_epoch, step, started = math.inf, 0, 0, time.perf_counter()
    for epoch in range(1, recipe.epochs + 1):
        for batch in epoch_batches(encoded, recipe, generator):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, total_steps, recipe)
            with autocast():
                loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
        with autocast():
            measured = holdout_loss(model, holdout_rows)
        seconds = time.perf_counter() - started
        print(f"epoch {epoch} step {step} loss {loss.item():.3f} hold-out {measured:.4f} {seconds:.0f} s", flush=True)
        if measured < best_loss:
            best_loss, best_epoch = measured, epoch
            save(model, tokenizer, output)
    # The stated loss is that of the shipped file: its rounded weights, computed in float32.
    shipped = LlamaForCausalLM.from_pretrained(output, dtype=torch.float32)
    stated = holdout_loss(shipped, holdout_rows)
    card = _card(recipe, shipped.num_parameters(), num_tokens, holdout_rows.numel(), stated, best_epoch)
    (output / "README.md").write_text(card, encoding="utf-8")
    print(f"hold-out loss of the saved model {stated:.4f} (epoch {best_epoch})", flush=True)


def _optimizer(model: torch.nn.Module, recipe: DemoRecipe) -> torch.optim.AdamW:
    # Norm weights are scales around one: decaying them towards zero would only fight the layer behind.
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)


def _card(recipe: DemoRecipe, parameters: int, tokens: int, holdout_tokens: int, loss: float, epoch: int) -> str:
    settings = "\n".join(f"| `{name}` | {value} |" for name, value in asdict(recipe).items())
    return f"""# The demo's teacher

A Llama-shaped language model of {parameters:,} parameters that writes in the manner of the Python documentation.
It exists so that `tinydistill-tui --no-tui --demo` can show a distillation without a network. It is good for
nothing else.

- Text: `engine.data.python_docs.python_documents()` of Python {platform.python_version()}, {tokens:,} tokens;
  the documentation is under the [PSF license](https://docs.python.org/3/license.html).
- Held out: documents with `is_holdout(text, {HOLDOUT_FRACTION})`, {holdout_tokens:,} tokens. Neither the tokenizer
  nor the model was trained on them; they chose the epoch that was kept ({epoch} of {recipe.epochs}).
  This holds for the Python release above. Another release words some documents differently, and the new wording
  may be held out where the old one was trained on: there the teacher's loss comes out lower than it should.
- Hold-out loss: **{loss:.4f}** nats per token, rows of {recipe.sequence_length} tokens, computed in float32 from
  the saved bfloat16 weights.
- Made with `python -m engine.model_files.demo.train --output engine/model_files/demo`
  (torch {torch.__version__.split("+")[0]}, transformers {transformers.__version__}, CPU).

| setting | value |
|---|---|
{settings}
"""


def main() -> None:
    """Command line: ``--output``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for weights, tokenizer and README.md")
    train(DemoRecipe(), parser.parse_args().output)


if __name__ == "__main__":
    main()
