"""Checks a profile, and counts its levels."""

from collections import Counter
from pathlib import Path

from evopress.inspection.finding import Finding, UnknownFileError, read_object, settings_in_words, with_counts
from evopress.report.choices import choices_of
from evopress.report.wording import megabytes


def inspect_profile(path: Path) -> Finding:
    """The levels in a `profile.json`, and whether its costs add up."""
    finding = Finding("profile", path)
    profile = read_object(path, finding)
    if not profile:
        return finding
    try:
        choices = choices_of(profile)
        cost = sum(unit["cost"] for unit in profile["units"])
        size = sum(choice.size_bytes for choice in choices)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        finding.defects.append(f"the list of units cannot be read ({type(error).__name__}: {error})")
        return finding
    if cost != profile.get("cost"):
        finding.defects.append(f"the costs of the units add up to {cost}, but the file says {profile.get('cost')}")
    settings = profile.get("settings")
    budget = profile.get("budget") or (settings.get("budget") if isinstance(settings, dict) else None)
    if isinstance(budget, dict):
        finding.facts["budget"] = settings_in_words(budget)
    if "achieved" in profile:
        finding.facts["achieved"] = str(profile["achieved"])
    finding.facts |= {
        "units": f"{len(choices)}, {megabytes(size)} MB",
        "levels": with_counts(choice.label for choice in sorted(choices, key=lambda choice: -choice.kept)),
    }
    return finding


def inspect_text_profile(path: Path) -> Finding:
    """A profile of lines `layer: level`. Raises UnknownFileError if the first line does not have this form."""
    finding = Finding("profile", path)
    levels = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        name, _, level = line.rpartition(":")
        try:
            levels.append((name.strip(), float(level)))
        except ValueError as error:
            if number == 1:
                raise UnknownFileError(f"{path} is not a profile: its first line is not `layer: level`") from error
            finding.defects.append(f"line {number} is not `layer: level`")
    repeated = [name for name, count in Counter(name for name, _ in levels).items() if count > 1]
    finding.defects += [f"{name} is given twice" for name in repeated]
    finding.facts = {"layers": str(len(levels)), "levels": with_counts(f"{level:g}" for _, level in sorted(levels))}
    return finding
