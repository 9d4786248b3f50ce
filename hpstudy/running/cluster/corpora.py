"""The corpus of a study on nodes that do not see the driver's files."""

from __future__ import annotations

import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hpstudy.data.carried import content_name
from hpstudy.data.catalog import Source, locate
from hpstudy.errors import MachineError
from hpstudy.files import CACHE_REMEDY
from hpstudy.running.cluster.joining import last_line, ray_module
from hpstudy.running.cluster.worker import RayWorker
from hpstudy.running.messages import Setup


class Corpora:
    """Where each node has the corpus of a study. One worker of a node finds it or has it carried, for all of them.

    Its methods run in the workers' threads.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._here, self._locating = dict[Path, Path](), threading.Lock()
        self._wanted: Source | None = None
        self._found: dict[str, Source] = {}  # by node id
        self._finding: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def prepare(self, setup: Setup, worker: RayWorker) -> Setup:
        """The setup of a worker, once its node has the corpus.

        Raises UserError if the corpus is not here either, MachineError if the node has no room for it.
        """
        assert worker.node is not None
        node = worker.node.node_id
        with self._finding[node]:
            if node not in self._found:
                self._found[node] = self._find(setup, worker)
        return replace(setup, source=self._found[node])

    def _find(self, setup: Setup, worker: RayWorker) -> Source:
        wanted = self._named(setup)
        source: Source
        source, missing = worker.ask("find_corpus", setup, wanted)
        if missing:
            files = {there: self._here[Path(there.name)] for there in missing}
            size, start = sum(file.stat().st_size for file in files.values()) / 1e6, time.monotonic()
            self._say(f"{worker.place}: does not have the corpus {setup.spec.corpus}; {size:,.1f} MB are carried there")
            for there, here in files.items():
                self._carry(worker, here, there)
            self._say(f"{worker.place}: the corpus was carried in {time.monotonic() - start:.1f} s")
        return source

    def _named(self, setup: Setup) -> Source:
        """The corpus with the names that its files have on other machines."""
        with self._locating:
            if self._wanted is None:
                spec = setup.spec
                source = locate(spec.corpus, spec.tokenizer, setup.base, spec.val)
                names = {path: Path(content_name(path, raw=source.raw)) for path in source.files}
                self._here = {name: path for path, name in names.items()}
                self._wanted = source.renamed(names.__getitem__)
            return self._wanted

    def _carry(self, worker: RayWorker, here: Path, there: Path) -> None:
        part = there.with_name(f"{there.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            worker.upload(here, part)
            worker.ask("keep_corpus", part, there)
        except ray_module().exceptions.RayTaskError as error:
            raise MachineError(
                f"the corpus cannot be carried to {there.parent} on {worker.place} ({last_line(error)}); make room "
                f"there, or {CACHE_REMEDY} before Ray starts on that node"
            ) from error
