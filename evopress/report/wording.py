"""Numbers and names as a report prints them."""


def shortened(text: str, max_length: int = 20) -> str:
    """Text cut to `max_length` characters, so that a label leaves room for its plot."""
    return text if len(text) <= max_length else text[: max_length - 1] + "…"


def duration(seconds: float) -> str:
    """95 → 1 min 35 s"""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def megabytes(size_bytes: float) -> str:
    """3412224 → 3.41"""
    size = size_bytes / 1e6
    return f"{size:,.2f}" if size < 100 else f"{size:,.0f}"
