"""Whether a profile can be read, and what it chose."""

from collections import Counter
from pathlib import Path

from evopress.inspection.finding import Finding, Unknown, counted, in_words, read_object
from evopress.report.collect import choices_of
from evopress.report.style import megabytes


def inspect_profile(path: Path) -> Finding:
    """The levels of a `profile.json`, and whether its costs add up."""
    finding = Finding("profile", path)
    profile = read_object(path, finding)
    if not profile:
        return finding
    try:
        choices = choices_of(profile)
        cost = sum(unit["cost"] for unit in profile["units"])
        size = sum(choice.size_bytes for choice in choices)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        finding.damages.append(f"the list of units cannot be read ({type(error).__name__}: {error})")
        return finding
    if cost != profile.get("cost"):
        finding.damages.append(f"the costs of the units add up to {cost}, the file says {profile.get('cost')}")
    settings = profile.get("settings") if isinstance(profile.get("settings"), dict) else {}
    budget = profile.get("budget") or settings.get("budget")  # type: ignore[union-attr]
    if isinstance(budget, dict):
        finding.facts["budget"] = in_words(budget)
    if "achieved" in profile:
        finding.facts["achieved"] = str(profile["achieved"])
    finding.facts |= {
        "units": f"{len(choices)}, {megabytes(size)} MB",
        "levels": counted(choice.label for choice in sorted(choices, key=lambda choice: -choice.kept)),
    }
    return finding


def inspect_text_profile(path: Path) -> Finding:
    """A profile as lines `layer: level`. Raises Unknown where not even the first line is one."""
    finding = Finding("profile", path)
    values = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        name, _, value = line.rpartition(":")
        try:
            values.append((name.strip(), float(value)))
        except ValueError as error:
            if number == 1:
                raise Unknown(f"{path} is not a profile: its first line is not `layer: level`") from error
            finding.damages.append(f"line {number} is not `layer: level`")
    twice = [name for name, count in Counter(name for name, _ in values).items() if count > 1]
    finding.damages += [f"{name} is given twice" for name in twice]
    finding.facts = {"layers": str(len(values)), "levels": counted(f"{value:g}" for _, value in sorted(values))}
    return finding
