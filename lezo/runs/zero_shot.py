"""The zero-shot score: the test set by the weights that a run starts from, which the runs of a sweep share."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import torch

from lezo.model.evaluate import Evaluation
from lezo.model.hashes import examples_hash
from lezo.records.environment import environment
from lezo.records.format import first_score
from lezo.records.rows import TestRow
from lezo.records.shared import ZERO_SHOT, SharedScores, ZeroShot
from lezo.runs.begin import Session


def zero_shot(session: Session) -> TestRow:
    """Score the test set before training, or take the score from another run of the sweep, to the same bits.

    Of several ranks the others hear of it only where it is computed. A run whose folder lies in no sweep's computes it.
    """
    start = time.perf_counter()
    last = not session.config.needs_examples
    found, source = _scored(session, "last test" if last else "test")
    seconds = time.perf_counter() - start
    called = first_score(session.config.task.demos)
    return TestRow(0, 0.0, found.loss, found.score, found.predictions, called, last, seconds, source)


def _scored(session: Session, split: str) -> tuple[Evaluation, str | None]:
    """The split's evaluation, and the name of the run's folder that it is from where that is another's."""
    folder, own = session.folder.path.absolute(), session.together.evaluate
    if not is_shared(session):
        return own(split), None
    key = key_of(session, split)

    def computed() -> ZeroShot:
        made = own(split)
        return ZeroShot(key, folder.name, made.loss, made.score, made.predictions)

    waits = "another run of this sweep is computing the zero-shot score; waiting for it"
    shared = SharedScores(folder.parent / ZERO_SHOT)
    found = shared.obtain(key, computed, lambda: session.request.out.print(waits))
    return Evaluation(
        found.loss, found.score, found.predictions
    ), found.run if found.run != folder.name else None


def is_shared(session: Session) -> bool:
    """Whether the run is one of a sweep that shares scores. Nothing tells whether a user's own metric is still the same."""
    folder = session.folder.path.absolute().parent / ZERO_SHOT
    own_metric = ":" in session.plan.parts.task.metric
    return session.config.sweep.share_zero_shot and not own_metric and folder.is_dir()


def key_of(session: Session, split: str) -> dict[str, Any]:
    """All that a zero-shot score depends on, down to its last bit, as JSON values: what is scored, by what, how, and where."""
    origin, recipe, evaluator = session.header.origin, session.header.recipe, session.together.evaluator
    model = session.loaded.base.config.to_json_string()
    rows = session.together.split(split)
    return {
        "weights": origin.weights,
        "model": hashlib.sha256(model.encode()).hexdigest(),
        "adapter": recipe.peft,
        "quantization": recipe.quantization,
        "tokenizer": origin.tokenizer,
        "examples": examples_hash([rows.scored, rows.prompts, rows.blanks, rows.samples]),
        "task": session.config.task.name,
        "loss": evaluator.loss,
        "metric": evaluator.metric,
        "batch_size": evaluator.batch_size,
        "prompts_at_once": evaluator.prompts_at_once,
        "generation": repr(evaluator.mode),
        "stop": sorted(evaluator.stop),
        "stop_texts": [*evaluator.stop_texts],
        "max_new_tokens": evaluator.max_new_tokens,
        "rows": session.loaded.network.rows,
        "compiled": session.config.model.compile,
        "ranks": session.together.ranks.size,
        "code": origin.code,
        **_machine(session),
    }


def _machine(session: Session) -> dict[str, Any]:
    """The kind of device and of software: on another one the last bits may be others."""
    found = environment(*session.plan.placement.devices)
    kept = {name: found.get(name) for name in ("packages", "device", "cuda", "cpu_threads")}
    precision = torch.get_float32_matmul_precision()
    return {**kept, "instructions": torch.backends.cpu.get_cpu_capability(), "precision": precision}
