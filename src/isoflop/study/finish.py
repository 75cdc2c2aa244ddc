"""What happens once every run of the grid has ended: laws, plan, verification, report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isoflop.errors import InputError
from isoflop.study import verification
from isoflop.study.fits import fit_study, fits_digest
from isoflop.study.session import Session


@dataclass(kw_only=True)
class Finished:
    """What came of the runs."""

    fits: dict[str, Any] | None = None
    """fits.json."""
    verification: dict[str, Any] | None = None
    """verification.json."""
    ended: bool = True
    """False if the deadline came before the verification had ended."""
    report: Path | None = None
    """The report's HTML file."""
    notes: list[str] = field(default_factory=list)
    """What could not be done, and why."""


def finish(session: Session, *, train_tokens: int) -> Finished:
    """Fit, plan, carry out the verification, and write the report; what the store has already is kept.

    The prediction is written to verification.json before its run begins, and stays as long as the rows behind it do.

    Args:
        session: the study; every run of its grid has ended.
        train_tokens: tokens of the training split, which bounds the plan as long as no run of the grid repeats data.
    """
    store = session.store
    result = Finished()
    session.verification = []
    try:
        with store.lock("fits"):
            result.fits, result.verification = _fit_and_plan(session, train_tokens)
        result.notes += result.fits["notes"]
    except InputError as error:
        result.notes.append(str(error))
        session.verification_possible = False
        session.keep()
    if result.verification is not None:
        session.verification = verification.planned_runs(session.study, session.grid, result.verification)
        result.notes += [*result.verification["notes"], *result.verification["plan"]["warnings"]]
        best = result.verification["runs"][0]
        session.progress.say(
            f"verification: {best['architecture']} at {best['flops']:.3g} FLOPs, predicted loss {best['predicted']:.4f}"
        )
        session.time_models(session.verification)
        result.ended = session.execute(session.everything)
        result.verification = verification.compare(result.verification, store.rows(session.verification))
        store.write_json("verification.json", result.verification)
    if result.ended:
        result.report = _report(session, result.notes)
    return result


def _fit_and_plan(session: Session, train_tokens: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """fits.json and verification.json; those of the store while the rows behind them are the same."""
    store, study, wanted = session.store, session.study, session.study.verification
    planned = {run.run_id: run.stage for run in session.planned()}  # a run may have been a verification once
    rows = [{**row, "stage": planned[run_id]} for run_id, row in store.rows(session.planned()).items()]
    rows += store.repeats(rows)
    digest = fits_digest(study, rows)
    fits, document = store.read_json("fits.json"), store.read_json("verification.json")
    if document is not None and (wanted is None or document["digest"] != digest or document["flops"] != wanted.flops):
        document = None
    if fits is None or fits["digest"] != digest or (wanted is not None and document is None):
        session.progress.update("fitting the laws", 1.0, "")
        found = fit_study(study, rows)
        fits = found.to_dict()
        store.write_json("fits.json", fits)
        if wanted is not None:
            most = max([train_tokens, *(row.get("tokens") or 0 for row in rows)])
            document = verification.predict(study, session.grid, found, tokens_available=most)
            store.write_json("verification.json", document)
    return fits, document


def _report(session: Session, notes: list[str]) -> Path | None:
    from isoflop.report import write_report

    page = session.store.path / "report" / "index.html"
    if page.exists() and page.stat().st_mtime >= session.store.changed_at():
        return page
    session.progress.update("writing the report", 1.0, "")
    try:
        with session.store.lock("report"):
            return write_report(session.store.path)
    except InputError as error:
        notes.append(f"no report: {error}")
        return None
