"""Extended attributes: what is known of a log or a record beside its bytes.

Each is there only where its value is known, and none costs an API call.
"""

from codeartsfs.builds.catalog import Catalog
from codeartsfs.builds.document import first_failed, utc
from codeartsfs.builds.jobs import Jobs
from codeartsfs.fs.nodes import LogFile, Node, RecordDir
from codeartsfs.logs.store import LogStore
from codeartsfs.names import LogKey, RecordId

_PREFIX = "user.codearts."


class Attributes:
    """Describes the nodes of one mount."""

    def __init__(self, catalog: Catalog, jobs: Jobs, store: LogStore) -> None:
        self._catalog = catalog
        self._jobs = jobs
        self._store = store

    async def of(self, node: Node) -> dict[bytes, bytes]:
        """Return full names and values (UTF-8) of a node's attributes."""
        match node:
            case LogFile(key):
                values = await self._of_log(key)
            case RecordDir(record):
                values = await self._of_record(record)
            case _:
                return {}
        return {
            (_PREFIX + name).encode(): value.encode("utf-8", "replace")
            for name, value in values.items()
            if value
        }

    async def _of_log(self, key: LogKey) -> dict[str, str]:
        await self._catalog.recall(key.record)
        run, stat = self._catalog.known_run(key), self._store.peek(key)
        provenance = await self._store.provenance(key)
        return {
            "status": run.status if run else "",
            "stage": key.stage.name,
            "display_name": run.display_name if run else "",
            "final": _yes_no(stat.final if stat else run.final if run else None),
            "cached": provenance.cached,
            "fetched_at": utc(provenance.fetched_ns) or "",
            "sha256": provenance.sha256,
            "request_id": provenance.request_id,
            "last_error": provenance.last_error,
        }

    async def _of_record(self, record: RecordId) -> dict[str, str]:
        await self._catalog.recall(record)
        await self._jobs.recall_all()
        runs, build = self._catalog.known_stages(record), self._catalog.known_build(record)
        times = self._catalog.times(record)
        failed = first_failed(runs or ())
        values = {
            "final": _yes_no(times.final if times else build.final if build else None),
            "failed_stage": failed.stage.name if failed else "",
            "last_error": self._catalog.last_error(record),
        }
        if build is not None:
            job = self._jobs.job_of(build)
            values |= {
                "status": build.status,
                "job": job.name if job else "",
                "build_number": str(build.build_no or ""),
                "branch": build.branch,
                "commit": build.revision,
                "trigger": build.trigger,
            }
        return values


def _yes_no(value: bool | None) -> str:
    return {True: "true", False: "false", None: ""}[value]
