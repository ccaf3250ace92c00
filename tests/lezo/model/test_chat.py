"""Chat templates of real tokenizers, and the loss of what they score: plain transformers with masked labels says the same."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import OPTForCausalLM

from lezo.bench.textbook import candidate_rows, textbook_loss
from lezo.data.chat import ChatError
from lezo.data.encode import Encoded, Encoder
from lezo.data.pack import gold_batch
from lezo.model.chat import chat_of
from lezo.model.forward import Network, PlainRows
from lezo.model.hashes import examples_hash
from lezo.model.load import TINY, ModelError, load_tokenizer
from lezo.model.loss import answer_scores, loss, losses
from lezo.tasks.chat import ChatTask
from lezo.tasks.row import Row
from lezo.tasks.sample import rows
from lezo.tasks.task import Example, Turn
from tests.lezo.refusals import refused
from tests.lezo.small_models import opt_config

CHATML = (
    "{% for m in messages %}{{ '<s>' + m.role + '\\n' + m.content + '</s>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)
# What Qwen3's does: the last answer, and no other, gets a thought before it.
THINKING = CHATML.replace(
    "m.content", "('<think></think>' if loop.last and m.role == 'assistant' else '') + m.content"
)
TURNS = (Turn("user", "Where is Anna?"), Turn("assistant", "In Oslo."), Turn("user", "And Tom?"), Turn("assistant", "In Rome.\nHe is a baker."))  # fmt: skip


@pytest.fixture
def tokenizer() -> Any:
    return load_tokenizer(str(TINY))


def test_the_embedded_models_plain_form_scores_words_and_end_token(tokenizer: Any) -> None:
    chat = chat_of("tiny", tokenizer, template="plain", before=(0,), given=False, every=True)
    found = chat.conversation(TURNS, 512)
    scored = [tokenizer.decode(found.ids[slice(*span)]) for span in found.spans]
    assert scored == [" In Oslo.</s>", " In Rome.\nHe is a baker.</s>"]
    assert tokenizer.decode(found.ids[1:]) == (
        "User: Where is Anna?\nAssistant: In Oslo.</s>\nUser: And Tom?\nAssistant: In Rome.\nHe is a baker.</s>"
    )
    assert (found.ids[0], tokenizer.decode(found.after)) == (0, "\n")
    assert tokenizer.decode(chat.question(TURNS[:2], 512).ids[1:]) == "User: Where is Anna?\nAssistant:"


def test_a_template_of_ones_own_is_read_from_a_file_and_brings_its_own_beginning(
    tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.jinja").write_text(CHATML)
    own: dict[str, Any] = {"template": str(tmp_path / "mine.jinja"), "before": (0,), "every": True}
    chat = chat_of("tiny", tokenizer, given=False, **own)
    found = chat.conversation(TURNS, 512)
    assert [tokenizer.decode(found.ids[slice(*span)]) for span in found.spans] == [
        "In Oslo.</s>", "In Rome.\nHe is a baker.</s>"
    ]  # fmt: skip
    assert tokenizer.decode(found.ids).startswith("<s>user\nWhere")
    assert chat_of("tiny", tokenizer, given=True, **own).conversation(TURNS, 512).ids == (0, *found.ids)


def test_a_template_that_thinks_before_the_last_answer_alone_is_told_from_others(tokenizer: Any) -> None:
    tokenizer.chat_template = THINKING
    own: dict[str, Any] = {"template": None, "before": (), "given": False}
    with pytest.raises(ChatError, match=r"turn 2, .*task\.turns=last"):
        chat_of("m", tokenizer, every=True, **own).conversation(TURNS, 512)
    found = chat_of("m", tokenizer, every=False, **own).conversation(TURNS, 512)
    assert [tokenizer.decode(found.ids[slice(*span)]) for span in found.spans] == [
        "In Rome.\nHe is a baker.</s>"
    ]


def test_a_tokenizer_without_a_template_says_the_ways_out(tokenizer: Any) -> None:
    with pytest.raises(ModelError) as told:
        chat_of("gpt", tokenizer, template=None, before=(), given=False, every=True)
    assert str(told.value) == (
        "gpt: the tokenizer has no chat template; expected a model tuned to chat, task.chat_template=FILE with a Jinja "
        'template, or task.chat_template=plain for "User: ..." and "Assistant: ..." in lines'
    )


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{{ raise_exception('No system message!') }}",
            "TemplateError: No system message!; it may take no system",
        ),
        ("{{ ''.__class__.__mro__ }}", "SecurityError: access to attribute '__class__'"),
        ("{% for %}", "TemplateSyntaxError: "),
        ("{{ messages[9].content.x }}", "UndefinedError: "),
    ],
)
def test_a_template_that_refuses_or_stumbles_is_said_in_one_line(
    tokenizer: Any, template: str, reason: str
) -> None:
    tokenizer.chat_template = template
    chat = chat_of("m", tokenizer, template=None, before=(), given=False, every=True)
    with refused(ChatError, reason, "another task.chat_template=FILE"):
        chat.conversation((Turn("system", "Be kind."), *TURNS), 512)


def test_a_tokenizer_that_does_not_say_where_tokens_are_is_refused() -> None:
    slow = type("Slow", (), {"is_fast": False})()
    with refused(ModelError, "slow: ", "tokenizer.json", "model.tokenizer=DIR"):
        chat_of("slow", slow, template="plain", before=(), given=False, every=True)


def encoded(tokenizer: Any, every: bool) -> list[Encoded]:
    """Conversations of the sample, one of several scored turns among them."""
    chat = chat_of("tiny", tokenizer, template="plain", before=(0,), given=False, every=every)
    encoder = Encoder(lambda texts: [], (0,), 512, chat=chat)
    task = ChatTask("chat", system="Be kind.")
    examples = [example for row in rows("chat")[0][:3] for example in task.examples(Row(row))]
    return encoder.candidates([*examples, Example("", (TURNS[-1].content,), (0,), turns=TURNS)])


def masked(model: Any, examples: Sequence[Encoded]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """As transformers' users do it: what is not scored is masked with -100. The mean loss, and each one's log-probabilities."""
    labels, logits = [], []
    for example in examples:
        ids = torch.tensor(example.input_ids)
        label = torch.full_like(ids, -100)
        for start, end in example.spans:
            label[0, start:end] = ids[0, start:end]
        labels.append(label[0, 1:])
        logits.append(model(input_ids=ids).logits[0, :-1].float())
    mean = functional.cross_entropy(torch.cat(logits), torch.cat(labels), ignore_index=-100)
    each = [
        x.log_softmax(-1)[y >= 0].gather(1, y[y >= 0, None]).squeeze(1)
        for x, y in zip(logits, labels, strict=True)
    ]
    return mean, each


@torch.no_grad()
@pytest.mark.parametrize("every", [True, False])
def test_packed_and_plain_rows_score_as_masked_labels_do(tokenizer: Any, every: bool) -> None:
    model, examples = (
        OPTForCausalLM(opt_config(vocab_size=1024, max_position_embeddings=512)).eval(),
        encoded(tokenizer, every),
    )
    assert (max(len(example.spans) for example in examples) > 1) is every
    mean, each = masked(model, examples)
    for plain in (False, True):
        network = PlainRows(model) if plain else Network(model)
        batch = gold_batch(examples, pad=1, device=torch.device("cpu"), plain=plain)
        assert batch.weight == sum(map(len, each))
        torch.testing.assert_close(network.token_scores(batch)[0], torch.cat(each), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            answer_scores(network, batch)[0], torch.stack([t.sum() for t in each]), atol=1e-4, rtol=1e-5
        )
        torch.testing.assert_close(loss(network, batch)[0], mean, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(losses(network, batch).sum(), mean, atol=1e-6, rtol=1e-5)
    textbook = candidate_rows(examples, lm=True, pad=1, device=torch.device("cpu"))
    torch.testing.assert_close(textbook_loss(model, textbook), mean, atol=1e-6, rtol=1e-5)


def test_what_is_scored_is_part_of_the_hash(tokenizer: Any) -> None:
    every, last = (encoded(tokenizer, every) for every in (True, False))
    assert [e.input_ids for e in every] == [e.input_ids for e in last]
    shifted = [replace(e, spans=tuple((start - 1, end - 1) for start, end in e.spans)) for e in every]
    assert len({examples_hash([made]) for made in (every, last, shifted)}) == 3


def test_a_template_that_asks_for_the_date_says_the_same_every_day(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
    chat = chat_of("m", tokenizer, template=None, before=(), given=False, every=True)
    assert chat.render(TURNS).startswith("26 Jul 2024\n<s>user")
