"""Texts made from numbers, so that a test can compute which are similar."""

SUBJECTS = ("river", "engine", "violin", "harbor", "lantern", "proof", "granite", "orchard", "copper", "whale", "signal", "bread")
VERBS = ("carries", "breaks", "guards", "measures", "paints", "forgets", "repairs", "follows", "praises", "hides")


def sentence(number: int) -> str:
    """Return a sentence, unique for each number below 1,440."""
    first, second = SUBJECTS[number % 12], SUBJECTS[number // 120 % 12]
    return f"The {first} {VERBS[number // 12 % 10]} an old {second} near the town."


def quiet(name: str, done: int, total: int) -> None:
    """Show no progress."""
