"""How git is set up, and what its complaints mean. Pure."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

from conveyor_runtime.errors import RetryableError, TerminalError
from drivers.repositories import PROTOCOLS, Repository

__all__ = ["CommitRefused", "check_failure", "configuration", "environment"]

# Nothing of the machine's own configuration is read (see `environment`), so that what a clone does depends on the
# resource alone. safe.directory is for repositories in files: reading one that belongs to another user is what the
# operator has allowed.
_CONFIGURATION = """
[core]
    hooksPath = /dev/null
    fsmonitor = false
    askPass =
[init]
    templateDir =
    defaultBranch = main
[gc]
    auto = 0
[maintenance]
    auto = false
[advice]
    detachedHead = false
[credential]
    helper =
[http]
    lowSpeedLimit = 1000
    lowSpeedTime = 60
[submodule]
    fetchJobs = 4
"""

_PASSED_ON = (
    "SSH_AUTH_SOCK",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
)

_FINAL = (
    "authentication failed",
    "could not read username",
    "could not read password",
    "terminal prompts disabled",
    "permission denied",
    "host key verification failed",
    "access denied",
    "repository not exported",
    "repository not found",
    "does not exist",
    "not found",
    "does not appear to be a git repository",
    "couldn't find remote ref",
    "not our ref",
    "unable to read tree",
    "not a tree",
    "transport '",
    "url using bad/illegal format",
    "returned error: 400",
    "returned error: 401",
    "returned error: 403",
    "returned error: 404",
    "returned error: 410",
    "dubious ownership",
    "no url found for submodule",
)
_NO_SUCH_COMMIT = ("not our ref", "unadvertised object", "couldn't find remote ref", "no such remote ref")


class CommitRefused(TerminalError):
    """The server has no such commit, or does not give out commits by their id."""


def configuration(repository: Repository, *, trust_files: bool) -> str:
    """Content of the only configuration file git reads."""
    text = _CONFIGURATION
    if trust_files:
        text += "[safe]\n    directory = *\n"
    if repository.origin:
        # From the environment, not from here: a file could be copied, a command line be seen by other users.
        helper = (
            '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" '
            '"$CONVEYOR_GIT_USER" "$CONVEYOR_GIT_PASSWORD"; }; f'
        )
        quoted = helper.replace("\\", "\\\\").replace('"', '\\"')
        text += f'[credential "{repository.origin}"]\n    helper = "{quoted}"\n'
    return text


def environment(repository: Repository, settings: Path, *, allow_files: bool) -> dict[str, str]:
    """Environment of git, on top of a clean one. `settings` is the configuration file."""
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    env |= {
        "GIT_ALLOW_PROTOCOL": ":".join((*PROTOCOLS, "file") if allow_files else PROTOCOLS),
        "GIT_CONFIG_GLOBAL": str(settings),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
        "GIT_ADVICE": "0",
        "LC_ALL": "C.UTF-8",
    }
    if repository.origin:
        env |= {
            "CONVEYOR_GIT_USER": unquote(repository.user),
            "CONVEYOR_GIT_PASSWORD": unquote(repository.password),
        }
    return env


def check_failure(
    repository: Repository, command: str, exit_code: int, said: list[str]
) -> TerminalError | RetryableError:
    """What a failure of git is: no use trying again, or perhaps better the next time (the network)."""
    if exit_code == 127:
        return TerminalError("git is not installed on this worker")
    complaint = next((line for line in said if line.startswith(("fatal:", "error:", "ERROR:"))), "")
    message = f"git {command} of {repository.shown} failed with exit code {exit_code}: {complaint or said[-1:] or ''}"
    for secret in repository.secrets:
        message = message.replace(secret, "***")
    text = "\n".join(said).lower()
    if any(words in text for words in _NO_SUCH_COMMIT):
        return CommitRefused(message, exit_code=exit_code)
    if any(words in text for words in _FINAL):
        return TerminalError(message, exit_code=exit_code)
    return RetryableError(message, exit_code=exit_code)
