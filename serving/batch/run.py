"""One batch prediction from start to end: list, answer what is missing, assemble, and tell."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.bundle import Bundle, HeadSpec
from pipeline.errors import ConfigError, DataError
from serving.batch.assemble import assemble, errors_in, write_part
from serving.batch.journal import DOCUMENTS, Journal
from serving.batch.local import LocalRun
from serving.batch.names import public, shown
from serving.batch.plan import Part, Plan
from serving.batch.progress import Progress
from serving.batch.report import report
from serving.batch.resume import differences, labels_stamp, lost, run_identity
from serving.batch.rows import table_of
from serving.batch.scorer import MakeScorer, Scorer
from serving.batch.settings import Settings, again
from serving.batch.sources import Source, open_source
from serving.batch.summary import Timing, summary_of
from serving.batch.tally import Tally
from serving.batch.views import check_views
from serving.batch.work import Done, Worker, may_be_image
from serving.batch.writers.base import Context
from serving.batch.writers.registry import check_formats, idle, once, run_writers
from serving.engines.registry import usable_cores
from serving.predictor import Predictor

Say = Callable[[str], None]


@dataclass(slots=True)
class BatchRun:
    """A batch prediction.

    Attributes:
        settings: the options.
        bundle: the model.
        say: takes lines for people.
        terminal: whether those people see a terminal.
        make_scorer: reads the labels for the images of a source, where there are any.
    """

    settings: Settings
    bundle: Bundle
    say: Say
    terminal: bool = False
    make_scorer: MakeScorer | None = None

    def run(self) -> dict[str, Any]:
        """Answers everything that is not answered yet; returns the summary.

        Raises:
            ConfigError: options that cannot be had together, or an output folder with something else in it.
            DataError: the source does not exist or holds no image, or the output folder cannot be written.
            BundleError, EngineError: as `Predictor.load`.
        """
        self._check()
        source = open_source(self.settings.source, self.settings.out)
        journal = Journal(self.settings.out)
        try:
            return self._run(source, journal)
        except (OSError, sqlite3.OperationalError) as error:  # the list of files is SQLite's
            reason = getattr(error, "strerror", None) or error
            raise DataError(
                f"{self.settings.out} cannot be written: {reason}; when that is mended, {again(self.settings.restart)}"
            ) from error
        finally:
            journal.close()

    def _check(self) -> None:
        check_formats(self.settings.formats)
        heads, wanted = self.bundle.manifest.heads, self._heads()
        for name in self.settings.heads or ():
            if name not in heads:
                raise ConfigError(f"--heads: the model has no head {name!r}; it has {', '.join(heads)}")
        if not wanted:
            raise ConfigError("--no-masks leaves nothing to answer: the model's heads are all masks")
        check_views(self.settings, wanted)
        for option, kinds in idle(self.settings, {head.kind for head in wanted.values()}):
            self.say(f"{option} writes nothing: no head that is answered has {kinds}")

    def _heads(self) -> dict[str, HeadSpec]:
        return self.settings.answered(self.bundle.manifest.heads)

    def _run(self, source: Source, journal: Journal) -> dict[str, Any]:
        started = time.perf_counter()
        state = None if self.settings.restart else journal.state()
        identity = run_identity(self.settings, self.bundle, source)
        if state is not None and (told := differences(state["identity"], identity)):
            raise ConfigError(
                f"{self.settings.out} holds a run with {told}; repeat it with those, name another folder with --out,"
                " or throw it away with --restart"
            )
        self.say(f"listing {shown(os.fsencode(public(self.settings.source)))}")
        plan = Plan.build(journal.new_plan, source.entries())
        try:
            if not len(plan):
                raise DataError(f"{public(self.settings.source)} holds no file")
            if state is not None and state["finished"]:
                return self._finished(journal, state, plan)
            return self._work(source, journal, state, identity, plan, started)
        finally:
            plan.close()
            journal.new_plan.unlink(missing_ok=True)

    def _begin(self, source: Source, journal: Journal, plan: Plan, state: dict[str, Any] | None) -> None:
        """Throws away what the earlier run left and this one cannot use: now that nothing can refuse this one any more."""
        if self.settings.restart:
            if not any(may_be_image(source, item) for part in plan.parts(1000) for item in part.items):
                raise DataError(f"{public(self.settings.source)} holds no image")
            self.say("whatever an earlier run left is thrown away")
            journal.clear(keep=plan.path)
        elif state is not None and self._changed(plan, journal.plan) and self.settings.per_image:
            journal.drop_outputs()
        plan.move(journal.plan)

    def _changed(self, plan: Plan, earlier: Path) -> bool:
        """Whether the files are others than when the run began; says how."""
        try:
            changes = plan.changes_since(earlier)
        except sqlite3.DatabaseError:
            self.say("the list of files that this run began with is lost; files of single images are written anew")
            return True
        if changes:
            examples = ", ".join(shown(name) for name in changes.examples)
            self.say(
                f"since this run began, {changes.added} files were added, {changes.removed} removed and"
                f" {changes.changed} changed ({examples}); what they touch is answered anew"
            )
        return bool(changes)

    def _finished(self, journal: Journal, state: dict[str, Any], plan: Plan) -> dict[str, Any]:
        """The summary of a run that was finished earlier."""
        journal.drop_parts()
        if plan.digest() != state["files"]:
            raise ConfigError(
                f"{self.settings.out} holds the finished run of {state['count']} files, of which some have changed, gone"
                f" or come since ({len(plan)} now); name another folder with --out, or answer anew with --restart"
            )
        plan.path.unlink(missing_ok=True)
        if told := lost(state.get("held", dict.fromkeys(DOCUMENTS, 1)), journal.held()):
            raise ConfigError(f"{self.settings.out} holds a finished run, but {told}; repeat it with --restart")
        if state.get("labels") != labels_stamp(self.settings):
            raise ConfigError(
                f"{self.settings.labels} has changed since {self.settings.out} was scored by it; name another folder with"
                " --out, or answer and score anew with --restart"
            )
        self.say(f"{self.settings.out} is finished already; nothing was done")
        found: dict[str, Any] = json.loads((self.settings.out / "summary.json").read_text())
        return found

    def _work(
        self,
        source: Source,
        journal: Journal,
        state: dict[str, Any] | None,
        identity: dict[str, Any],
        plan: Plan,
        started: float,
    ) -> dict[str, Any]:
        settings = self.settings
        workers = settings.workers or usable_cores()
        spec = state["engine"].split(" ")[0] if state is not None and settings.local_engine == "auto" else None
        predictor = Predictor.load(
            self.bundle.path, spec or settings.local_engine, streams=workers, heads=self._heads()
        )
        report = predictor.engine.report()
        engine = f"{report.spec} {report.version}"
        if state is not None and state["engine"] != engine:
            raise ConfigError(
                f"{settings.out} was begun on engine {state['engine']}, this is {engine}, whose answers may differ in the"
                " last digit; take that engine, another --out, or --restart"
            )
        # Mistakes in the labels are told before an hour's work, not after it.
        try:
            labels = labels_stamp(settings)
            scorer = self.make_scorer(source, self._heads()) if self.make_scorer is not None else None
        except OSError as error:
            raise DataError(f"--data.root {settings.labels} cannot be read: {error.strerror or error}") from error
        if scorer is not None and not any(scorer.knows(item.name) for part in plan.parts(1000) for item in part.items):
            raise DataError(f"--data.root labels none of the images of {public(settings.source)}; are they its images?")
        with self._cluster(workers):
            self._begin(source, journal, plan, state)
            state = {"identity": identity, "engine": engine, "finished": False}
            journal.save_state(state)
            timing = Timing()
            self._answer(source, journal, plan, predictor, workers, timing)
        summary = self._conclude(source, journal, plan, engine, timing, started, scorer)
        ended = {"finished": True, "files": plan.digest(), "count": len(plan), "labels": labels}
        journal.save_state(state | ended | {"held": journal.held()})
        journal.drop_parts()
        plan.path.unlink()
        return summary

    def _cluster(self, workers: int) -> AbstractContextManager[None]:
        """Ray's, where it must be known to be there before an earlier run is thrown away; joined when needed otherwise."""
        if not (self.settings.ray and self.settings.restart):
            return nullcontext()
        from serving.batch.ray_run import joined

        return joined(workers)

    def _answer(
        self, source: Source, journal: Journal, plan: Plan, predictor: Predictor, workers: int, timing: Timing
    ) -> None:
        """Every part that does not stand yet."""
        settings, stages = self.settings, defaultdict[str, float](float)
        with Progress(len(plan), self.say, self.terminal) as progress:

            def missing() -> Iterator[Part]:
                for part in plan.parts(settings.part):
                    if (stands := journal.part(part.digest)).exists():
                        progress.resumed(len(part.items), errors_in(stands))
                    else:
                        yield part

            def store(part: Part, batches: list[Done]) -> None:
                begun = time.perf_counter()
                refused = journal.settle([name for done in batches for name in done.files])
                for done in batches:
                    done.refuse(refused)
                results = [result for done in batches for result in done.results]
                with journal.placing(f".batch/parts/{part.digest}.arrow") as path:
                    write_part(path, table_of(results))
                for done in batches:
                    for name, seconds in done.seconds.items():
                        stages[name] += seconds
                stages["write"] += time.perf_counter() - begun
                timing.images += len(results)

            if settings.ray:
                from serving.batch.ray_run import RayRun

                spec = predictor.engine.report().spec
                RayRun(self.bundle, settings, spec, journal, store, progress.add).run(missing(), workers)
            else:
                predictor.engine.warm_up(min(settings.batch, len(plan)))
                worker = Worker(predictor, source, settings, journal, progress.add)
                LocalRun(worker, workers, settings.batch, store).run(missing(), source.remote)
        timing.stages = dict(stages)

    def _conclude(
        self,
        source: Source,
        journal: Journal,
        plan: Plan,
        engine: str,
        timing: Timing,
        started: float,
        scorer: Scorer | None,
    ) -> dict[str, Any]:
        """Writes the final files."""
        settings, manifest = self.settings, replace(self.bundle.manifest, heads=self._heads())
        tally = Tally.of(manifest.heads, settings.threshold)
        context = Context(settings, manifest, *((scorer.number, scorer.categories) if scorer else (None, None)))
        begun = time.perf_counter()
        assemble(
            journal,
            (journal.part(part.digest) for part in plan.parts(settings.part)),
            run_writers(context),
            tally,
            scorer.add if scorer else None,
        )
        for name, data in once(context):
            journal.put(name, data)
        timing.stages["assemble"] = time.perf_counter() - begun
        if not tally.answered and not tally.failed:
            journal.clear()
            told = ", ".join(f"{kind} ({count})" for kind, count in sorted(tally.left_out.items()))
            raise DataError(f"{public(settings.source)} holds no image; left out: {told}")
        about = {"source": source.identity, "options": settings.identity(), "engine": engine}
        summary = summary_of(tally, manifest, about, scorer.scores() if scorer else None)
        journal.put("report.html", report(summary, tally, manifest, source).encode())
        timing.seconds = time.perf_counter() - started
        summary["timing"] = timing.plain()
        journal.put("summary.json", json.dumps(summary, indent=1, ensure_ascii=False).encode() + b"\n")
        return summary


def exit_code(summary: dict[str, Any]) -> int:
    """0 when every image was answered, 3 when some could not be."""
    return 3 if summary["images"]["failed"] else 0
