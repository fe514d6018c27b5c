"""Texts made from numbers, so that a test knows which of them are alike."""

SUBJECTS = ("river", "engine", "violin", "harbor", "lantern", "proof", "granite", "orchard", "copper", "whale", "signal", "bread")
VERBS = ("carries", "breaks", "guards", "measures", "paints", "forgets", "repairs", "follows", "praises", "hides")


def sentence(number: int) -> str:
    """A text of a few words that no other number below 1,440 gives."""
    first, second = SUBJECTS[number % 12], SUBJECTS[number // 120 % 12]
    return f"The {first} {VERBS[number // 12 % 10]} an old {second} near the town."


def quiet(name: str, done: int, total: int) -> None:
    """Show no progress."""
