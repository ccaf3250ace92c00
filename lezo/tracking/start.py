"""Starts a run of wandb's. What the configuration leaves open, the user's WANDB_* variables and wandb settings decide.

A run is never kept waiting: where no server answers within seconds, or none takes the run, wandb keeps an offline run.
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

ANSWER_SECONDS = 3.0  # for the server to answer at all
_INIT_SECONDS = 10.0  # for one that does, to take the run
FINISH_SECONDS = 5.0  # after which an end is asked about: is anybody still there?
_GIVE_UP_SECONDS = 15.0  # wandb's own limit, at which it leaves the rest unsent
ONLINE = ("online", "run", "shared")
_OTHER_MODES = ("offline", "disabled", "dryrun")


def start_run(folder: Path, settings: Mapping[str, Any], mode: str, warn: Callable[[str], None]) -> Any:
    """A run of wandb's. ``settings``: what init takes; the user's own count where its project, name or notes are None, and for tags.

    ``called`` among them: its name where nobody has given one; else its folder's.

    ``mode``: wandb's, or auto for the user's. ``warn`` gets the line that says why a run is offline. Raises whatever
    wandb raises where not even an offline run can begin.
    """
    given_mode = os.environ.get("WANDB_MODE") or "online"
    if given_mode not in (*ONLINE, *_OTHER_MODES):
        raise ValueError(f"WANDB_MODE={given_mode}: expected online, offline or disabled")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # at the end it would wait for the server too
    import wandb

    users = wandb.setup(wandb.Settings(silent=True)).settings
    given = {key: value for key, value in settings.items() if key != "called"}
    settings = {**given, **_with_users(folder, settings, users)}
    mode, reason = _mode(mode, users)
    if reason is None and mode in ONLINE:
        try:
            return _init(settings, mode)
        except Exception as error:  # a key that is not known, a project of others: there are many
            reason = in_a_line(error)
            wandb.teardown()  # else the run's id is taken
    run = _init(settings, "offline" if reason else mode)
    if reason is not None:
        warn(f"wandb: {reason}; this run is kept offline: wandb sync {run.settings.sync_dir} uploads it")
    return run


def in_a_line(error: BaseException) -> str:
    """What an error says, as far as it is of use."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def _init(given: Mapping[str, Any], mode: Any) -> Any:
    import wandb

    options = wandb.Settings(
        init_timeout=_INIT_SECONDS,
        finish_timeout=_GIVE_UP_SECONDS,
        finish_timeout_raises=True,
        silent=True,
        x_transaction_log_flush_interval=1.0,
    )
    # Sessions of one run are one there too, hence "allow".
    return wandb.init(**given, mode=mode, reinit="create_new", resume="allow", settings=options)


def _with_users(folder: Path, settings: Mapping[str, Any], users: Any) -> dict[str, Any]:
    """The settings that the user's own change: None where these count, since init would override them."""
    return {
        "dir": None if "WANDB_DIR" in os.environ else str(folder),
        "name": settings.get("name") or (None if users.run_name else settings.get("called", folder.name)),
        "project": settings["project"] or users.project or "lezo",
        "job_type": None if users.run_job_type else settings["job_type"],
        "tags": list(dict.fromkeys([*(users.run_tags or ()), *settings["tags"]])),
    }


def _mode(asked: str, users: Any) -> tuple[str, str | None]:
    """The mode, and why a run cannot be online though it should be."""
    mode = users.mode if asked == "auto" else asked
    if mode not in ONLINE:
        return mode, None
    if not _has_account(users):
        wanted = asked != "auto" or "WANDB_MODE" in os.environ
        return "offline", "no account is set up (wandb login)" if wanted else None
    return mode, no_answer(users)


def _has_account(users: Any) -> bool:
    """Whether a key lies where wandb looks for one: the environment, or the netrc file. Else it would ask for one."""
    if users.api_key or users.identity_token_file:
        return True
    try:
        host = urlparse(users.base_url).hostname or ""
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def no_answer(users: Any) -> str | None:
    """Why the server of wandb's settings cannot be reached; None where it gives any answer within seconds.

    It is asked on a thread, as the look-up of its name has no time limit.
    """
    url = urlparse(users.base_url)
    host = url.netloc.rpartition("@")[2]  # what stands before it is secret
    address = url._replace(netloc=host).geturl()
    reasons: list[str | None] = [f"no answer within {ANSWER_SECONDS:g} s"]
    asking = threading.Thread(target=lambda: reasons.append(_refusal(address, users)), daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS)
    return None if reasons[-1] is None else f"{host}: {reasons[-1]}"


def _refusal(url: str, users: Any) -> str | None:
    given = {"http": users.http_proxy, "https": users.https_proxy}
    proxies = {**urllib.request.getproxies(), **{kind: proxy for kind, proxy in given.items() if proxy}}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    try:
        opener.open(url, timeout=2 * ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # a certificate that wandb may know
            return in_a_line(reason)
    return None
