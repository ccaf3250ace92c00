"""The workspace: its keys are ones that runs have, and what wandb would be sent holds every panel."""

import json
import subprocess
import sys
from typing import Any

import pytest

from lezo.config.compose import compose
from lezo.config.identity import settings
from lezo.tracking.keys import AXES, KEYS
from lezo.tracking.workspace import COLUMNS, GROUPED_BY, SECTIONS, SWEPT, WorkspaceError, build, save
from tests.lezo.refusals import refused

PANELS = [panel for members in SECTIONS.values() for panel in members]


# In a process of its own, which brings wandb along: the server's part is a word, all else is the libraries'.
SAVED = """
import lezo.tracking.workspace as w
from wandb_workspaces.workspaces import interface, internal
sent = []
internal.upsert_view2 = lambda view: sent.append(view) or {"upsertView": {"view": {"name": "nw-1-v", "id": "1"}}}
interface.Workspace.url = property(lambda self: f"saved as {self._internal_name}")
print(w.save("n", "e", "p"))
print(sent[0].model_dump_json(by_alias=True, exclude_none=True))
"""


@pytest.fixture(scope="module")
def sent() -> dict[str, Any]:
    """What wandb's library sends when the workspace is saved."""
    done = subprocess.run([sys.executable, "-c", SAVED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    address, view = done.stdout.splitlines()
    assert address == "saved as nw-1-v"
    return json.loads(view)  # type: ignore[no-any-return]


def test_every_key_is_one_that_runs_have() -> None:
    names = {key.name for key in KEYS}
    assert {key for panel in PANELS for key in panel.keys} | set(COLUMNS) <= names
    assert {panel.x for panel in PANELS if panel.kind == "lines"} == set(AXES)
    assert {panel.x for panel in PANELS if panel.kind != "lines"} == {None}


def test_what_runs_are_grouped_and_swept_by_are_settings() -> None:
    known = set(settings(compose([]).yaml))
    assert set(SWEPT) | set(GROUPED_BY) - {"job type"} <= known


def test_what_is_sent_holds_every_panel(sent: dict[str, Any]) -> None:
    assert (sent["entity"], sent["project"], sent["displayName"]) == ("e", "p", "n")
    sections = sent["spec"]["section"]["panelBankConfig"]["sections"]
    assert [(section["name"], len(section["panels"])) for section in sections] == [
        (name, len(members)) for name, members in SECTIONS.items()
    ]
    kinds = {
        **{"lines": "Run History Line Plot", "bars": "Bar Chart", "coordinates": "Parallel Coordinates Plot"},
        **{"runs": "Run Comparer", "table": "Weave"},
    }
    panels = [panel for section in sections for panel in section["panels"]]
    assert [panel["viewType"] for panel in panels] == [kinds[panel.kind] for panel in PANELS]
    for panel, found in zip(PANELS, panels, strict=True):
        if panel.kind in ("lines", "bars"):
            drawn = (found["config"]["chartTitle"], found["config"]["metrics"], found["config"].get("xAxis"))
            assert drawn == (panel.title, list(panel.keys), panel.x)
        assert all(f'"{key}"' in json.dumps(found) or f":{key}" in json.dumps(found) for key in panel.keys)


def test_runs_are_grouped_down_to_their_seeds(sent: dict[str, Any]) -> None:
    (runs,) = sent["spec"]["section"]["runSets"]
    keys = [(key["section"], key["name"]) for key in runs["grouping"]]
    assert (
        ("run", "jobType") in keys and ("config", "task.value.name") in keys and len(keys) == len(GROUPED_BY)
    )
    assert runs["runFeed"]["columnOrder"] == ["run:displayName", *(f"summary:{key}" for key in COLUMNS)]


def test_without_wandbs_library_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with refused(WorkspaceError, "pip install 'lezo[dashboard]'", "board.dry_run=true"):
        build("n", "e", "p")
    with refused(WorkspaceError, "pip install 'lezo[dashboard]'"):
        save("n", "e", "p")
