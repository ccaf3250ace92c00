"""Which settings say the same in other words: a dtype that is left open, and paths that hold the same. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lezo.config.schema import auto_dtype
from lezo.records.reader import Run

_HELD = {
    "model.path": "weights",
    "model.tokenizer": "tokenizer",
    "data.path": "data",
    "task.chat_template": "data",
}
"""Settings that name a place, and which hash of a run's origin is of what lies there."""


def same_words(runs: Sequence[Run]) -> Callable[[Run], dict[str, str]]:
    """For each of ``runs`` those of its settings, as text, that others of them may say in other words, in words that all share.

    So runs of two machines are samples of one setting where their folders lie in different places, and a run in float32 is none of
    one in float16 where both were given auto.
    """
    shared = {
        key: _shared((_place(run, key), held) for run in runs if (held := _origin(run, field)))
        for key, field in _HELD.items()
    }

    def words(run: Run) -> dict[str, str]:
        places = {key: _place(run, key) for key in _HELD}
        said = {key: shared[key].get(place, place)[1] for key, place in places.items()}
        return {**said, "model.dtype": _dtype(run)}

    return words


_Place = tuple[str, str]  # the task or the model that it is of, and the path


def _place(run: Run, key: str) -> _Place:
    return run.model if key.startswith("model.") else run.title, str(run.settings.get(key))


def _origin(run: Run, field: str) -> str:
    origin = run.result.get("origin")
    return str(origin.get(field) or "") if isinstance(origin, dict) else ""


def _shared(pairs: Iterable[tuple[_Place, str]]) -> dict[_Place, _Place]:
    """Each place with one of those that hold the same as it, or the same as one that does: the same for all of them."""
    first: dict[_Place, _Place] = {}
    seen: dict[tuple[str, str], _Place] = {}
    for place, held in pairs:
        known = first.setdefault(place, place)
        other = first[seen.setdefault((place[0], held), place)]
        first.update({one: other for one, of in first.items() if of == known})
    return first


def _dtype(run: Run) -> str:
    """What auto was where the run ran; as given where nothing tells."""
    given = str(run.settings.get("model.dtype"))
    if given == "auto" and (held := _origin(run, "dtype")):
        return held
    if given != "auto" or not run.environment:
        return given
    return auto_dtype(cuda="cuda" in run.environment, first_order=run.kind.first_order).name
