"""git-cloner: bring the repository into the sandbox's workspace.

Git runs beside the worker, in a native sandbox of its own, and the result is copied over: so it works with any image,
the credentials never enter the sandbox in which the repository's own commands run, and what a worker that was killed
left running is found and ended like everything else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conveyor_runtime.errors import Gone, TerminalError
from conveyor_runtime.kit.lines import LineSplitter
from conveyor_runtime.kit.shielded import finish
from conveyor_runtime.models import DriverResult, Resource
from conveyor_runtime.orchestra import Owner, Sandbox, Stream, Task, sandboxes_of
from conveyor_runtime.reconcile import Driver, DriverLogger, RunContext
from drivers.git import CommitRefused, check_failure, configuration, environment
from drivers.repositories import Repository, check_ref, is_commit, parse_repository
from drivers.sandboxes import CHECKOUT, checkout_namespace, checkouts, enter, owner_of, tag_of
from drivers.spec import TYPES, BuildSpec, backend_of


async def reconcile(
    payload: Resource[BuildSpec], event: str, run_id: str, logger: DriverLogger, context: RunContext
) -> DriverResult:
    """Clone the ref, and make the workspace its content."""
    spec = payload.spec
    allow_files = context.settings.allow_file_repositories
    repository = parse_repository(spec.repository, allow_files=allow_files)
    for secret in repository.secrets:
        logger.redact(secret)
    ref = check_ref(spec.ref) if spec.ref else None
    sandbox = await enter(payload, context)
    host, ns = context.orchestra.host, checkout_namespace(context)
    # What a worker that was killed left of this step ends here, before anything is fetched again.
    context.ensure_current()
    for info in await checkouts(context):
        if any(_is_earlier(owner, context) for owner in info.owners):
            context.ensure_current()
            await host.close_namespace(info.ns, grace=context.settings.kill_grace)
    context.ensure_current()
    checkout = await sandboxes_of(host).start_sandbox(ns, Task(id=CHECKOUT), owner_of(context))
    try:
        git = Git(checkout, repository, logger, context, allow_files=allow_files)
        await asyncio.to_thread(git.set_up)
        found = await git.clone(ref, depth=spec.depth)
        if spec.submodules:
            await git.submodules(depth=spec.depth)
        context.ensure_current()
        try:
            await sandbox.copy_in(git.directory, ".")
        except Gone as error:
            raise TerminalError(f"the sandbox of this run is gone: {error}") from error
    finally:
        # Only one's own: whoever took over has another.
        await finish(host.close_namespace(ns, grace=0))
    logger.info(f"{found.ref} is at {found.commit}")
    return DriverResult(
        success=True,
        message=f"cloned {repository.shown} at {found.commit[:12]}",
        data={"commit": found.commit, "ref": found.ref, "repository": repository.shown},
    )


def _is_earlier(owner: Owner, context: RunContext) -> bool:
    """Whether that is of an attempt of this step up to this one; this very one may have been delivered twice."""
    return owner.step == context.step and (owner.attempt, owner.takeover) <= (context.attempt, context.takeover)


@dataclass(frozen=True)
class Found:
    """What was checked out."""

    ref: str
    commit: str


class Git:
    """Git commands on one repository. Raises `TerminalError` or `RetryableError` by what git complains of."""

    def __init__(
        self,
        sandbox: Sandbox,
        repository: Repository,
        logger: DriverLogger,
        context: RunContext,
        *,
        allow_files: bool,
    ) -> None:
        self._sandbox = sandbox
        self._repository = repository
        self._logger = logger
        self._context = context
        self._allow_files = allow_files
        self.directory = Path(sandbox.workspace, "repository")
        self._settings = Path(sandbox.workspace, "gitconfig")
        self._env = environment(repository, self._settings, allow_files=allow_files)

    def set_up(self) -> None:
        """Make the place to clone into. Blocking."""
        self.directory.mkdir()
        self._settings.write_text(configuration(self._repository, trust_files=self._allow_files))

    async def clone(self, ref: str | None, *, depth: int) -> Found:
        """Check the ref out (None = the remote's default branch), with `depth` commits of history (0 = all)."""
        self._logger.info(f"cloning {self._repository.shown} at {ref or 'its default branch'}")
        await self._git("init", "--quiet")
        await self._git("remote", "add", "--", "origin", self._repository.url)
        if ref is not None and is_commit(ref):
            await self._fetch_commit(ref, depth)
            await self._git("checkout", "--quiet", "--detach", ref, "--")
        else:
            ref = await self._fetch_ref(ref, depth)
        commit = await self._git("rev-parse", "--verify", "HEAD")
        return Found(ref, commit.strip())

    async def submodules(self, *, depth: int) -> None:
        """Check out all submodules, to any depth of nesting, by the same allow-list of protocols."""
        shallow = ["--depth", str(depth)] if depth else []
        await self._git("submodule", "update", "--init", "--recursive", *shallow)

    async def _fetch_ref(self, ref: str | None, depth: int) -> str:
        """Fetch and check out a name; returns it, or the default branch's."""
        patterns = [ref, f"refs/heads/{ref}", f"refs/tags/{ref}"] if ref else ["HEAD"]
        listed = await self._git("ls-remote", "--symref", "--", "origin", *patterns)
        heads = {name: value for value, _, name in (line.partition("\t") for line in listed.splitlines())}
        if ref is None:
            target = heads.get("HEAD", "")
            symbolic = [line.split()[1] for line in listed.splitlines() if line.startswith("ref: ")]
            if not symbolic:
                if not target:
                    raise TerminalError(f"the repository {self._repository.shown} is empty")
                await self._fetch_commit(target, depth)
                await self._git("checkout", "--quiet", "--detach", target, "--")
                return target
            full = symbolic[0]
            if "HEAD" not in heads:
                raise TerminalError(f"the default branch {full} of {self._repository.shown} does not exist")
        else:
            candidates = [f"refs/heads/{ref}", f"refs/tags/{ref}", ref]
            full = next((name for name in candidates if name in heads and name.startswith("refs/")), "")
            if not full:
                return await self._fetch_abbreviated(ref)
        branch = full.removeprefix("refs/heads/")
        if branch != full:
            await self._fetch(depth, f"+{full}:refs/remotes/origin/{branch}")
            await self._git("checkout", "--quiet", "-B", branch, f"refs/remotes/origin/{branch}", "--")
            return branch
        await self._fetch(depth, f"+{full}:{full}")
        await self._git("checkout", "--quiet", "--detach", full, "--")
        return full.removeprefix("refs/tags/")

    async def _fetch_commit(self, commit: str, depth: int) -> None:
        try:
            await self._fetch(depth, commit)
        except CommitRefused:
            # Not every server gives out commits by their id; what a branch or tag holds can be had another way.
            await self._fetch_all()

    async def _fetch_abbreviated(self, ref: str) -> str:
        """The last thing a name can be is the beginning of a commit id, which only the whole history can tell."""
        if len(ref) >= 7 and all(letter in "0123456789abcdef" for letter in ref):
            await self._fetch_all()
            commit = (await self._git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", check=False)).strip()
            if commit:
                await self._git("checkout", "--quiet", "--detach", commit, "--")
                return ref
        raise TerminalError(f"{self._repository.shown} has no branch, tag or commit {ref!r}")

    async def _fetch(self, depth: int, refspec: str) -> None:
        shallow = [f"--depth={depth}"] if depth else []
        await self._git("fetch", "--quiet", "--no-tags", "--force", *shallow, "--", "origin", refspec)

    async def _fetch_all(self) -> None:
        everything = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"]
        await self._git("fetch", "--quiet", "--no-tags", "--force", "--", "origin", *everything)

    async def _git(self, *arguments: str, check: bool = True) -> str:
        """Run git; returns its stdout. Its complaints go to the log."""
        out: list[bytes] = []
        said: list[str] = []
        lines = LineSplitter()

        async def log(found: Sequence[str]) -> None:
            for line in found:
                said.append(line)
                await self._logger.line(line, stream="stderr")

        async def take(stream: Stream, data: bytes) -> None:
            if stream == "stdout":
                out.append(data)
            else:
                await log(lines.feed(data))

        status = await self._sandbox.exec(
            ["git", *arguments],
            env=self._env,
            workdir="repository",
            grace=min(2.0, self._context.settings.kill_grace),
            on_output=take,
            tag=tag_of(self._context),
        )
        await log(lines.flush())
        if check and status.status != "success":
            raise check_failure(self._repository, arguments[0], status.exit_code, said[-20:])
        return b"".join(out).decode(errors="replace")


driver = Driver(
    name="git-cloner",
    resources=TYPES,
    reconcile=reconcile,
    sandbox=True,
    direct=False,
    backend_of=backend_of,
)
