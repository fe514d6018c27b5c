"""Numbers as a person reads them."""


def show_seconds(seconds: float) -> str:
    """Give seconds, minutes, hours or days."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{_short(seconds / unit)} {name}"
    return f"{_short(seconds / 86_400)} days"


def show_bytes(size: float) -> str:
    """Give powers of 1,000."""
    for name in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{_short(size)} {name}"
        size /= 1000
    return f"{_short(size)} TB"


def show_usd(usd: float) -> str:
    """Give dollars, to the cent, or where that says nothing to two digits."""
    if 0 < usd < 0.0001:
        return "under $0.0001"
    return f"${usd:,.2f}" if usd >= 1 or usd == 0 else f"${usd:.2g}"


def show_share(share: float) -> str:
    """Give a share of 1 in percent."""
    return f"{100 * share:.1f}%"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
