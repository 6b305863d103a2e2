"""Whether new log files can be believed: their outcomes against what the champion expects of their prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from router.bundle.bundle import Bundle
from router.portfolio.tiers import Tier, log_names
from training.errors import LogError
from training.evaluation.bundle_graph import BundleGraph
from training.log.checked import CheckedLogs, FileFacts
from training.retrain.acceptance import MIN_ANSWERS, Acceptance, Accepting, expected_since, in_force
from training.retrain.evidence import MIN_EXAMINED, Evidence, find_contradiction
from training.retrain.log_files import LogFiles, NewFile, in_time, is_concerned
from training.retrain.state import LogFile, State

MAX_EXAMINED_PROMPTS = 5000
"""Most prompts of a file that the champion is asked about."""

Answers = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""By tier: how correct its answers are, and with what probability the champion expects them to be; (n_answers,)."""


def read_new_files(rows: CheckedLogs, found: Mapping[str, Path], new: Mapping[str, Path], state: State) -> LogFiles:
    """Read the new files into `rows`. The rows of a file that cannot be used are removed again.

    found, new: the files of the run, and those of them to read, by digest.
    """
    read: dict[str, NewFile] = {}
    for digest, path in new.items():
        facts = rows.read(path)
        set_aside = facts.reason if facts.is_unreadable else _mostly_broken(facts)
        if set_aside:
            rows.remove(path)
        file = LogFile(
            path=str(path),
            n_rows=facts.n_rows,
            n_quarantined=facts.n_broken,
            n_prompts=facts.n_prompts,
            last_timestamp=_text_of(facts),
            set_aside=set_aside,
        )
        is_of_today = facts.is_unreadable or (bool(set_aside) and 2 * facts.n_future > facts.n_broken)
        read[digest] = NewFile(file=file, is_read_again=is_of_today)
    return LogFiles(found=found, new=read, former=state.files, evidence=state.evidence, accepted=state.accepted)


def _mostly_broken(facts: FileFacts) -> str:
    if 2 * facts.n_broken <= facts.n_rows:
        return ""
    broken = f"{facts.n_broken:,} of {facts.n_rows:,} rows are broken ({facts.reason})"
    return f"{broken}; mend the file, or leave these rows out"


def _text_of(facts: FileFacts) -> str:
    return facts.last_timestamp.isoformat() if facts.last_timestamp else ""


def read_known_files(rows: CheckedLogs, files: LogFiles) -> LogFiles:
    """Read the files that earlier runs took into `rows`; returns the files with what was found in them now.

    Raises LogError where one cannot be read as it is.
    """
    now: dict[str, LogFile] = {}
    for digest, path in files.taken_before.items():
        facts = rows.read(path)
        if facts.is_unreadable:
            raise LogError(
                f"{path} could be read by an earlier run, but not now ({facts.reason}); mend or remove the file, or "
                "change --map"
            )
        file = files.known[digest]
        now[digest] = replace(file, n_prompts=facts.n_prompts, last_timestamp=_text_of(facts))
    return replace(files, amended={**files.amended, **now})


def examine(
    rows: CheckedLogs,
    files: LogFiles,
    accepting: Sequence[Accepting],
    champion: Bundle,
    name: str,
    tiers: Sequence[Tier],
) -> LogFiles:
    """Set aside the files whose answers contradict the champion; their rows are removed.

    A file is compared alone, and together with its neighbours in time that were taken since the champion took over; so
    a file that was taken before can be set aside as well. accepting: changes to accept; only these tiers are believed
    anew. name: of the champion in the store.
    """
    judge = _Examiner(rows=rows, champion=champion, tiers=tiers)
    accepted = {(change.tier, change.since): change for change in _still_accepted(files, judge, name)}
    accepted |= {(change.tier, change.since): _accept(change, files, judge, name) for change in accepting}
    evidence = {digest: dict(of_file) for digest, of_file in files.evidence.items() if digest in files.taken_before}
    for change in accepting:
        for of_file in evidence.values():
            of_file.pop(change.tier, None)
    files = replace(files, accepted=tuple(accepted.values()))
    for digest, path in files.taken_new.items():
        at = files.known[digest].last_timestamp
        evidence[digest] = {
            tier: Evidence.of(correct, expected_since(files.accepted, tier, at, expected))
            for tier, (correct, expected) in judge.answers(path).items()
        }
    files = replace(files, evidence=evidence)
    for tier in champion.manifest.tiers:
        while (found := _contradicting(files, tier)) is not None:
            digests, how = found
            why = f"{tier} {how}; did the labels or the model change? if that is right: --accept-change {tier}"
            for digest in digests:
                rows.remove(files.found[digest])
            files = files.set_aside_for(tier, digests, why)
    return files


def _contradicting(files: LogFiles, tier: str) -> tuple[list[str], str] | None:
    """The files that together contradict what is expected of a tier, and how; None where none do."""
    digests = [digest for digest in in_time(files.known, files.evidence) if tier in files.evidence[digest]]
    found = find_contradiction(
        [files.evidence[digest][tier] for digest in digests], [digest in files.new for digest in digests]
    )
    return None if found is None else (digests[found.first : found.last + 1], found.how)


def _accept(change: Accepting, files: LogFiles, judge: _Examiner, name: str) -> Acceptance:
    """What the file that shows a change and, if need be, later ones say of the tier: this is expected from then on."""
    shown = [
        digest
        for digest in in_time(files.known, files.taken_new)
        if digest in files.former and is_concerned(files.former[digest], [change])
    ]
    correct, expected = judge.first_answers(change.tier, (files.found[digest] for digest in shown))
    return Acceptance.fit(change.tier, change.since, name, correct, expected)


def _still_accepted(files: LogFiles, judge: _Examiner, name: str) -> list[Acceptance]:
    """The changes that were accepted before, fitted anew where another bundle is champion now.

    One of whose files too few answers are left ends: the champion was trained since.
    """
    kept = []
    for change in files.accepted:
        if change.champion == name:
            kept.append(change)
            continue
        shown = [
            digest
            for digest in in_time(files.known, files.taken_before)
            if in_force(files.accepted, change.tier, files.known[digest].last_timestamp) is change
        ]
        correct, expected = judge.first_answers(change.tier, (files.found[digest] for digest in shown))
        if len(correct) >= MIN_EXAMINED:
            kept.append(Acceptance.fit(change.tier, change.since, name, correct, expected))
    return kept


@dataclass(frozen=True)
class _Examiner:
    """Asks the champion about the answers of log files, each of them once."""

    rows: CheckedLogs
    champion: Bundle
    tiers: Sequence[Tier]
    known: dict[Path, Answers] = field(default_factory=dict)

    def answers(self, path: Path) -> Answers:
        """The answers in a file, which is read where that was not done before."""
        if path not in self.known:
            self.rows.read(path)
            self.known[path] = _answers(self.rows.outcomes(path, MAX_EXAMINED_PROMPTS), self.champion, self.tiers)
        return self.known[path]

    def first_answers(self, tier: str, paths: Iterable[Path]) -> tuple[np.ndarray, np.ndarray]:
        """A tier's answers and what is expected of them, file by file until there are MIN_ANSWERS."""
        parts = [(np.empty(0), np.empty(0))]
        for path in paths:
            if sum(len(correct) for correct, _ in parts) >= MIN_ANSWERS:
                break
            parts += [self.answers(path)[tier]] if tier in self.answers(path) else []
        correct, expected = (np.concatenate(side) for side in zip(*parts, strict=True))
        return correct, expected


def _answers(outcomes: Sequence[tuple[str, str, float]], champion: Bundle, tiers: Sequence[Tier]) -> Answers:
    """outcomes: prompt, model, mean correctness."""
    tier_of = {name: tier.name for tier in tiers for offer in tier.offers for name in log_names(offer)}
    known = champion.manifest.tiers
    cells = [
        (prompt, known.index(tier_of[model]), correct)
        for prompt, model, correct in outcomes
        if tier_of.get(model) in known
    ]
    if not cells:
        return {}
    prompts = sorted({prompt for prompt, _, _ in cells})
    place = {prompt: row for row, prompt in enumerate(prompts)}
    success = BundleGraph(champion).estimates(prompts)["success"]
    at = np.array([(place[prompt], column) for prompt, column, _ in cells])
    expected, correct = success[at[:, 0], at[:, 1]].astype(float), np.array([value for _, _, value in cells])
    return {
        known[column]: (correct[at[:, 1] == column], expected[at[:, 1] == column])
        for column in np.unique(at[:, 1]).tolist()
    }
