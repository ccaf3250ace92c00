"""Where does a mirror go? What the configuration leaves open the user's WANDB_* variables and wandb settings say.

A run is never kept waiting for a server: where none answers within seconds, or none lets us in, wandb keeps an offline run.
"""

from __future__ import annotations

import http.client
import netrc
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

_ANSWER_SECONDS = 3.0  # for the server to answer at all
_INIT_SECONDS = 10.0  # for one that does, to take the run
FINISH_SECONDS = 5.0  # after which an end is asked about: is anybody still there?
_GIVE_UP_SECONDS = 15.0  # wandb's own limit, at which it leaves the rest unsent
ONLINE = ("online", "run", "shared")
_OTHER_MODES = ("offline", "disabled", "dryrun")


def started(folder: Path, asked: Mapping[str, Any], mode: str, warn: Callable[[str], None]) -> Any:
    """A run of wandb's. ``asked``: what init takes; None, and tags, leave room for the user's own.

    Raises whatever wandb raises where not even an offline run can begin; ``warn`` hears why a run is offline.
    """
    given_mode = os.environ.get("WANDB_MODE") or "online"
    if given_mode not in (*ONLINE, *_OTHER_MODES):
        raise ValueError(f"WANDB_MODE={given_mode}: expected online, offline or disabled")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # at the end it would wait for the server too
    import wandb

    theirs = wandb.setup(wandb.Settings(silent=True)).settings
    given = {**asked, **_left_open(folder, asked, theirs)}
    mode, reason = _mode(mode, theirs)
    if reason is None and mode in ONLINE:
        try:
            return _begun({**given, "mode": mode})
        except Exception as error:  # a key that is not known, a project of others: there are many
            reason = in_a_line(error)
            wandb.teardown()  # else the run's id is taken
    run = _begun({**given, "mode": "offline" if reason else mode})
    if reason is not None:
        warn(f"wandb: {reason}; this run is kept offline: wandb sync {run.settings.sync_dir} uploads it")
    return run


def in_a_line(error: BaseException) -> str:
    """What an error says, as far as it is of use."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def _begun(given: Mapping[str, Any]) -> Any:
    import wandb

    options = wandb.Settings(
        init_timeout=_INIT_SECONDS,
        finish_timeout=_GIVE_UP_SECONDS,
        finish_timeout_raises=True,
        silent=True,
        x_transaction_log_flush_interval=1.0,
    )
    # Sessions of one run are one there too, hence "allow".
    return wandb.init(**given, reinit="create_new", resume="allow", settings=options)


def _left_open(folder: Path, asked: Mapping[str, Any], theirs: Any) -> dict[str, Any]:
    """What the user may have told wandb: where that says something None stands here, since init would override it."""
    return {
        "dir": None if "WANDB_DIR" in os.environ else str(folder),
        "name": None if theirs.run_name else folder.name,
        "project": asked["project"] or theirs.project or "lezo",
        "job_type": None if theirs.run_job_type else asked["job_type"],
        "tags": list(dict.fromkeys([*(theirs.run_tags or ()), *asked["tags"]])),
    }


def _mode(asked: str, theirs: Any) -> tuple[str, str | None]:
    """The mode, and why an online run is not to be."""
    mode = theirs.mode if asked == "auto" else asked
    if mode not in ONLINE:
        return mode, None
    if not _has_account(theirs):
        wanted = asked != "auto" or "WANDB_MODE" in os.environ
        return "offline", "no account is set up (wandb login)" if wanted else None
    return mode, no_answer(theirs)


def _has_account(theirs: Any) -> bool:
    """Whether a key lies where wandb looks for one: the environment, or the netrc file. Else it would ask for one."""
    if theirs.api_key or theirs.identity_token_file:
        return True
    try:
        host = urlparse(theirs.base_url).hostname or ""
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def no_answer(theirs: Any) -> str | None:
    """Why nobody is at the server of wandb's settings, known within seconds; None where somebody answers, whatever it is.

    On a thread: finding the server's name has no time limit.
    """
    url = urlparse(theirs.base_url)
    host = url.netloc.rpartition("@")[2]  # what stands before it is secret
    found: list[str | None] = [f"no answer within {_ANSWER_SECONDS:g} s"]
    asking = threading.Thread(
        target=lambda: found.append(_refusal(url._replace(netloc=host).geturl(), theirs)), daemon=True
    )
    asking.start()
    asking.join(_ANSWER_SECONDS)
    return None if found[-1] is None else f"{host}: {found[-1]}"


def _refusal(url: str, theirs: Any) -> str | None:
    given = {"http": theirs.http_proxy, "https": theirs.https_proxy}
    proxies = {**urllib.request.getproxies(), **{kind: proxy for kind, proxy in given.items() if proxy}}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    try:
        opener.open(url, timeout=2 * _ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # a certificate that wandb may know
            return in_a_line(reason)
    return None
